"""Unique ratio: how much an image repeats its own codes."""

from __future__ import annotations

import math
from typing import Self

import numpy as np

from vqbench.errors import ArtifactError
from vqbench.eval.base import Batch, Estimate, Metric, check_alike
from vqbench.eval.intervals import normal


class UniqueRatio(Metric):
    """Unique ids of one image over all its ids (N * Q), averaged over images, in % (cq paper, ablations).

    Unique ids are summed as integers: the value is the same to the last bit whatever the order or the shards.
    """

    unit = "%"
    higher_is_better = True
    interval = "normal over images"
    not_finite = "cannot occur: ids are counted; NaN of no images"
    needs = frozenset({"ids"})

    def __init__(self) -> None:
        self.total = self.squares = self.count = self.length = 0  # length: N * Q, 0 before the first image

    def update(self, batch: Batch) -> None:
        """Add ids (B, N, Q).

        Raises:
            ArtifactError: images of another number of ids.
        """
        ids = batch.ids
        assert ids is not None, "unique_ratio needs ids"
        if not len(ids):
            return
        flat = np.sort(ids.reshape(len(ids), -1), axis=1)  # (B, N * Q)
        self._check(flat.shape[1])
        unique = 1 + np.count_nonzero(np.diff(flat, axis=1), axis=1).astype(np.int64)  # (B,)
        self.total += int(unique.sum())
        self.squares += int((unique * unique).sum())
        self.count += len(ids)

    def _check(self, length: int) -> None:
        if self.length and length != self.length:
            raise ArtifactError(f"images of {self.length} and of {length} ids; tokenize again with one tokenizer")
        self.length = length

    def merge(self, other: Self) -> None:
        """Add a shard.

        Raises:
            SpecError: its images have another number of ids.
        """
        if self.count and other.count:
            check_alike("unique_ratio", {"ids an image": self.length}, {"ids an image": other.length})
        self.length = self.length or other.length
        self.total, self.squares = self.total + other.total, self.squares + other.squares
        self.count += other.count

    def compute(self) -> dict[str, Estimate]:
        """``{"unique_ratio": estimate}``, in %."""
        if not self.count:
            return {"unique_ratio": Estimate(math.nan, math.nan, math.nan, 0)}
        n, scale = self.count, 100.0 / self.length
        mean = scale * self.total / n
        spread = scale * math.sqrt((n * self.squares - self.total**2) / (n * (n - 1))) if n > 1 else math.nan
        return {"unique_ratio": Estimate(mean, *normal(mean, spread, n), n)}
