"""95% intervals, as every metric states them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import ndtri, stdtrit  # scipy.stats itself takes 50 MB

from vqbench.eval.base import Estimate

LEVEL = 0.95
GROUPS = 10  # of the delete-group jackknife
SMALLEST = 20  # images; below, a group is an image or two and no interval is given
NAN = float("nan")


def groups_of(indices: np.ndarray) -> np.ndarray:
    """(n,) indices of images -> (n,) int64 in [0, GROUPS), the jackknife's group of each.

    Every ten images in a row fall into the ten groups, in an order drawn by their indices: groups are even, do not hang
    on batches or shards, and do not go along with classes that take turns (by index modulo ten, of eight classes in turn
    a group would hold four).
    """
    indices = np.asarray(indices, dtype=np.int64)
    first = indices - indices % GROUPS
    keys = _scattered(first[:, None] + np.arange(GROUPS))  # (n, GROUPS)
    return np.asarray((keys < _scattered(indices)[:, None]).sum(1), dtype=np.int64)


def _scattered(values: np.ndarray) -> np.ndarray:
    """int64 -> uint64, one to one, neighbours far apart: splitmix64's finalizer (Steele et al. 2014)."""
    found = values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    found = (found ^ (found >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    found = (found ^ (found >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(found ^ (found >> np.uint64(31)))


def wilson(hits: int, count: int) -> tuple[float, float]:
    """Wilson score interval of a share in [0, 1]; NaN for no trial."""
    if count == 0:
        return NAN, NAN
    z2, share = float(ndtri(0.5 + LEVEL / 2)) ** 2 / count, hits / count
    half = math.sqrt(z2 * (share * (1 - share) + z2 / 4))
    return max(0.0, (share + z2 / 2 - half) / (1 + z2)), min(1.0, (share + z2 / 2 + half) / (1 + z2))


def normal(mean: float, deviation: float, count: int) -> tuple[float, float]:
    """Mean plus and minus 1.96 standard errors; `deviation` is that of one image. NaN for fewer than two."""
    if count < 2:
        return NAN, NAN
    half = float(ndtri(0.5 + LEVEL / 2)) * deviation / math.sqrt(count)
    return mean - half, mean + half


def student(values: Sequence[float]) -> tuple[float, float]:
    """Mean of independent values plus and minus Student's t times its standard error; NaN for fewer than two."""
    if len(values) < 2:
        return NAN, NAN
    half = quantile(len(values) - 1) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def jackknife(value: float, without: Sequence[float]) -> tuple[float, float]:
    """Delete-group jackknife: `without` holds the statistic with each of the groups left out, `value` that of all.

    The groups' own bias (FID falls with n) is the same for all and drops out. Quantile of Student's t.
    """
    groups = len(without)
    if groups < 2 or not np.isfinite(without).all():
        return NAN, NAN
    spread = math.sqrt((groups - 1) / groups * float(((np.array(without) - np.mean(without)) ** 2).sum()))
    half = quantile(groups - 1) * spread
    return value - half, value + half


def quantile(freedom: int) -> float:
    """Student's t that a 95% interval reaches, for so many degrees of freedom."""
    return float(stdtrit(freedom, 0.5 + LEVEL / 2))


def undefined(count: int) -> Estimate:
    """No value."""
    return Estimate(NAN, NAN, NAN, count)
