"""LPIPS: the lpips library's distance over the network that the protocol names, mean over images."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vqbench.data import to_float
from vqbench.eval.base import Metric


class Lpips(Metric):
    """Learned perceptual image patch similarity (Zhang et al. 2018), 0 for identical images.

    Args:
        network: an ``lpips.LPIPS``, put in eval mode here: its linear layers drop out under ``train()``.
    """

    unit = ""
    higher_is_better = False
    needs = "pairs"

    def __init__(self, network: nn.Module, device: str | torch.device = "cpu") -> None:
        self.network, self.device = network.eval(), device
        self.total, self.count = 0.0, 0

    @torch.no_grad()
    def update(self, *batch: Any) -> None:
        """Add originals and reconstructions, both uint8 (B, H, W, 3); the network sees them in [-1, 1]."""
        originals, reconstructions = (to_float(images).to(self.device) for images in batch)  # (B, 3, H, W)
        distances = self.network(originals, reconstructions)  # (B, 1, 1, 1)
        self.total += float(distances.double().sum())
        self.count += len(originals)

    def compute(self) -> dict[str, float]:
        """``{"lpips": mean}``; NaN before the first pair."""
        return {"lpips": self.total / self.count if self.count else float("nan")}
