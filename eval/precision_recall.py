"""Improved precision and recall by torch-fidelity, over the features of FID."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from vqbench.errors import SpecError
from vqbench.eval.base import Metric
from vqbench.eval.protocols import Neighbours

if TYPE_CHECKING:
    from vqbench.eval.features import Features


class PrecisionRecall(Metric):
    """Kynkaanniemi et al. 2019: shares of samples near reference images, and of reference images near samples, in [0, 1].

    Near: within the distance to the k-th neighbour of one of the other set's own points.

    Args:
        reference: features of the reference images, (R, d).
    """

    unit = ""
    higher_is_better = True
    needs = "sets"

    def __init__(self, reference: np.ndarray, protocol: Neighbours) -> None:
        self.reference, self.protocol = torch.from_numpy(np.ascontiguousarray(reference)), protocol
        self.features: list[Tensor] = []

    @property
    def count(self) -> int:
        """Images added."""
        return sum(len(batch) for batch in self.features)

    def update(self, *batch: Any) -> None:
        """Add :class:`vqbench.eval.features.Features` of one batch; the pooled ones are kept, (B, d)."""
        features: Features = batch[0]
        self.features.append(features.pooled)

    def compute(self) -> dict[str, float]:
        """``{"precision": p, "recall": r}``.

        Raises:
            SpecError: a set is too small to have a k-th neighbour.
        """
        k = self.protocol.neighborhood
        if min(self.count, len(self.reference)) <= k:
            raise SpecError(
                f"precision and recall need more than {k} images a set, there are {self.count} and "
                f"{len(self.reference)}; lower 'precision_recall.neighborhood' or raise the counts"
            )
        # Distances go through a matmul, |a|^2 + |b|^2 - 2ab, which cancels unless the features are centred first.
        centre = self.reference.double().mean(0)
        sets = (torch.cat(self.features), self.reference)
        samples, reference = ((x.double() - centre.to(x.device)).float().to(sets[0].device) for x in sets)  # (., d)
        # The `full` mode would hold n x n distances: 39 GB at 50,000 samples.
        found = prc_features_to_metric(
            samples, reference, prc_neighborhood=k, prc_batch_size=self.protocol.batch, save_cpu_ram=True, verbose=False
        )
        return {"precision": float(found[KEY_METRIC_PRECISION]), "recall": float(found[KEY_METRIC_RECALL])}
