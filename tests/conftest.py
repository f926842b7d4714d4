"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import random
from collections.abc import Generator
from pathlib import Path

import pytest
import torch
from helpers import copy_clone

torch.set_num_threads(1)

# By `--durations` of `make test`, whose workers take files in this order.
LONGEST = ("test_workflow.py", "test_families.py", "test_snakemake.py", "test_large_codebook.py", "test_mutated_configs.py",
           "test_cluster.py", "test_notice.py", "test_distributed.py")  # fmt: skip

# Drawn once, for the workers of pytest-xdist too; tests/faults kills at moments drawn from it.
os.environ.setdefault("FAULT_SEED", str(random.SystemRandom().randrange(1_000_000)))


def pytest_report_header() -> str:
    """The seed of what is random, at the top of the output."""
    return f"faults: FAULT_SEED={os.environ['FAULT_SEED']}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: a worker takes a whole file, and one of ten minutes that came last left the other idle."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a user's machine may lack, CI promises (.ci/run): a skip there is a failure that says what was missing."""
    report = yield
    if report.skipped and os.environ.get("VQBENCH_CI") == "1":
        why = report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome, report.longrepr = "failed", f"skipped where CI says that it is CI: {why}"
    return report


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A temporary clone with the scale ``tiny`` (results/tiny)."""
    return copy_clone(tmp_path / "clone")
