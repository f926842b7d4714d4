"""Mean and covariance of features, added up in float64 batch by batch.

Letters: B images of a batch, n images of a set, d feature length.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqbench.errors import ArtifactError

HELD = 1024  # rows that moments wait for: a (d, d) product of few rows is mostly traffic


@dataclass(frozen=True)
class Gaussian:
    """What FID knows of a set of n images.

    Attributes:
        mu: (d,) float64 mean.
        covariance: (d, d) float64, divided by n - 1; None: that of `rows`.
        rows: (n, d) features of all n images where they were kept.
    """

    mu: np.ndarray
    covariance: np.ndarray | None
    n: int
    rows: np.ndarray | None = None

    @cached_property
    def sigma(self) -> np.ndarray:
        """(d, d) float64. Of few images nothing may ever ask for it: it is not made before."""
        if self.covariance is not None:
            return self.covariance
        assert self.rows is not None
        return moments_of(self.rows, np.arange(len(self.rows))).covariance()

    @property
    def singular(self) -> bool:
        """Whether the rows are known and too few for a covariance of full rank."""
        return self.rows is not None and self.n <= len(self.mu)

    def by_moments(self) -> Gaussian:
        """The same without its rows."""
        return Gaussian(self.mu, self.sigma, self.n)


class Moments:
    """Mean and scatter accumulated in float64, merged by Chan's update: no sum of squares cancels.

    The first d rows are held back: a set with no more has a singular covariance, and FID then needs its rows.
    """

    def __init__(self) -> None:
        self.added = 0  # rows in `mean` and `scatter`
        self.mean: Tensor | float = 0.0
        self.scatter: Tensor | float = 0.0
        self._held: list[Tensor] = []

    @property
    def count(self) -> int:
        """Rows added."""
        return self.added + sum(map(len, self._held))

    def update(self, features: Tensor) -> None:
        """Add features (B, d)."""
        if not len(features):
            return
        self._held.append(features.float().to(self._held[0].device if self._held else features.device))
        if sum(map(len, self._held)) > max(HELD, 0 if self.added else features.shape[1]):
            self._flush()

    def _flush(self) -> None:
        if self._held:
            rows, self._held = torch.cat(self._held).double(), []
            mean = rows.mean(0)  # (d,)
            rows -= mean
            self._add(len(rows), mean, rows.T @ rows)

    def merge(self, other: Moments) -> None:
        """Add all that `other` holds."""
        if other.added:
            self._flush()
            assert isinstance(other.mean, Tensor) and isinstance(other.scatter, Tensor)
            self._add(other.added, other.mean, other.scatter)
        for rows in other._held:
            self.update(rows)

    def _add(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        total = self.added + count
        if isinstance(self.mean, Tensor):
            mean, scatter = mean.to(self.mean.device), scatter.to(self.mean.device)
        shift = mean - self.mean
        self.scatter += scatter
        self.scatter.addr_(shift, shift, alpha=self.added * count / total)
        self.mean = self.mean + shift * (count / total)
        self.added = total

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which may hold its own on another device."""
        held = {"_held": [rows.cpu() for rows in self._held]}
        return self.__dict__ | held | {k: v.cpu() for k, v in self.__dict__.items() if isinstance(v, Tensor)}

    def total(self) -> Moments:
        """All rows in `mean` and `scatter`. Here they stay held back: more may come."""
        whole = Moments()
        whole.merge(self)
        whole._flush()
        return whole

    def gaussian(self) -> Gaussian:
        """The statistics so far.

        Raises:
            ArtifactError: fewer than two images, which have no covariance.
        """
        if self.count < 2:
            raise ArtifactError(f"a covariance needs at least 2 images, there are {self.count}; give more")
        if not self.added:
            rows = torch.cat(self._held)
            return Gaussian(rows.mean(0, dtype=torch.float64).cpu().numpy(), None, len(rows), rows.cpu().numpy())
        whole = self.total()
        assert isinstance(whole.mean, Tensor)
        return Gaussian(whole.mean.cpu().numpy(), whole.covariance(), whole.added)

    def covariance(self) -> np.ndarray:
        """(d, d) float64, divided by n - 1."""
        whole = self.total()
        assert isinstance(whole.scatter, Tensor)
        return (whole.scatter / (whole.added - 1)).cpu().numpy()


def moments_of(rows: np.ndarray, chosen: np.ndarray) -> Moments:
    """Moments of those rows of (n, d), in chunks: never all of them in float64."""
    found = Moments()
    for start in range(0, len(chosen), HELD):
        found.update(torch.from_numpy(np.array(rows[chosen[start : start + HELD]])))
    return found


def gaussian_of(rows: np.ndarray) -> Gaussian:
    """The statistics of features (n, d)."""
    found = moments_of(rows, np.arange(len(rows))).gaussian()
    return Gaussian(found.mu, found.covariance, found.n, rows)


def without(whole: Gaussian, part: Moments) -> Gaussian:
    """The statistics of a set without `part` of it: Chan's update backwards."""
    if not part.count:
        return whole
    part, left = part.total(), whole.n - part.count
    assert isinstance(part.mean, Tensor) and isinstance(part.scatter, Tensor)
    mean, scatter = part.mean.cpu().numpy(), part.scatter.cpu().numpy()
    rest = (whole.n * whole.mu - part.added * mean) / left
    shift = rest - mean
    sigma = whole.sigma * (whole.n - 1) - scatter - np.outer(shift, shift) * (left * part.added / whole.n)
    return Gaussian(rest, sigma / (left - 1), left)
