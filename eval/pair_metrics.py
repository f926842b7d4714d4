"""The metrics of image pairs that a protocol defines, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

from vqbench.errors import SpecError, nearest
from vqbench.eval.base import Metric
from vqbench.eval.ms_ssim import MsSsim
from vqbench.eval.perceptual import Lpips
from vqbench.eval.protocols import ALEX, PAIRED, Distance, Protocol
from vqbench.eval.psnr import Psnr
from vqbench.eval.ssim import Ssim

__all__ = ["PAIRED", "pair_metrics"]


def pair_metrics(
    names: Iterable[str], protocol: Protocol, lpips: Callable[[Distance], nn.Module], device: torch.device
) -> list[Metric]:
    """Those metrics, in the order of `names`.

    Args:
        lpips: opens a network of LPIPS; called only where it is asked for.
        device: where SSIM, MS-SSIM and LPIPS are computed.

    Raises:
        SpecError: unknown name.
    """
    build: dict[str, Callable[[], Metric]] = {
        "psnr": lambda: Psnr(protocol.psnr),
        "ssim": lambda: Ssim(protocol.ssim, device),
        "ms_ssim": lambda: MsSsim(protocol.ssim, device),
        "lpips": lambda: Lpips(lpips(protocol.lpips), device, protocol.lpips.rescaled),
        "lpips_alex": lambda: Lpips(lpips(ALEX), device, name="lpips_alex"),
    }
    for name in (names := list(names)):
        if name not in build:
            raise SpecError(f"unknown metric of pairs '{name}'; {nearest(name, build)}")
    return [build[name]() for name in names]
