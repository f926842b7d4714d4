"""Fixtures shared by all tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import copy_clone

torch.set_num_threads(1)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A temporary clone with the scale ``tiny`` (results/tiny)."""
    return copy_clone(tmp_path / "clone")
