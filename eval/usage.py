"""Codebook usage: how much of the codebook a set of images uses."""

from __future__ import annotations

from typing import Any

import numpy as np

from vqbench.errors import ArtifactError
from vqbench.eval.base import Metric


class Usage(Metric):
    """Share of the K codes that occur at least once in all ids added, in %.

    It grows with the number of images: a usage belongs to the set it was counted on (here all validation images, or
    all samples). LlamaGen counts the last 65,536 training tokens of one process instead.
    """

    unit = "%"
    higher_is_better = True
    needs = "ids"

    def __init__(self, num_codes: int) -> None:
        self.used = np.zeros(num_codes, dtype=bool)
        self.count = 0

    def update(self, *batch: Any) -> None:
        """Add ids (B, N, Q) in [0, K).

        Raises:
            ArtifactError: an id outside [0, K): the ids belong to another codebook.
        """
        (ids,) = batch
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < len(self.used):
            raise ArtifactError(
                f"ids span {ids.min()}..{ids.max()}, outside a codebook of {len(self.used)}; tokenize again"
            )
        self.used[ids.reshape(-1)] = True
        self.count += len(ids)

    def compute(self) -> dict[str, float]:
        """``{"usage": %}``."""
        return {"usage": 100.0 * float(self.used.mean()) if self.count else float("nan")}
