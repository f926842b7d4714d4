"""Weights that follow from a seed alone, whatever was drawn before and whatever device the model will live on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from vqbench.seeds import derive


@contextmanager
def seeded_init(seed: int, *purpose: str | int) -> Iterator[None]:
    """Inside, PyTorch's default initialisers draw from ``derive(seed, *purpose)``; outside, nothing has changed.

    torch.nn's initialisers take no generator of their own, so the CPU's default one is seeded and then put back. Only
    the CPU's: models are built there (or on the meta device) and moved, and so start alike on every machine.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(seed, *purpose))
        yield
