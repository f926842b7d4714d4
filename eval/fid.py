"""FID: squared Frechet distance between the judge's features of two sets (Heusel et al. 2017)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch

from vqbench.errors import ArtifactError
from vqbench.eval.base import Estimate, Layer, SetMetric
from vqbench.eval.feature_set import FeatureSet
from vqbench.eval.frechet import Frechet, Subsets
from vqbench.eval.intervals import GROUPS, SMALLEST, groups_of, jackknife


class Fid(SetMetric):
    """FID of the images added against a reference; ``rfid`` where those are reconstructions.

    Biased upwards by about 1/n: only numbers with equal n compare.

    Args:
        device: where the linear algebra runs; by default the GPU where there is one.
    """

    unit = ""
    higher_is_better = False
    interval = f"delete-group jackknife over the images, {GROUPS} groups, reference fixed; undefined below {SMALLEST}"
    not_finite = "features that are not finite are refused"
    rows: ClassVar[frozenset[Layer]] = frozenset({"pooled"})
    moments: ClassVar[frozenset[Layer]] = frozenset({"pooled"})
    layer: ClassVar[Layer] = "pooled"

    def __init__(self, name: str = "fid", device: torch.device | None = None) -> None:
        self.name, self.device = name, device

    def compute(self, generated: FeatureSet, reference: FeatureSet) -> dict[str, Estimate]:
        """``{name: distance}``.

        Raises:
            ArtifactError: fewer than two images in a set, or features of different lengths.
        """
        distances = subsets(generated, reference, self.layer, self.device)
        place = groups_of(np.arange(len(distances.rows)))
        value = distances(place >= 0)
        groups = range(GROUPS) if len(place) >= SMALLEST else ()
        without = [distances(place != group) for group in groups]
        low, high = jackknife(value, without)
        return {self.name: Estimate(value, float(np.maximum(low, 0.0)), high, len(place))}  # NaN stays NaN


def subsets(generated: FeatureSet, reference: FeatureSet, layer: Layer, device: torch.device | None) -> Subsets:
    """Distances of subsets of the generated images; what they share is computed once for all metrics of the two sets.

    Raises:
        ArtifactError: fewer than two images in a set, or features of different lengths.
    """

    def make() -> Subsets:
        known, whole = reference.gaussian(layer), generated.gaussian(layer)
        if known.mu.shape != whole.mu.shape:
            raise ArtifactError(f"features of {len(whole.mu)} and {len(known.mu)} dimensions: these are of two judges")
        return Subsets(Frechet(known, device or default_device()), whole, generated.matrix(layer))

    found: Subsets = generated.once(("frechet", reference, reference.count, layer), make)
    return found


def default_device() -> torch.device:
    """Where the linear algebra of set metrics runs unless they are told: the GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
