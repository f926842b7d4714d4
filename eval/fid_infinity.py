"""FID-infinity: FID without its bias, extrapolated to infinitely many images (Chong and Forsyth 2020)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch

from vqbench.errors import SpecError
from vqbench.eval.base import Estimate, Layer, SetMetric
from vqbench.eval.feature_set import FeatureSet
from vqbench.eval.fid import subsets
from vqbench.eval.intervals import SMALLEST, quantile
from vqbench.eval.protocols import Extrapolation
from vqbench.seeds import numpy_rng


class FidInfinity(SetMetric):
    """FID of random subsets of the generated images, of evenly spaced sizes up to all; a line through them in 1/n, at 0.

    The reference is fixed and keeps its own bias. The value can fall below 0.
    Source: layer6ai-labs/dgm-eval:dgm_eval/metrics/fd.py (sizes, and a new draw without replacement for each).
    """

    unit = ""
    higher_is_better = False
    interval = "Student's t of the line's intercept: the scatter of the fit, not that of the images"
    not_finite = "features that are not finite are refused"
    rows: ClassVar[frozenset[Layer]] = frozenset({"pooled"})
    moments: ClassVar[frozenset[Layer]] = frozenset({"pooled"})

    def __init__(self, protocol: Extrapolation, device: torch.device | None = None) -> None:
        self.protocol, self.device = protocol, device

    def compute(self, generated: FeatureSet, reference: FeatureSet) -> dict[str, Estimate]:
        """``{"fid_infinity": value}``.

        Raises:
            SpecError: too few images for subsets of several sizes.
        """
        from scipy import stats  # 50 MB

        sizes, distances = self.curve(generated, reference)
        line = stats.linregress(1 / sizes, distances)
        half = quantile(len(sizes) - 2) * float(line.intercept_stderr)
        value = float(line.intercept)
        return {"fid_infinity": Estimate(value, value - half, value + half, int(sizes[-1]))}

    def curve(self, generated: FeatureSet, reference: FeatureSet) -> tuple[np.ndarray, np.ndarray]:
        """Sizes (points,) and the FID of a subset of each (points,)."""
        distances = subsets(generated, reference, "pooled", self.device)
        sizes = self._sizes(len(distances.rows))
        rng = numpy_rng(self.protocol.seed, "fid-infinity", len(distances.rows))
        return sizes, np.array([distances(_draw(rng, len(distances.rows), int(size))) for size in sizes])

    def _sizes(self, count: int) -> np.ndarray:
        if count < max(SMALLEST, self.protocol.points):
            raise SpecError(
                f"FID-infinity draws subsets of {self.protocol.points} sizes from {count} images; "
                f"give at least {max(SMALLEST, self.protocol.points)}"
            )
        smallest = min(self.protocol.smallest, max(count // 10, 2))
        return np.linspace(smallest, count, self.protocol.points).astype(np.int64)


def _draw(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
    """(count,) bool, `size` of them true."""
    kept = np.zeros(count, dtype=bool)
    kept[rng.choice(count, size, replace=False)] = True
    return kept
