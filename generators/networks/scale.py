"""The scale in which a generator of latents works: noise has deviation 1, and so should what it is added to."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vqbench.errors import SpecError, nearest

RULES = ("std", "none")


class Scale(nn.Module):
    """Divides latents by their deviation.

    Args:
        rule: ``std``, that of the first micro-batch (CompVis/latent-diffusion:ldm/models/diffusion/ddpm.py,
            scale_by_std); ``none``, 1, as in zh460045050/VQGAN-LC.

    Raises:
        SpecError: unknown `rule`.
    """

    def __init__(self, rule: str) -> None:
        super().__init__()
        if rule not in RULES:
            raise SpecError(f"generator: scale is '{rule}'; {nearest(rule, RULES)}")
        self.measured = rule == "std"
        self.deviation = nn.Buffer(torch.ones(()))

    def measure(self, latents: Tensor) -> None:
        """Take the deviation of these latents."""
        if self.measured:
            self.deviation.copy_(latents.std())

    def forward(self, latents: Tensor) -> Tensor:
        """Latents in the network's scale."""
        return latents / self.deviation

    def undo(self, latents: Tensor) -> Tensor:
        """Latents in the encoder's scale."""
        return latents * self.deviation
