"""Density and coverage (Naeem et al. 2020)."""

from __future__ import annotations

from typing import ClassVar

import torch

from vqbench.eval.base import Estimate, Layer, SetMetric
from vqbench.eval.feature_set import FeatureSet
from vqbench.eval.intervals import normal, wilson
from vqbench.eval.precision_recall import ball_counts
from vqbench.eval.protocols import Neighbours


class DensityCoverage(SetMetric):
    """Density: reference balls around a generated image over k, mean over images; 1 where the sets agree, no upper bound.

    Coverage: share of reference balls that hold a generated image, in [0, 1].
    """

    unit = ""
    higher_is_better = True
    interval = "normal over the images (density), Wilson score over the reference (coverage), balls fixed"
    not_finite = "features that are not finite are refused"
    rows: ClassVar[frozenset[Layer]] = frozenset({"manifold"})
    moments: ClassVar[frozenset[Layer]] = frozenset()
    reference_rows: ClassVar[frozenset[Layer]] = frozenset({"manifold"})

    def __init__(self, protocol: Neighbours, device: torch.device | None = None) -> None:
        self.protocol, self.device = protocol, device

    def compute(self, generated: FeatureSet, reference: FeatureSet) -> dict[str, Estimate]:
        """``{"density": d, "coverage": c}``.

        Raises:
            SpecError: a set is too small to have a k-th neighbour.
        """
        counts, n, m = ball_counts(generated, reference, self.protocol, self.device)
        k = self.protocol.neighborhood
        density, spread = counts.inside / (k * n), float(counts.per_image.std(ddof=1)) / k
        return {
            "density": Estimate(density, *normal(density, spread, n), n),
            "coverage": Estimate(counts.covered / m, *wilson(counts.covered, m), n),
        }
