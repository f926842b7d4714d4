"""Feature sets from arrays, for the tests of set metrics."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from vqbench.eval.base import Batch, Features, Layer
from vqbench.eval.feature_set import FeatureSet

POOLED: frozenset[Layer] = frozenset({"pooled"})


def draw(seed: int, n: int, d: int, shift: float = 0.0, scale: float = 1.0) -> np.ndarray:
    """(n, d) float32, correlated normal."""
    mixing = np.random.default_rng(99).normal(size=(d, d)) / d**0.5
    return (scale * np.random.default_rng(seed).normal(size=(n, d)) @ mixing + shift).astype(np.float32)


def batch(indices: np.ndarray, rows: np.ndarray, logits: bool = False, manifold: np.ndarray | None = None) -> Batch:
    """Rows of those images as the judge's features; with `logits` as those instead."""
    tensor = torch.from_numpy(np.ascontiguousarray(rows))
    other = None if manifold is None else torch.from_numpy(manifold)
    return Batch(indices, features=Features(tensor, tensor if logits else None, manifold=other))


def pooled(rows: np.ndarray, parts: Iterable[np.ndarray] | None = None) -> FeatureSet:
    """A set that keeps its rows; `parts` are the indices of each batch, in the order in which they come."""
    found = FeatureSet(POOLED, {"pooled": None})
    for part in (np.arange(len(rows)),) if parts is None else parts:
        found.update(batch(part, rows[part]))
    return found


def moments(rows: np.ndarray, step: int = 64) -> FeatureSet:
    """A set that keeps mean and covariance alone."""
    found = FeatureSet(POOLED, {})
    for start in range(0, len(rows), step):
        found.update(batch(np.arange(start, min(start + step, len(rows))), rows[start : start + step]))
    return found


def logits_of(rows: np.ndarray, parts: Iterable[np.ndarray] | None = None) -> FeatureSet:
    """A set of logits."""
    found = FeatureSet(frozenset(), {"logits": None})
    for part in (np.arange(len(rows)),) if parts is None else parts:
        found.update(batch(part, rows[part], logits=True))
    return found
