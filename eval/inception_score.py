"""Inception Score: exp of the mutual information between an image and its label (Salimans et al. 2016)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import numpy as np
from scipy.special import entr, log_softmax

from vqbench.eval.archive import batches
from vqbench.eval.base import Estimate, Layer, SetMetric
from vqbench.eval.feature_set import FeatureSet
from vqbench.eval.intervals import GROUPS, NAN, SMALLEST, groups_of, jackknife, student
from vqbench.eval.protocols import Splits

ROWS = 4096  # of logits that are turned into probabilities together
ENOUGH = 3  # whole parts from which Student's t is taken over them


class InceptionScore(SetMetric):
    """exp of the mean KL divergence between p(y|x) and p(y), in [1, classes], mean over parts of the generated images.

    Shuffled by a fixed seed, or in the order of their indices: samples sorted by class then put few classes in a split.
    Source: toshas/torch-fidelity:torch_fidelity/metric_isc.py (where the splits are cut, and the shuffle).
    """

    unit = ""
    higher_is_better = True
    interval = (
        f"Student's t over the parts; where fewer than {ENOUGH} are whole, or the last is smaller, delete-group jackknife over "
        f"the images, {GROUPS} groups by index, parts kept; undefined below {SMALLEST} images; not below 1"
    )
    not_finite = "logits that are not finite are refused; a probability of 0 adds 0"
    rows: ClassVar[frozenset[Layer]] = frozenset({"logits"})
    moments: ClassVar[frozenset[Layer]] = frozenset()

    def __init__(self, protocol: Splits) -> None:
        self.protocol = protocol

    def compute(self, generated: FeatureSet, reference: FeatureSet | None = None) -> dict[str, Estimate]:
        """``{"is": score}``; no reference is read.

        Raises:
            SpecError: fewer images than splits.
        """
        logits = generated.matrix("logits")
        count = len(logits)
        cuts = self.protocol.cuts(count)
        order = np.arange(count)
        if self.protocol.shuffle:
            order = np.random.RandomState(self.protocol.seed).permutation(count)
        parts = [_sums(logits, order[a:b]) for a, b in itertools.pairwise(cuts)]
        scores = [_score(part.p.sum(0), part.p_log_p.sum(), part.images.sum()) for part in parts]
        low, high = student(scores) if self.protocol.whole(count) >= ENOUGH else _jackknife(scores, parts, count)
        return {"is": Estimate(float(np.mean(scores)), float(np.maximum(low, 1.0)), high, count)}  # NaN stays NaN


class _Sums(NamedTuple):
    """What one part's score is made of, by the jackknife's group: p (GROUPS, classes), p log p and images (GROUPS,)."""

    p: np.ndarray
    p_log_p: np.ndarray
    images: np.ndarray


def _sums(logits: np.ndarray, places: np.ndarray) -> _Sums:
    """Of one part: those rows of logits (n, classes). A tenth of a large set is some GB in float64, so in blocks."""
    found = _Sums(np.zeros((GROUPS, logits.shape[1])), np.zeros(GROUPS), np.zeros(GROUPS, np.int64))
    for block in batches(len(places), ROWS):
        rows = places[block]
        groups, log_p = groups_of(rows), log_softmax(logits[rows].astype(np.float64), axis=1)  # (r,), (r, classes)
        p = np.exp(log_p)
        found.p[:] += np.stack([p[groups == group].sum(0) for group in range(GROUPS)])
        found.p_log_p[:] += np.bincount(groups, np.einsum("ij,ij->i", p, log_p), GROUPS)
        found.images[:] += np.bincount(groups, minlength=GROUPS)
    return found


def _score(p: np.ndarray, p_log_p: float, count: int) -> float:
    """The score of `count` images from their sums, (classes,) and a number; 1 of no image.

    KL is the entropy of the mean less the mean entropy: no logarithm of a probability that underflowed in every image.
    """
    information = float(entr(p / count).sum()) + float(p_log_p) / count if count else 0.0
    return float(np.exp(max(0.0, information)))


def _jackknife(scores: Sequence[float], parts: Sequence[_Sums], count: int) -> tuple[float, float]:
    """Each group of images left out of the part that it lies in: the parts stay, ADM's small last one included."""
    if count < SMALLEST:
        return NAN, NAN
    without = [
        np.mean(
            [_score(s.p.sum(0) - s.p[g], s.p_log_p.sum() - s.p_log_p[g], s.images.sum() - s.images[g]) for s in parts]
        )
        for g in range(GROUPS)
    ]
    return jackknife(float(np.mean(scores)), [float(value) for value in without])
