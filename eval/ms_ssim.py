"""MS-SSIM: structural similarity over five scales (Wang, Simoncelli and Bovik 2003)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vqbench.errors import SpecError
from vqbench.eval.exact_mean import PairMean
from vqbench.eval.protocols import Window
from vqbench.eval.ssim import by_pairs, contrast_of_planes, planes, ssim_of_planes

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the scales from fine to coarse; section 3.2 of the paper


class MsSsim(PairMean):
    """The product over scales of contrast with structure, and of luminance at the coarsest, each to its weight; [0, 1].

    The protocol gives channels and data range. The window is the paper's, Gaussian with 11 taps, sigma 1.5 and population
    covariances, unless the protocol's own is Gaussian: a uniform one would give a number that no other code gives.
    Where code in use departs from the paper or from each other, here:

    - between scales 2x2 means; an odd last row or column is taken with itself. VainF/pytorch-msssim:pytorch_msssim/ssim.py
      pads with zeros, photosynthesis-team/piq:piq/ms_ssim.py repeats the first row and column, torchmetrics
      (Lightning-AI/torchmetrics:src/torchmetrics/functional/image/ssim.py) drops the last: one number for sides that are
      multiples of 16.
    - the product is taken for each channel, then averaged, as in VainF/pytorch-msssim:pytorch_msssim/ssim.py.
    - a negative mean of a scale counts as 0, as there: its power is not a real number.

    Args:
        device: as for :class:`vqbench.eval.ssim.Ssim`.
    """

    unit = ""
    higher_is_better = True
    name = "ms_ssim"

    def __init__(self, protocol: Window, device: str | torch.device = "cpu") -> None:
        super().__init__(protocol.model_dump())
        self.window, self.device = _window(protocol), torch.device(device)
        self.smallest = smallest_side(protocol)

    def too_small(self, size: Sequence[int]) -> str:
        """The coarsest scale must hold the window."""
        if min(size) > self.smallest:
            return ""
        text = " x ".join(map(str, size))
        return f"MS-SSIM needs images with sides above {self.smallest}, these are {text}; leave 'ms_ssim' out"

    def values(self, images: np.ndarray, originals: np.ndarray) -> np.ndarray:
        """(B, H, W, 3) uint8, twice -> (B,) float64.

        Raises:
            SpecError: the coarsest scale would be smaller than the window.
        """
        if why := self.too_small(images.shape[1:3]):
            raise SpecError(why)
        return by_pairs(self._values, images, originals, self.device)

    def _values(self, images: np.ndarray, originals: np.ndarray) -> Tensor:
        x, y = (planes(part, self.window, self.device) for part in (images, originals))  # (H, P, W)
        product = torch.ones(x.shape[1], dtype=torch.float64, device=x.device)
        for weight in WEIGHTS[:-1]:
            product *= contrast_of_planes(x, y, self.window).clamp(min=0) ** weight
            x, y = _halved(x), _halved(y)
        product *= ssim_of_planes(x, y, self.window).clamp(min=0) ** WEIGHTS[-1]
        return product.reshape(len(images), -1).mean(1)


def smallest_side(window: Window) -> int:
    """Both sides of an image must be larger, for the coarsest scale to hold the window: 160 for one of 11."""
    return (_window(window).size - 1) << len(WEIGHTS) - 1


def _window(protocol: Window) -> Window:
    """The paper's window, or the protocol's own where that is Gaussian; never on a smaller copy of the image."""
    if protocol.window == "gaussian":
        return protocol.model_copy(update={"downsample": False})
    return Window(window="gaussian", size=11, sigma=1.5, data_range=protocol.data_range,
                  channels=protocol.channels, covariance="population")  # fmt: skip


def _halved(images: Tensor) -> Tensor:
    """2x2 means of what there is, (H, P, W) -> (H / 2, P, W / 2) float64, both rounded up."""
    return F.avg_pool2d(images.double().transpose(0, 1), 2, ceil_mode=True).transpose(0, 1)
