"""PSNR in dB, of RGB or of luma, from whole numbers: per image and then averaged, or of the MSE pooled over all images."""

from __future__ import annotations

import math
from typing import Self

import numpy as np

from vqbench.eval.base import Batch, Estimate, Metric, check_alike
from vqbench.eval.exact_mean import ExactMean, pair
from vqbench.eval.intervals import GROUPS, SMALLEST, groups_of, jackknife, undefined
from vqbench.eval.protocols import SignalNoise

LUMA = (299, 587, 114)  # thousandths of R, G, B in ITU-R BT.601's Y, full range


class Psnr(Metric):
    """Peak signal-to-noise ratio, 10 log10(data_range^2 / MSE); of uint8 images scikit-image's to 1e-12.

    The MSE is over one image's pixels and channels, or over its luma 0.299 R + 0.587 G + 0.114 B (not rounded); its
    sum is a whole number, of thousandths of levels for luma. Scripts that use the studio range (16..235) have the same
    differences 219/255 times as large: a `data_range` of 255 * 255 / 219 gives their number.

    Pooling the MSE gives another number than the mean over images (27 instead of 35 dB on one set). A pair without
    error has no finite PSNR: it is left out of the mean and of n. The pooled MSE is over all pairs, those included.

    Attributes:
        identical: pairs without error.
    """

    unit = "dB"
    higher_is_better = True
    interval = f"normal over images; of a pooled MSE delete-group jackknife, {GROUPS} groups by index"
    not_finite = "identical pairs, infinite, are left out of the mean and of n; NaN where no pair differs"
    needs = frozenset({"images", "originals"})

    def __init__(self, protocol: SignalNoise) -> None:
        self.protocol, self.identical = protocol, 0
        self.mean = ExactMean()
        self.errors, self.sizes, self.images = [0] * GROUPS, [0] * GROUPS, [0] * GROUPS  # of each group

    def update(self, batch: Batch) -> None:
        """Add reconstructions and originals, both uint8 (B, H, W, 3).

        Raises:
            SpecError: they differ in count or size.
        """
        images, originals = pair(batch)
        squared = _luma_error if self.protocol.space == "y" else _rgb_error
        errors = [squared(a, b) for a, b in zip(images, originals, strict=True)]
        size = images[:1].size if self.protocol.space == "rgb" else images[:1].size // 3 * 1000**2  # of errors
        self.identical += errors.count(0)
        self.mean.add(np.array([self._decibel(error, size) for error in errors if error]))
        for group, error in zip(groups_of(batch.indices).tolist(), errors, strict=True):
            self.errors[group] += error
            self.sizes[group] += size
            self.images[group] += 1

    def _decibel(self, error: int, size: int) -> float:
        return 10 * math.log10(self.protocol.data_range**2 / (error / size)) if error else math.nan

    def merge(self, other: Self) -> None:
        """Add a shard.

        Raises:
            SpecError: of other settings.
        """
        check_alike("psnr", self.protocol.model_dump(), other.protocol.model_dump())
        self.identical += other.identical
        self.mean.merge(other.mean)
        for mine, theirs in ((self.errors, other.errors), (self.sizes, other.sizes), (self.images, other.images)):
            mine[:] = [a + b for a, b in zip(mine, theirs, strict=True)]

    def compute(self) -> dict[str, Estimate]:
        """``{"psnr": estimate}`` in dB; NaN and n = 0 where no pair differs."""
        return {"psnr": self._pooled() if self.protocol.pooling == "mse" else self.mean.estimate()}

    def _pooled(self) -> Estimate:
        error, size, count = sum(self.errors), sum(self.sizes), sum(self.images)
        if not error:
            return undefined(0)
        value = self._decibel(error, size)
        if count < SMALLEST:
            return Estimate(value, math.nan, math.nan, count)
        groups = [(error - e, size - s) for e, s in zip(self.errors, self.sizes, strict=True) if 0 < s < size]
        return Estimate(value, *jackknife(value, [self._decibel(*group) for group in groups]), count)


def _rgb_error(image: np.ndarray, original: np.ndarray) -> int:
    """Sum of squared differences of levels, (H, W, 3) uint8 twice."""
    difference = np.subtract(image, original, dtype=np.int16)
    return int(np.square(difference, dtype=np.int32).sum(dtype=np.int64))


def _luma_error(image: np.ndarray, original: np.ndarray) -> int:
    """Sum of squared differences of luma in thousandths of levels, (H, W, 3) uint8 twice."""
    difference = np.subtract(image, original, dtype=np.int32)  # (H, W, 3)
    luma = sum(weight * difference[..., i] for i, weight in enumerate(LUMA))  # (H, W)
    return int(np.square(luma, dtype=np.int64).sum())
