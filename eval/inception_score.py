"""Inception Score: exp of the mutual information between an image and its label (Salimans et al. 2016)."""

from __future__ import annotations

import itertools
from typing import ClassVar

import numpy as np
from scipy.special import entr, log_softmax

from vqbench.eval.base import Estimate, Layer, SetMetric
from vqbench.eval.feature_set import FeatureSet
from vqbench.eval.intervals import student
from vqbench.eval.protocols import Splits


class InceptionScore(SetMetric):
    """exp of the mean KL divergence between p(y|x) and p(y), in [1, classes], mean over splits of the generated images.

    Shuffled by a fixed seed, or in the order of their indices: samples sorted by class then put few classes in a split.
    Source: toshas/torch-fidelity:torch_fidelity/metric_isc.py (where the splits are cut, and the shuffle).
    """

    unit = ""
    higher_is_better = True
    interval = "Student's t over the splits; undefined for one"
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
        scores = [_score(logits[order[a:b]]) for a, b in itertools.pairwise(cuts)]
        value = float(np.mean(scores))
        return {"is": Estimate(value, *student(scores), count)}


def _score(logits: np.ndarray) -> float:
    """The score of one split, (n, classes).

    KL is the entropy of the mean less the mean entropy: no logarithm of a probability that underflowed in every image.
    """
    log_p = log_softmax(logits.astype(np.float64), axis=1)  # (n, classes)
    p = np.exp(log_p)
    information = float(entr(p.mean(0)).sum()) + float(np.einsum("ij,ij->", p, log_p)) / len(p)
    return float(np.exp(max(0.0, information)))
