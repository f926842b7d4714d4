"""Inception Score by torch-fidelity, over the judge's logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

from vqbench.errors import SpecError
from vqbench.eval.base import Metric
from vqbench.eval.protocols import Splits

if TYPE_CHECKING:
    from vqbench.eval.features import Features

# exp(-600) is a normal float64 after the softmax's division; a lower logit could underflow to probability 0 in every
# image of a split, and torch-fidelity's 0 * log 0 would make the whole score NaN.
LOGIT_FLOOR = 600.0


class InceptionScore(Metric):
    """exp of the mean KL divergence between p(y|x) and p(y), mean over splits (Salimans et al. 2016).

    Splits are shuffled with a fixed seed: samples sorted by class would otherwise put few classes in a split.
    """

    unit = ""
    higher_is_better = True
    needs = "sets"

    def __init__(self, protocol: Splits) -> None:
        self.protocol = protocol
        self.logits: list[Tensor] = []

    @property
    def count(self) -> int:
        """Images added."""
        return sum(len(batch) for batch in self.logits)

    def update(self, *batch: Any) -> None:
        """Add :class:`vqbench.eval.features.Features` of one batch; its logits are kept, (B, classes)."""
        features: Features = batch[0]
        assert features.logits is not None, "the protocol names no logits layer"
        self.logits.append(features.logits.cpu())

    def compute(self) -> dict[str, float]:
        """``{"is": score}`` in [1, classes].

        Raises:
            SpecError: fewer images than splits.
        """
        if self.count < self.protocol.splits:
            raise SpecError(f"{self.count} images cannot be cut into {self.protocol.splits} splits; lower 'is.splits'")
        logits = torch.cat(self.logits).double()  # (n, classes)
        floored = torch.maximum(logits, logits.amax(1, keepdim=True) - LOGIT_FLOOR)
        found = isc_features_to_metric(floored, self.protocol.splits, self.protocol.shuffle, self.protocol.seed)
        return {"is": float(found[KEY_METRIC_ISC_MEAN])}
