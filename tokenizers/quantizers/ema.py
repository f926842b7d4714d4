"""A codebook that follows the encoder by moving averages instead of gradients (van den Oord et al. 2017, App. A.1).

Letters: K codes of length d, M vectors of a batch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqbench import distributed
from vqbench.specs import TokenSpec
from vqbench.tokenizers.quantizers.codebook import VectorQuantizer


class EmaQuantizer(VectorQuantizer):
    """Codes are the averages of the vectors that they stood for, as in zh460045050/VQGAN-LC:vqgan-gpt-lc/models/models_vq.py.

    There the averages start at no vector and the first codes, so a code that is never chosen starts 1 / `epsilon` times
    too long and shrinks through the encoder's outputs to nothing: many are caught on the way. Unlike there, nothing moves
    in eval mode, and a step's statistics are those of all its micro-batches in all processes.

    Losses: ``commitment`` alone (VQGAN-LC Eq. 3).

    Args:
        tokens, options: see :class:`VectorQuantizer`.
        decay: of the averages, in [0, 1).
        epsilon: of the Laplace smoothing of counts.
    """

    def __init__(self, tokens: TokenSpec, *, decay: float = 0.99, epsilon: float = 1e-5, **options: Any) -> None:
        super().__init__(tokens, **options)
        self.decay, self.epsilon = decay, epsilon
        first = self.weight.detach()
        del self.weight
        self.weight = nn.Buffer(first)
        self.counts = nn.Buffer(torch.zeros(len(first)))  # (K,)
        self.sums = nn.Buffer(first.clone())  # (K, d)
        self._seen: tuple[Tensor, Tensor] | None = None  # counts and sums of this step, float64: no order shows

    def quantize_vectors(self, z: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """As :meth:`VectorQuantizer.quantize_vectors`; a training pass is counted for :meth:`end_step`."""
        codes, ids, losses = super().quantize_vectors(z)
        if self.training and torch.is_grad_enabled():  # not the pass before the first step
            self._count(ids, (F.normalize(z, dim=1) if self.l2_normalize else z).detach())
        del losses["codebook"]
        return codes, ids, losses

    def _count(self, ids: Tensor, z: Tensor) -> None:
        if self._seen is None:
            counts, sums = (torch.zeros_like(average, dtype=torch.float64) for average in (self.counts, self.sums))
            self._seen = counts, sums
        self._seen[0].add_(torch.bincount(ids, minlength=len(self.counts)))
        self._seen[1].index_add_(0, ids, z.double())

    @torch.no_grad()
    def end_step(self) -> None:
        """Move the averages by what all processes saw in this step, and the codes to them."""
        if self._seen is None:
            return
        distributed.add_up(self._seen)
        for average, seen in zip((self.counts, self.sums), self._seen, strict=True):
            average.lerp_(seen.to(average), 1 - self.decay)
        total = self.counts.sum()
        smoothed = (self.counts + self.epsilon) / (total + len(self.counts) * self.epsilon) * total  # (K,)
        self.weight.copy_(self.sums / smoothed[:, None])
        self._seen = None

    def _start_from(self, z: Tensor) -> None:
        super()._start_from(z)
        self.sums.copy_(self.weight)
