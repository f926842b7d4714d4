"""SSIM: the structural similarity of image pairs under a protocol's window, to 1e-10 of scikit-image's and faster.

A window's weighted sums are taken along one axis, then the other, by adding shifted arrays, in strips that stay in
cache. With s = x + y and d = x - y, SSIM needs four of them (s, d, s^2, d^2) in place of five, and identical images have
d = 0: their SSIM is exactly 1.

Letters: B images, H W pixels, C channels (3, or 1 for gray and luma), P = B C planes, k the window's side,
T rows of a strip of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache
from threading import Barrier
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vqbench.errors import SpecError
from vqbench.eval.exact_mean import PairMean
from vqbench.eval.protocols import Window

K1, K2 = 0.01, 0.03  # Wang et al. 2004, section III.B
STRIP = 96  # rows of the result at once: taller strips leave the cache, in lower ones threads wait for the interpreter
# Weights of R, G, B: skimage.color.rgb2gray (ITU-R BT.709), and ITU-R BT.601 luma at full range.
WEIGHTS = {"gray": (0.2125, 0.7154, 0.0721), "y": (0.299, 0.587, 0.114)}


class Ssim(PairMean):
    """Structural similarity in [-1, 1] (Wang et al. 2004), mean over window positions, channels and images.

    Positions are those whose window lies within the image, as in scikit-image (skimage/metrics/_structural_similarity.py:
    it crops) and piq (photosynthesis-team/piq:piq/ssim.py: a valid convolution); the two agree. The window decides the
    number (.854 uniform 7x7, .804 Gaussian on the same pairs), so the protocol states it.

    Args:
        device: where the sums are taken; images go there batch by batch, on a CPU one by one.
    """

    unit = ""
    higher_is_better = True
    name = "ssim"

    def __init__(self, protocol: Window, device: str | torch.device = "cpu") -> None:
        super().__init__(protocol.model_dump())
        self.protocol, self.device = protocol, torch.device(device)

    def too_small(self, size: Sequence[int]) -> str:
        """Images must hold the window."""
        return window_too_large(size, self.protocol)

    def values(self, images: np.ndarray, originals: np.ndarray) -> np.ndarray:
        """(B, H, W, 3) uint8, twice -> (B,) float64.

        Raises:
            SpecError: the images are smaller than the window.
        """
        return by_pairs(self._values, images, originals, self.device)

    def _values(self, images: np.ndarray, originals: np.ndarray) -> Tensor:
        x, y = (planes(part, self.protocol, self.device) for part in (images, originals))  # (H, P, W)
        return ssim_of_planes(x, y, self.protocol).view(len(images), -1).mean(1)


def by_pairs(
    values: Callable[[np.ndarray, np.ndarray], Tensor], images: np.ndarray, originals: np.ndarray, device: torch.device
) -> np.ndarray:
    """`values` of all pairs, (B,) float64.

    On a CPU each pair has a thread of its own: what it needs stays in that core's cache, threads wait for each other once
    a batch, and no value depends on B or on how many threads there are.
    """
    if device.type != "cpu":
        return values(images, originals).cpu().numpy()
    alone = [(images[i : i + 1], originals[i : i + 1]) for i in range(len(images))]
    threads = torch.get_num_threads()
    run = _workers(threads).map if threads > 1 and len(alone) > 1 else map
    return torch.cat(list(run(values, *zip(*alone, strict=True)))).numpy()


@lru_cache
def _workers(count: int) -> ThreadPoolExecutor:
    """Threads in each of which torch computes by itself; all are started here."""
    started = Barrier(count)

    def begin() -> None:
        torch.set_num_threads(1)  # of the thread that calls it, and of those that are still to come
        torch.get_num_threads()  # a thread takes the number over once, when it first asks: while it is 1
        started.wait()

    pool = ThreadPoolExecutor(count, initializer=begin)
    wait([pool.submit(int) for _ in range(count)])
    torch.set_num_threads(count)
    return pool


def planes(images: np.ndarray, window: Window, device: torch.device) -> Tensor:
    """(B, H, W, 3) uint8 -> (H, P, W): the channels that are compared, uint8 as they are or else float64.

    Raises:
        SpecError: the images are smaller than the window.
    """
    found = torch.from_numpy(np.array(images)).to(device)  # a copy: torch warns of memory that it may not write
    if window.channels != "rgb":
        found = (found.double() @ found.new_tensor(WEIGHTS[window.channels], dtype=torch.float64)).unsqueeze(-1)
    found = found.permute(0, 3, 1, 2)  # (B, C, H, W)
    if window.downsample and (side := round(min(found.shape[2:]) / 256)) > 1:
        found = F.avg_pool2d(found.double(), side)
    if why := window_too_large(found.shape[2:], window):
        raise SpecError(why)
    return found.permute(2, 0, 1, 3).flatten(1, 2)


def window_too_large(size: Sequence[int], window: Window) -> str:
    """What is said of images (H, W) that are smaller than the window; "" of others."""
    if min(size) >= window.size:
        return ""
    return f"SSIM's window of {window.size} is larger than images of {' x '.join(map(str, size))}; mend 'ssim.size'"


def ssim_of_planes(x: Tensor, y: Tensor, window: Window) -> Tensor:
    """(H, P, W), twice -> (P,) float64, the mean over positions."""
    strips = [
        t.light_top.mul_(t.form_top).div_(t.light_bottom.mul_(t.form_bottom)).sum((0, 2)) for t in terms(x, y, window)
    ]
    return torch.stack(strips).sum(0) / _positions(x, window)


def contrast_of_planes(x: Tensor, y: Tensor, window: Window) -> Tensor:
    """SSIM without its factor of luminance, (H, P, W), twice -> (P,) float64."""
    strips = [t.form_top.div_(t.form_bottom).sum((0, 2)) for t in terms(x, y, window)]
    return torch.stack(strips).sum(0) / _positions(x, window)


def _positions(x: Tensor, window: Window) -> int:
    return (x.shape[0] - window.size + 1) * (x.shape[2] - window.size + 1)


class Terms(NamedTuple):
    """SSIM's two fractions at some positions, luminance and contrast with structure; all (T, P, W - k + 1) float64."""

    light_top: Tensor
    light_bottom: Tensor
    form_top: Tensor
    form_bottom: Tensor


def terms(x: Tensor, y: Tensor, window: Window) -> Iterator[Terms]:
    """SSIM's fractions, strip by strip; x and y are (H, P, W).

    With weights that sum to n, S and D the sums of s and d, and V = n sum(s^2) - S^2, E = n sum(d^2) - D^2:
    2 ux uy = (S^2 - D^2) / 2n^2, ux^2 + uy^2 = (S^2 + D^2) / 2n^2, and so on with V and E for the covariances.
    """
    kernel = weights(window)  # (k,)
    total = float(kernel.sum()) ** 2  # n: the sum of the weights in two dimensions
    unbiased = window.size**2 / (window.size**2 - 1) if window.covariance == "sample" else 1.0
    c1 = 2 * total**2 * (K1 * window.data_range) ** 2
    c2 = 2 * total**2 * (K2 * window.data_range) ** 2 / unbiased
    for sums in windowed(x, y, kernel, _dtype(x, window)):  # (4, T, P, W - k + 1)
        squares = sums[:2].square_()  # S^2, D^2
        spread = sums[2:].mul_(total).sub_(squares)  # V, E
        squares[0] += c1
        spread[0] += c2
        yield Terms(*_difference_and_sum(*squares), *_difference_and_sum(*spread))


def _difference_and_sum(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The sum takes the place of the first."""
    return first - second, first.add_(second)


def _dtype(x: Tensor, window: Window) -> torch.dtype:
    """float32 where it holds every sum exactly: of whole numbers, below 2^24."""
    whole = window.window == "uniform" and x.dtype == torch.uint8 and window.size**2 * 510**2 < 1 << 24
    return torch.float32 if whole else torch.float64


def windowed(x: Tensor, y: Tensor, kernel: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
    """Window sums of s, d, s^2 and d^2, strip by strip: (4, T, P, W - k + 1) float64."""
    rows, rim = x.shape[0], len(kernel) - 1
    strip = STRIP if x.device.type == "cpu" else rows
    for top in range(0, rows - rim, strip):
        part = slice(top, min(top + strip, rows - rim) + rim)
        values = _four(x[part], y[part], dtype)  # (4, T + k - 1, P, W)
        yield _sums(_sums(values, kernel, 1), kernel, 3).double()


def _four(x: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
    found = torch.empty(4, *x.shape, dtype=dtype, device=x.device)
    found[0], found[2] = x, y
    torch.sub(found[0], found[2], out=found[1])
    found[0] += found[2]
    torch.square(found[:2], out=found[2:])
    return found


def _sums(values: Tensor, kernel: Tensor, axis: int) -> Tensor:
    """Weighted sums of k neighbours along an axis, which becomes k - 1 shorter."""
    if bool((kernel == 1).all()):
        return _sums_of_equals(values, len(kernel), axis)
    *outer, middle = kernel[: len(kernel) // 2 + 1].tolist()  # symmetric: two neighbours share a weight
    count, last = values.shape[axis] - len(kernel) + 1, len(kernel) - 1
    found: Tensor = values.narrow(axis, len(outer), count) * middle
    both = torch.empty_like(found)
    for place, weight in enumerate(outer):
        torch.add(values.narrow(axis, place, count), values.narrow(axis, last - place, count), out=both)
        found.add_(both, alpha=weight)
    return found


def _sums_of_equals(values: Tensor, size: int, axis: int) -> Tensor:
    """Sums of `size` (odd) neighbours, from those of 2, 4 ...: the powers of two that it is made of, end to end."""
    count = values.shape[axis] - size + 1
    found, place, power = values.narrow(axis, 0, count), 1, 1
    while place < size:
        rest = values.shape[axis] - power
        values = values.narrow(axis, 0, rest) + values.narrow(axis, power, rest)
        power *= 2
        if size & power:
            found = found + values.narrow(axis, place, count)
            place += power
    return found


@lru_cache
def weights(window: Window) -> Tensor:
    """(k,) float64: ones, or the Gaussian's, which sum to 1.

    scikit-image's own Gaussian reaches 3.5 sigma whatever `size` is (5 for 1.5, hence the usual 11).
    """
    if window.window == "uniform":
        return torch.ones(window.size, dtype=torch.float64)
    assert window.sigma is not None
    places = torch.arange(window.size, dtype=torch.float64) - window.size // 2
    found = torch.exp(-0.5 * (places / window.sigma) ** 2)
    return found / found.sum()
