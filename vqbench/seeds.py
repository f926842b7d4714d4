"""Seeds by name and index, never by process: the same index gives the same numbers however the work is split."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch


def derive(seed: int, *path: str | int) -> int:
    """A 63-bit seed for one purpose and index, e.g. ``derive(0, "sample", block)``.

    SHA-256 of the path, so neighbouring indices share nothing and a new purpose cannot collide with an old one.
    """
    text = "/".join(str(part) for part in (seed, *path))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def numpy_rng(seed: int, *path: str | int) -> np.random.Generator:
    """A NumPy generator for one purpose and index."""
    import numpy as np

    return np.random.default_rng(derive(seed, *path))


def torch_rng(seed: int, *path: str | int, device: str | torch.device = "cpu") -> torch.Generator:
    """A torch generator for one purpose and index, on `device`."""
    import torch

    return torch.Generator(device=device).manual_seed(derive(seed, *path))
