"""LPIPS: the lpips library's distance over the network that the protocol names, mean over images.

Letters: B images, H W pixels, n pairs of a forward, h w c a layer's map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from vqbench.errors import SpecError
from vqbench.eval.base import shape
from vqbench.eval.exact_mean import PairMean
from vqbench.pretrained import classifier_lpips, open_lpips

__all__ = ["Lpips", "classifier_lpips", "open_lpips"]

EPSILON = 1e-10  # lpips/__init__.py: normalize_tensor
PAIRS = {"cpu": 4, "cuda": 32}  # of one forward: bounds memory, VGG-16 needs about 0.1 GB a pair of 256x256


class Lpips(PairMean):
    """Learned perceptual image patch similarity (Zhang et al. 2018), 0 for identical images; the library's to 1e-6.

    One channels-last forward sees reconstructions and originals together; scaling to [-1, 1] and by ImageNet's
    statistics is one product and one sum. Everything in float32, as the library; no TF32 on a GPU.

    Args:
        network: an ``lpips.LPIPS`` of version 0.1, put in eval mode here: its linear layers drop out under ``train()``.
        rescaled: as :class:`vqbench.eval.protocols.Distance` has it.
        name: of the metric.
    """

    unit = ""
    higher_is_better = False
    name = "lpips"

    def __init__(
        self, network: nn.Module, device: str | torch.device = "cpu", rescaled: bool = False, name: str = "lpips"
    ) -> None:
        found = cast(Any, network.eval().to(torch.device(device)).to(memory_format=torch.channels_last))
        super().__init__({"network": type(found.net).__name__, "weighted": found.lpips, "rescaled": rescaled})
        self.name = name
        self.device, self.network = torch.device(device), found.net
        self.smallest = smallest_side(found.net)
        factor, offset = (2, 3) if rescaled else (1, 1)
        scaling = found.scaling_layer  # (level / 127.5 * factor - offset - shift) / scale = level * gain + bias
        self.gain, self.bias = (
            factor / (127.5 * scaling.scale),
            -(offset + scaling.shift) / scaling.scale,
        )  # (1, 3, 1, 1)
        lines = found.lins if found.lpips else ()  # none: the unweighted distance
        self.weights = [line.model[-1].weight.detach().flatten() for line in lines]  # (c,) a layer

    def too_small(self, size: Sequence[int]) -> str:
        """Every layer of the network must have an output."""
        return below_side(size, self.smallest)

    def values(self, images: np.ndarray, originals: np.ndarray) -> np.ndarray:
        """(B, H, W, 3) uint8, twice -> (B,) float64.

        Raises:
            SpecError: the images are too small for the network.
        """
        if why := self.too_small(images.shape[1:3]):
            raise SpecError(why)
        step = PAIRS.get(self.device.type, 4)
        parts = [self._distances(images[i : i + step], originals[i : i + step]) for i in range(0, len(images), step)]
        return torch.cat(parts).double().cpu().numpy()

    @torch.inference_mode()
    def _distances(self, images: np.ndarray, originals: np.ndarray) -> Tensor:
        both = torch.from_numpy(np.concatenate([images, originals])).to(self.device)
        pixels = both.permute(0, 3, 1, 2).float().mul_(self.gain).add_(self.bias)  # (2n, 3, H, W), channels last
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False, fp32_precision="ieee"):
            maps = self.network(pixels)
        found = torch.zeros(len(images), device=self.device)
        for i, features in enumerate(maps):
            found += _distance(features.permute(0, 2, 3, 1), self.weights[i] if self.weights else None)
        return found


def smallest_side(network: nn.Module) -> int:
    """Least side of an image of which every convolution and pooling has an output: 31 for AlexNet, 16 for VGG-16.

    The stand-in pools only what is larger than a pixel (not by modules): 1.
    """
    side = 1
    for layer in reversed(list(network.modules())):
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            kernel, stride, padding = (_one(x) for x in (layer.kernel_size, layer.stride, layer.padding))
            side = max(1, (side - 1) * stride + kernel - 2 * padding)
    return side


def _one(value: Any) -> int:
    """Of a square layer."""
    return int(value[0] if isinstance(value, tuple) else value)


def below_side(size: Sequence[int], smallest: int) -> str:
    """What is said of images (H, W) below the least side of LPIPS' network; "" of others."""
    if min(size) >= smallest:
        return ""
    return (
        f"LPIPS' network needs images of {smallest}x{smallest} or more, these are {shape(tuple(size))}; "
        "leave 'lpips' out or score larger images"
    )


def _distance(features: Tensor, weights: Tensor | None) -> Tensor:
    """A layer's share: (2n, h, w, c) -> (n,). The weighted squared difference of unit vectors, mean over places."""
    n = len(features) // 2
    norms = torch.linalg.vector_norm(features, dim=-1, keepdim=True).add_(EPSILON)
    difference = (features[:n] / norms[:n]).addcdiv_(features[n:], norms[n:], value=-1).square_()
    shares = difference.sum(-1) if weights is None else torch.mv(difference.flatten(0, 2), weights)  # n h w
    return shares.view(n, -1).mean(1)
