"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
import torch
from helpers import copy_clone

torch.set_num_threads(1)

# Drawn once, for the workers of pytest-xdist too; tests/faults kills at moments drawn from it.
os.environ.setdefault("FAULT_SEED", str(random.SystemRandom().randrange(1_000_000)))


def pytest_report_header() -> str:
    """The seed of what is random, at the top of the output."""
    return f"faults: FAULT_SEED={os.environ['FAULT_SEED']}"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A temporary clone with the scale ``tiny`` (results/tiny)."""
    return copy_clone(tmp_path / "clone")
