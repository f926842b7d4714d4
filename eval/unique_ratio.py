"""Unique ratio: how much an image repeats its own codes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from vqbench.eval.base import Metric


class UniqueRatio(Metric):
    """Unique ids of one image over all its ids (N * Q), averaged over images, in % (cq paper, ablations)."""

    unit = "%"
    higher_is_better = True
    needs = "ids"

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def update(self, *batch: Any) -> None:
        """Add ids (B, N, Q)."""
        (ids,) = batch
        flat = np.sort(np.asarray(ids).reshape(len(ids), math.prod(ids.shape[1:])), axis=1)  # (B, N * Q)
        unique = 1 + np.count_nonzero(np.diff(flat, axis=1), axis=1)  # (B,)
        self.total += float((unique / flat.shape[1]).sum())
        self.count += len(ids)

    def compute(self) -> dict[str, float]:
        """``{"unique_ratio": %}``."""
        return {"unique_ratio": 100.0 * self.total / self.count if self.count else float("nan")}
