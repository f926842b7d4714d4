"""Operations of a pass, counted on the layers as they run: a parameter works as often as its layer has positions."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from vqbench.generators.networks.guided import Network


def flops_of(network: Network, channels: int, side: int, device: torch.device) -> float:
    """Of one image's latents (1, C, h, w), a time and a class, two for each multiplication; on the meta device too."""
    with FlopCounterMode(display=False) as counter:
        network(torch.empty(1, channels, side, side, device=device), torch.zeros(1, device=device),
                torch.zeros(1, dtype=torch.int64, device=device))  # fmt: skip
    return float(counter.get_total_flops())
