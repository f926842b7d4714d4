"""Resizing images to what a judge sees, each way to the numbers of the library it is named after.

What a library does to floats is linear and separable, so it is two matrix products. Each matrix is the library's own
answer for unit vectors; only TensorFlow 1's is computed here.

Letters: B images, H W pixels, S side of the result.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vqbench.errors import SpecError
from vqbench.eval.protocols import Resampler

ROUNDED = {"pil-bicubic-uint8": Image.Resampling.BICUBIC, "pil-bilinear-uint8": Image.Resampling.BILINEAR}


def resize(images: np.ndarray, how: Resampler, size: int | None, device: torch.device) -> Tensor:
    """Images at the judge's size, in levels.

    Args:
        images: (B, H, W, 3) uint8.
        how: resampler; images that have the size already are left as they are, as every library does.
        size: S; None with ``none``, which keeps the images' own.

    Returns:
        (B, 3, S, S) float32 in [0, 255].

    Raises:
        SpecError: ``none``, and the images are not of the size the network takes.
    """
    height, width = images.shape[1:3]
    if how == "none" and size is not None and (height, width) != (size, size):
        raise SpecError(
            f"the judge takes images of {size}x{size} and its protocol does not resize, these are {height}x{width}; "
            "resize them or take a protocol with a 'resize'"
        )
    if size is None or (height, width) == (size, size):
        return levels(images, device)
    if how in ROUNDED:
        return levels(np.stack([_rounded(image, how, size) for image in images]), device)
    rows, columns = matrix(how, height, size, device), matrix(how, width, size, device)  # (S, H), (S, W)
    found = rows @ levels(images, device) @ columns.T  # (B, 3, S, S)
    return found.clamp_(0, 255) if how == "pil-bicubic" else found


def levels(images: np.ndarray, device: torch.device) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32, the same levels."""
    return torch.tensor(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2).float().contiguous()


def _rounded(image: np.ndarray, how: str, size: int) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((size, size), ROUNDED[how]))


@lru_cache(maxsize=16)
def matrix(how: Resampler, before: int, after: int, device: torch.device) -> Tensor:
    """What takes a column of `before` pixels to `after`: (after, before) float32."""
    unit = torch.eye(before)
    if how == "tf1-bilinear":
        found = _tensorflow(before, after)
    elif how == "pil-bicubic":
        picture = Image.fromarray(unit.numpy()).resize((before, after), Image.Resampling.BICUBIC)
        found = torch.tensor(np.asarray(picture))
    else:
        antialias = how == "torch-bilinear-antialias"
        found = F.interpolate(
            unit[None, None], (after, before), mode="bilinear", align_corners=False, antialias=antialias
        )[0, 0]
    return found.to(device)


def _tensorflow(before: int, after: int) -> Tensor:
    """tensorflow/tensorflow:tensorflow/core/kernels/image_resizer_state.h (1.x), without corner alignment.

    Pixel i of the result lies at i * before / after, in float32 as there: its rounding moves levels by up to 4e-3.
    """
    place = torch.arange(after, dtype=torch.float32) * torch.tensor(before / after, dtype=torch.float32)
    low = place.long()
    high = (low + 1).clamp_max(before - 1)
    share = place - low  # of the pixel at `high`
    found, row = torch.zeros(after, before), torch.arange(after)
    found[row, low] = 1 - share
    found[row, high] += share  # at the last pixel low == high, and the shares add to 1
    return found
