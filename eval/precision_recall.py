"""Improved precision and recall (Kynkaanniemi et al. 2019)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch

from vqbench.errors import ArtifactError, SpecError
from vqbench.eval import neighbours
from vqbench.eval.base import Estimate, Layer, SetMetric
from vqbench.eval.feature_set import FeatureSet, draw
from vqbench.eval.fid import default_device
from vqbench.eval.intervals import wilson
from vqbench.eval.neighbours import Counts
from vqbench.eval.protocols import Neighbours


class PrecisionRecall(SetMetric):
    """Shares of generated images near reference images, and of reference images near generated ones, in [0, 1].

    Near: within the distance to the k-th neighbour of one of the other set's own points.
    """

    unit = ""
    higher_is_better = True
    interval = "Wilson score over the images, balls fixed"
    not_finite = "features that are not finite are refused"
    rows: ClassVar[frozenset[Layer]] = frozenset({"manifold"})
    moments: ClassVar[frozenset[Layer]] = frozenset()
    reference_rows: ClassVar[frozenset[Layer]] = frozenset({"manifold"})

    def __init__(self, protocol: Neighbours, device: torch.device | None = None) -> None:
        self.protocol, self.device = protocol, device

    def compute(self, generated: FeatureSet, reference: FeatureSet) -> dict[str, Estimate]:
        """``{"precision": p, "recall": r}``.

        Raises:
            SpecError: a set is too small to have a k-th neighbour.
        """
        counts, n, m = ball_counts(generated, reference, self.protocol, self.device)
        return {
            "precision": Estimate(counts.precise / n, *wilson(counts.precise, n), n),
            "recall": Estimate(counts.recalled / m, *wilson(counts.recalled, m), n),
        }


def ball_counts(
    generated: FeatureSet, reference: FeatureSet, protocol: Neighbours, device: torch.device | None
) -> tuple[Counts, int, int]:
    """Memberships, n and m; computed once for all metrics that ask for the same sets.

    Raises:
        SpecError: a set is too small to have a k-th neighbour.
        ArtifactError: features of different lengths.
    """
    k, closed = protocol.neighborhood, protocol.comparison == "<="
    mine, theirs = generated.matrix("manifold"), reference.matrix("manifold")
    if protocol.equal_counts:
        mine, theirs = _as_many(mine, len(theirs), protocol.seed), _as_many(theirs, len(mine), protocol.seed)
    if min(len(mine), len(theirs)) <= k:
        raise SpecError(
            f"precision and recall need more than {k} images a set, there are {len(mine)} and {len(theirs)}; "
            "lower 'precision_recall.neighborhood' or give more images"
        )
    if mine.shape[1] != theirs.shape[1]:
        raise ArtifactError(f"features of {mine.shape[1]} and {theirs.shape[1]} dimensions: these are of two judges")
    key = ("balls", reference, reference.count, k, closed, len(mine), len(theirs))
    found: Counts = generated.once(
        key, lambda: neighbours.ball_counts(mine, theirs, k, closed, device or default_device())
    )
    return found, len(mine), len(theirs)


def _as_many(rows: np.ndarray, count: int, seed: int) -> np.ndarray:
    """At most `count` of the features (n, d), in their order."""
    return rows if len(rows) <= count else rows[draw(len(rows), count, seed, "equal-counts")]
