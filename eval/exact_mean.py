"""Means whose sums are exact: order, batches and shards cannot change the last bit.

A float64 is a whole number times a power of two; those numbers are added up as integers, split into limbs so small that
numpy's sums of them do not round. Letters: B images.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from torch import nn

from vqbench.errors import ArtifactError, SpecError
from vqbench.eval.base import Batch, Estimate, Metric, check_alike
from vqbench.eval.intervals import normal, undefined

LARGEST = 1e300  # magnitudes from here on are refused with infinity: their deviation may not be a float64
UNIT = 1126  # sums are counted in units of 2^-1126: a float64 is a 53-bit whole number times 2^-1126 or more
LIMB = 18  # bits; a 53-bit number is three limbs, the products of two limbs stay below 2^37
CHUNK = 1 << 15  # values whose limb products sum to less than 2^52, which float64 holds exactly
GUARD = 64  # extra bits of the square root


class ExactMean:
    """Mean of numbers and its normal 95% interval, from exact sums of the numbers and of their squares.

    Memory does not grow with their count: the two sums are integers of a few thousand bits.

    >>> mean = ExactMean()
    >>> mean.add(np.array([1e16, 1.0, -1e16]))
    >>> mean.estimate().value == 1 / 3
    True

    Attributes:
        count: how many numbers were added.
    """

    def __init__(self) -> None:
        self.count = self._sum = self._squares = 0  # in units of 1, 2^-UNIT and 2^-2UNIT

    def add(self, values: np.ndarray) -> None:
        """Add numbers of any shape; all or none.

        Raises:
            ArtifactError: one is NaN, infinite, or of a magnitude of 1e300 or more.
        """
        values = np.asarray(values, dtype=np.float64).reshape(-1)
        if not (np.abs(values) < LARGEST).all():
            raise ArtifactError(
                f"a value to be averaged is not finite ({values[~(np.abs(values) < LARGEST)][0]}); "
                "look for damaged weights or images"
            )
        for start in range(0, len(values), CHUNK):
            self._add(values[start : start + CHUNK])
        self.count += len(values)

    def _add(self, values: np.ndarray) -> None:
        fraction, exponent = np.frexp(values)
        whole = np.ldexp(fraction, 53).astype(np.int64)  # value = whole * 2^(exponent - 53)
        a, b, c = whole >> 2 * LIMB, (whole >> LIMB) % (1 << LIMB), whole % (1 << LIMB)
        lowest = int(exponent.min())
        place, base = exponent - lowest, lowest - 53 + UNIT
        for limb, part in ((2, a), (1, b), (0, c)):
            self._sum += _weighted(place, part, 1) << base + LIMB * limb
        for limb, part in ((4, a * a), (3, 2 * a * b), (2, 2 * a * c + b * b), (1, 2 * b * c), (0, c * c)):
            self._squares += _weighted(place, part, 2) << 2 * base + LIMB * limb

    def merge(self, other: ExactMean) -> None:
        """Add all numbers of another."""
        self.count += other.count
        self._sum += other._sum
        self._squares += other._squares

    def estimate(self) -> Estimate:
        """Mean, rounded once; undefined of no numbers, without an interval for one."""
        n = self.count
        if not n:
            return undefined(0)
        mean = self._sum / (n << UNIT)
        return Estimate(mean, *normal(mean, self._deviation() if n > 1 else math.nan, n), n)

    def _deviation(self) -> float:
        """Standard deviation of one number, divided by n - 1."""
        n = self.count
        scatter = n * self._squares - self._sum**2  # n (n - 1) times the variance, never negative
        return math.isqrt((scatter << 2 * GUARD) // (n * (n - 1))) / (1 << UNIT + GUARD)


def _weighted(place: np.ndarray, parts: np.ndarray, step: int) -> int:
    """The sum of parts * 2^(step * place)."""
    sums = np.bincount(place, parts)  # float64, but whole and below 2^52
    return sum(int(sums[i]) << step * int(i) for i in np.flatnonzero(sums))


class PairMean(Metric):
    """A metric that gives one number for an image pair, averaged over pairs.

    Args:
        settings: what must be equal where shards are merged.
    """

    name: str
    interval = "normal over images"
    not_finite = "refused"
    needs = frozenset({"images", "originals"})

    def __init__(self, settings: Mapping[str, object]) -> None:
        self.settings, self.mean = dict(settings), ExactMean()

    def too_small(self, size: Sequence[int]) -> str:
        """Why images of that (H, W) cannot be scored, known before a pass over them; "" where they can."""
        return ""

    @abstractmethod
    def values(self, images: np.ndarray, originals: np.ndarray) -> np.ndarray:
        """(B, H, W, 3) uint8, twice -> (B,) float64."""

    def __getstate__(self) -> dict[str, Any]:
        """What another process can merge: all but the network."""
        return {name: value for name, value in self.__dict__.items() if not isinstance(value, nn.Module)}

    def update(self, batch: Batch) -> None:
        """Add reconstructions and originals, both uint8 (B, H, W, 3).

        Raises:
            SpecError: they differ in count or size, or are too small for the metric.
            ArtifactError: a value is not finite.
        """
        images, originals = pair(batch)
        if len(images):
            self.mean.add(self.values(images, originals))

    def merge(self, other: Self) -> None:
        """Add a shard.

        Raises:
            SpecError: of other settings.
        """
        check_alike(self.name, self.settings, other.settings)
        self.mean.merge(other.mean)

    def compute(self) -> dict[str, Estimate]:
        """``{name: estimate}``; NaN before the first pair."""
        return {self.name: self.mean.estimate()}


def pair(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Images and originals of a batch.

    Raises:
        SpecError: of different counts or sizes.
    """
    images, originals = batch.images, batch.originals
    assert images is not None and originals is not None, "a metric of pairs needs images and originals"
    if images.shape != originals.shape:
        raise SpecError(
            f"pairs of {originals.shape} originals and {images.shape} images; give as many of both, of one size"
        )
    return images, originals
