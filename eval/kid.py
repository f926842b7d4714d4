"""KID: squared maximum mean discrepancy of the judge's features (Binkowski et al. 2018)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from vqbench.errors import SpecError
from vqbench.eval.base import Estimate, Layer, SetMetric
from vqbench.eval.feature_set import FeatureSet
from vqbench.eval.fid import default_device
from vqbench.eval.intervals import GROUPS, SMALLEST, groups_of, jackknife
from vqbench.eval.protocols import Kernel


class Kid(SetMetric):
    """Unbiased MMD^2 with the kernel (gamma x.y + coef0)^degree, mean over random subsets of both sets.

    Unbiased: it can fall below 0. Source: toshas/torch-fidelity:torch_fidelity/metric_kid.py (estimator and draws).
    Memory is a few subsets, whatever the number of images.
    """

    unit = ""
    higher_is_better = False
    interval = f"delete-group jackknife over the images, {GROUPS} groups, reference fixed; undefined below {SMALLEST}"
    not_finite = "features that are not finite are refused"
    rows: ClassVar[frozenset[Layer]] = frozenset({"pooled"})
    moments: ClassVar[frozenset[Layer]] = frozenset()
    reference_rows: ClassVar[frozenset[Layer]] = frozenset({"pooled"})

    def __init__(self, protocol: Kernel, device: torch.device | None = None) -> None:
        self.protocol, self.device = protocol, device

    def compute(self, generated: FeatureSet, reference: FeatureSet) -> dict[str, Estimate]:
        """``{"kid": value}``.

        Raises:
            SpecError: a set is smaller than a subset.
        """
        first, second = generated.matrix("pooled"), reference.matrix("pooled")
        size = self.protocol.subset_size
        if min(len(first), len(second)) < size:
            raise SpecError(
                f"KID draws subsets of {size} images, there are {len(first)} and {len(second)}; "
                "lower 'kid.subset_size' or give more images"
            )
        rng = np.random.RandomState(self.protocol.seed)
        values = np.zeros(GROUPS + 1)
        for _ in range(self.protocol.subsets):
            x, y = rng.choice(len(first), size, replace=False), rng.choice(len(second), size, replace=False)
            values += self._subset(first[x], second[y], groups_of(x))
        value, *without = (values / self.protocol.subsets).tolist()
        return {"kid": Estimate(value, *jackknife(value, without if size >= SMALLEST else ()), len(first))}

    def _subset(self, x: np.ndarray, y: np.ndarray, group: np.ndarray) -> np.ndarray:
        """MMD^2 of one subset, and of it without each group of the generated images; (1 + GROUPS,)."""
        a, b = self._double(x), self._double(y)  # (s, d)
        member = torch.eye(GROUPS, dtype=a.dtype, device=a.device)[torch.from_numpy(group)]  # (s, GROUPS)
        own = member.T @ _hollow(self._kernel(a, a)) @ member  # sums of pairs of groups
        cross = member.T @ self._kernel(a, b).sum(1)  # (GROUPS,)
        other, m = _hollow(self._kernel(b, b)).sum(), len(b)
        left = torch.cat([own.sum()[None], own.sum() - 2 * own.sum(1) + own.diagonal()])
        met = torch.cat([cross.sum()[None], cross.sum() - cross])
        n = len(a) - torch.cat([torch.zeros_like(cross[:1]), member.sum(0)])  # images left
        return np.asarray((left / (n * (n - 1)) + other / (m * (m - 1)) - 2 * met / (n * m)).cpu().numpy())

    def _kernel(self, a: Tensor, b: Tensor) -> Tensor:
        gamma = 1.0 / a.shape[1] if self.protocol.gamma is None else self.protocol.gamma
        base = (a @ b.T).mul_(gamma).add_(self.protocol.coef0)
        return base.pow_(self.protocol.degree)

    def _double(self, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(np.asarray(rows, dtype=np.float64)).to(self.device or default_device())


def _hollow(kernel: Tensor) -> Tensor:
    """Without the diagonal, in place: an image is not its own pair."""
    kernel.diagonal().zero_()
    return kernel
