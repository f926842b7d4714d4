"""One server of forks, over a clone of its own, for each file of tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from forks import Forks, longer_clone


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    with Forks(longer_clone(tmp_path_factory.mktemp("faults") / "clone")) as forks:
        yield forks
