"""PSNR and SSIM by scikit-image, LPIPS by lpips: one call an image pair.

Letters: n pairs, H W pixels, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from vqbench.data import to_float
from vqbench.errors import SpecError
from vqbench.eval.perceptual import below_side, smallest_side
from vqbench.eval.protocols import SignalNoise, Window

Pairs = Sequence[tuple[np.ndarray, np.ndarray]] | Iterator[tuple[np.ndarray, np.ndarray]]


def not_scikit_image(window: Window) -> str:
    """Why scikit-image has no such SSIM; empty where it has."""
    reach = 2 * int(3.5 * (window.sigma or 0) + 0.5) + 1  # it cuts its Gaussian there, whatever win_size says
    if window.window == "gaussian" and reach != window.size:
        return f"scikit-image's gaussian window of sigma {window.sigma} is {reach} wide, the protocol's {window.size}"
    return ""


def luma(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> ITU-R BT.601 luma (H, W) in 0..255; scikit-image's spans 16..235."""
    from skimage.color import rgb2ycbcr

    return np.asarray((rgb2ycbcr(image)[..., 0] - 16) * (255 / 219))


def psnr(pairs: Pairs, protocol: SignalNoise) -> tuple[float, int]:
    """Mean PSNR in dB over images that differ, or that of the pooled MSE of all, and their number; NaN and 0 if none does.

    Args:
        pairs: original and reconstruction, (H, W, 3) uint8.
    """
    from skimage.metrics import mean_squared_error, peak_signal_noise_ratio

    found: list[float] = []
    for pair in pairs:
        original, image = (luma(x) if protocol.space == "y" else x for x in pair)
        if protocol.pooling == "mse":
            found.append(float(mean_squared_error(original, image)))
        elif not np.array_equal(original, image):  # infinite otherwise
            found.append(float(peak_signal_noise_ratio(original, image, data_range=protocol.data_range)))
    mean = float(np.mean(found)) if found else math.nan
    if protocol.pooling == "mse":
        mean = 10 * math.log10(protocol.data_range**2 / mean) if mean > 0 else math.nan
    return mean, len(found) if mean == mean else 0


def ssim(pairs: Pairs, protocol: Window) -> tuple[float, int]:
    """Mean SSIM over images.

    Raises:
        SpecError: images smaller than the window.
    """
    from skimage.metrics import structural_similarity

    gaussian = protocol.window == "gaussian"
    options: dict[str, Any] = {
        "win_size": protocol.size, "data_range": protocol.data_range, "gaussian_weights": gaussian,
        "use_sample_covariance": protocol.covariance == "sample",
        "channel_axis": -1 if protocol.channels == "rgb" else None,
    } | ({"sigma": protocol.sigma} if gaussian else {})  # fmt: skip
    found = []
    for pair in pairs:
        original, image = (_seen(x, protocol) for x in pair)
        if min(original.shape[:2]) < protocol.size:
            raise SpecError(f"SSIM's window of {protocol.size} is larger than images of {original.shape[:2]}")
        found.append(float(structural_similarity(original, image, **options)))
    return float(np.mean(found)) if found else math.nan, len(found)


def _seen(image: np.ndarray, protocol: Window) -> np.ndarray:
    """The channels that are compared, (H, W, 3) or (H, W), averaged to a short side near 256 where the protocol says so."""
    from skimage.color import rgb2gray
    from skimage.measure import block_reduce

    seen = image
    if protocol.channels != "rgb":
        seen = luma(image) if protocol.channels == "y" else 255 * rgb2gray(image)
    factor = max(1, round(min(image.shape[:2]) / 256)) if protocol.downsample else 1
    if factor == 1:
        return seen
    height, width = (
        side // factor * factor for side in image.shape[:2]
    )  # what is over is dropped, as torch's pool does
    return np.asarray(block_reduce(seen[:height, :width], (factor, factor, 1)[: seen.ndim], np.mean))


@torch.no_grad()
def lpips(
    images: np.ndarray, originals: np.ndarray, network: nn.Module, batch: int, rescaled: bool = False
) -> tuple[float, int]:
    """Mean LPIPS over images (n, H, W, 3) uint8; the network sees them in [-1, 1], in eval mode (it has dropout).

    Args:
        rescaled: they are given as if they were in [0, 1], by lpips' own ``normalize``.

    Raises:
        SpecError: the images are too small for the network.
    """
    if why := below_side(images.shape[1:3], smallest_side(network.get_submodule("net"))):
        raise SpecError(why)
    where = next(network.eval().parameters()).device
    total = 0.0
    for start in range(0, len(images), batch):
        pair = (to_float(np.array(x[start : start + batch])).to(where) for x in (originals, images))
        total += float(network(*pair, normalize=rescaled).double().sum())  # (B, 1, 1, 1)
    return total / len(images), len(images)
