"""Classifier-free guidance of networks on latents (Ho and Salimans 2022), on all channels or on the first few.

Letters: B images, C channels, h w the latent map.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vqbench.errors import SpecError

Network = Callable[[Tensor, Tensor, Tensor], Tensor]  # (B, C, h, w), (B,), (B,) -> (B, outputs, h, w)


def guided(
    network: Network, condition: Tensor, null_class: int, sampler: dict[str, Any], channels: int
) -> Callable[[Tensor, Tensor], Tensor]:
    """The network under guidance: latents (B, C, h, w) and one time () -> (B, outputs, h, w).

    u + s (c - u) on the first `channels`; what comes behind them (a learned variance) is the conditional one's.

    Args:
        sampler: ``guidance`` s, 1 is off; ``guided_channels``, 0 for all: the released code of DiT, SiT and VQGAN-LC
            guides three of however many there are, as facebookresearch/DiT:models.py says of itself.
    """
    scale, some = sampler["guidance"], sampler["guided_channels"] or channels

    def call(latents: Tensor, time: Tensor) -> Tensor:
        times = time.expand(len(latents))
        if scale == 1:
            return network(latents, times, condition)
        both = torch.cat([condition, torch.full_like(condition, null_class)])
        given, free = network(latents.repeat(2, 1, 1, 1), times.repeat(2), both).chunk(2)
        return torch.cat([free[:, :some] + scale * (given - free)[:, :some], given[:, some:]], dim=1)

    return call


def check_guidance(sampler: dict[str, Any], channels: int) -> None:
    """Refuse guidance that is out of range.

    Raises:
        SpecError: names the option, its value and what is allowed.
    """
    if sampler["guidance"] < 1:
        raise SpecError(f"sampler: guidance is {sampler['guidance']}; it must be at least 1, which is off")
    if not 0 <= sampler["guided_channels"] <= channels:
        raise SpecError(
            f"sampler: guided_channels is {sampler['guided_channels']}; the latents have {channels}, 0 is all"
        )
