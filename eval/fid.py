"""Frechet distance between feature sets: streamed statistics, torch-fidelity's distance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

from vqbench.errors import ArtifactError
from vqbench.eval.base import Metric

if TYPE_CHECKING:
    from vqbench.eval.features import Features


class Gaussian(NamedTuple):
    """What FID knows of a set of n images: mean (d,) and covariance (d, d, divided by n - 1), float64."""

    mu: np.ndarray
    sigma: np.ndarray
    n: int


class Moments:
    """Mean and covariance accumulated batch by batch in float64, without keeping the features.

    Batches are merged by Chan's update, which keeps its precision where sums of squares would cancel. Equals
    torch-fidelity's ``fid_features_to_statistics``, up to that function's float32 mean.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor | float = 0.0
        self.scatter: Tensor | float = 0.0

    def update(self, features: Tensor) -> None:
        """Add features (B, d).

        Raises:
            ArtifactError: a feature is NaN or infinite.
        """
        if not torch.isfinite(features).all():
            raise ArtifactError("the judge gave features that are not finite; its weights are damaged, make them again")
        batch, rows = features.double(), len(features)
        mean = batch.mean(0)  # (d,)
        centred = batch - mean  # (B, d)
        shift, total = mean - self.mean, self.count + rows
        self.scatter = self.scatter + centred.T @ centred + torch.outer(shift, shift) * (self.count * rows / total)
        self.mean = self.mean + shift * (rows / total)
        self.count = total

    def gaussian(self) -> Gaussian:
        """The statistics so far.

        Raises:
            ArtifactError: fewer than two images, which have no covariance.
        """
        if self.count < 2:
            raise ArtifactError(f"FID needs at least 2 images, there are {self.count}; raise the count")
        assert isinstance(self.mean, Tensor) and isinstance(self.scatter, Tensor)
        sigma = self.scatter / (self.count - 1)
        return Gaussian(self.mean.cpu().numpy(), sigma.cpu().numpy(), self.count)


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Squared Frechet distance of two Gaussians, by torch-fidelity; finite and never negative.

    With fewer images than dimensions the covariances are singular: the trace is then good to about 1e-8 of their
    norm per dimension, and equal sets may come out a little below zero, which is cut to zero.
    """
    first, second = ({"mu": g.mu, "sigma": g.sigma} for g in (a, b))
    value = float(fid_statistics_to_metric(first, second, verbose=False)[KEY_METRIC_FID])
    if not np.isfinite(value):
        raise ArtifactError("the Frechet distance is not finite; a statistics.npz is damaged, make it again")
    return max(0.0, value)


class Fid(Metric):
    """FID (Heusel et al. 2017) of the images added against a reference; ``rfid`` where those are reconstructions.

    Biased upwards by about 1/n: only numbers with equal n compare.
    """

    unit = ""
    higher_is_better = False
    needs = "sets"

    def __init__(self, reference: Gaussian, name: Literal["fid", "rfid"] = "fid") -> None:
        self.reference, self.name, self.moments = reference, name, Moments()

    @property
    def count(self) -> int:
        """Images added."""
        return self.moments.count

    def update(self, *batch: Any) -> None:
        """Add :class:`vqbench.eval.features.Features` of one batch."""
        features: Features = batch[0]
        self.moments.update(features.pooled)

    def compute(self) -> dict[str, float]:
        """``{name: distance}``."""
        return {self.name: frechet_distance(self.moments.gaussian(), self.reference)}
