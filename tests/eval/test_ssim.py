"""SSIM and MS-SSIM against scikit-image on whole arrays, and against formulas written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage.color import rgb2gray

from vqbench.errors import SpecError
from vqbench.eval.ms_ssim import MsSsim, smallest_side
from vqbench.eval.protocols import Window, load_protocol
from vqbench.eval.ssim import Ssim, _dtype, _workers, weights, windowed

from .pair_sets import GAUSSIAN, UNIFORM, batch, pairs, scikit_ssim, tensors, value


@pytest.mark.parametrize("size", [(11, 11), (20, 37), (60, 150), (140, 17)])  # below, at and above blocks and strips
@pytest.mark.parametrize("window", [UNIFORM, GAUSSIAN], ids=["uniform", "gaussian"])
def test_ssim_is_scikit_images(window: Window, size: tuple[int, int]) -> None:
    a, b = pairs(3, *size)
    assert value(Ssim(window), a, b) == pytest.approx(scikit_ssim(a, b, window is GAUSSIAN), abs=1e-12)


@pytest.mark.parametrize(
    ("change", "options"),
    [
        ({"data_range": 510.0}, {"data_range": 510}),
        ({"covariance": "population"}, {"use_sample_covariance": False}),
        ({"size": 3}, {"win_size": 3}),
        ({"size": 13}, {"win_size": 13}),  # its sums are too large for float32
    ],
)
def test_ssim_under_other_settings(change: dict[str, object], options: dict[str, object]) -> None:
    a, b = pairs(3, 30, 40)
    expected = scikit_ssim(a, b, False, **options)
    assert value(Ssim(UNIFORM.model_copy(update=change)), a, b) == pytest.approx(expected, abs=1e-12)
    assert abs(expected - scikit_ssim(a, b, False)) > 1e-6


@pytest.mark.parametrize("channels", ["gray", "y"])
@pytest.mark.parametrize("window", [UNIFORM, GAUSSIAN], ids=["uniform", "gaussian"])
def test_ssim_of_one_channel(window: Window, channels: str) -> None:
    a, b = pairs(3)
    one = {"gray": lambda x: rgb2gray(x) * 255, "y": lambda x: x.astype(float) @ [0.299, 0.587, 0.114]}[channels]
    expected = scikit_ssim(one(a), one(b), window is GAUSSIAN, channel_axis=None)
    found = value(Ssim(window.model_copy(update={"channels": channels})), a, b)
    assert found == pytest.approx(expected, abs=1e-10)


def test_ssim_uniform_by_hand() -> None:
    a, b = pairs(1, 12, 15)
    channels = [ssim_channel(a[0, ..., c].astype(float), b[0, ..., c].astype(float)) for c in range(3)]
    assert value(Ssim(UNIFORM), a, b) == pytest.approx(np.mean(channels), abs=1e-12)


def ssim_channel(x: np.ndarray, y: np.ndarray) -> float:
    """The formula of Wang et al. 2004, window by window."""
    c1, c2, found = (0.01 * 255) ** 2, (0.03 * 255) ** 2, []
    for i in range(x.shape[0] - 6):
        for j in range(x.shape[1] - 6):
            u, v = x[i : i + 7, j : j + 7], y[i : i + 7, j : j + 7]
            cov = np.cov(u.ravel(), v.ravel())
            top = (2 * u.mean() * v.mean() + c1) * (2 * cov[0, 1] + c2)
            found.append(top / ((u.mean() ** 2 + v.mean() ** 2 + c1) * (cov[0, 0] + cov[1, 1] + c2)))
    return float(np.mean(found))


def means(x: torch.Tensor, y: torch.Tensor, data_range: float = 255) -> tuple[torch.Tensor, torch.Tensor]:
    """SSIM and its contrast part by five valid convolutions in float64: (B, 3, H, W) -> (B, 3) twice."""
    places = torch.arange(-5, 6, dtype=torch.float64)
    kernel = torch.exp(-(places[:, None] ** 2 + places[None, :] ** 2) / (2 * 1.5**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, 11, 11)
    ux, uy, xx, yy, xy = (F.conv2d(v, kernel, groups=3) for v in (x, y, x * x, y * y, x * y))
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    contrast = (2 * (xy - ux * uy) + c2) / (xx - ux**2 + yy - uy**2 + c2)
    return ((2 * ux * uy + c1) / (ux**2 + uy**2 + c1) * contrast).mean((2, 3)), contrast.mean((2, 3))


@pytest.mark.parametrize(("side", "factor"), [(256, 1), (385, 2), (650, 3)])  # the mean drops what is left over
def test_the_vqgan_lc_protocol_gives_piqs_ssim(side: int, factor: int) -> None:
    """As piq/ssim.py: mean-pooled by round(short side / 256), then valid convolutions with the Gaussian."""
    a, b = pairs(1, side, side + 9)
    x, y = (F.avg_pool2d(v, factor) for v in tensors(a, b))
    found = value(Ssim(load_protocol("vqgan-lc-code").ssim), a, b)
    assert found == pytest.approx(means(x, y)[0].mean().item(), abs=1e-10)


def test_the_window_decides_the_number() -> None:
    a, b = pairs()
    assert abs(value(Ssim(UNIFORM), a, b) - value(Ssim(GAUSSIAN), a, b)) > 1e-3


@pytest.mark.parametrize(("size", "dtype"), [(7, torch.float32), (9, torch.float64)])
def test_float32_is_taken_where_it_holds_the_brightest_sums(size: int, dtype: torch.dtype) -> None:
    """Sums of squares of 255 + 254, an odd number: below 2^24 in the window of 7, above it in that of 9."""
    x, y = (torch.full((size, 1, size), level, dtype=torch.uint8) for level in (255, 254))
    window = UNIFORM.model_copy(update={"size": size})
    assert _dtype(x, window) == dtype
    found = {kind: next(windowed(x, y, weights(window), kind))[2].item() for kind in (torch.float32, torch.float64)}
    assert found[torch.float64] == size**2 * 509**2
    assert (found[torch.float32] == found[torch.float64]) == (dtype == torch.float32)


@pytest.mark.parametrize("window", [UNIFORM, GAUSSIAN], ids=["uniform", "gaussian"])
def test_threads_change_no_bit_of_ssim(window: Window) -> None:
    a, b = pairs(6, 40, 150)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(value(Ssim(window), a, b))
            assert torch.get_num_threads() == count  # the workers' setting is theirs
            workers = [_workers(count).submit(torch.get_num_threads) for _ in range(2 * count)]
            assert {worker.result() for worker in workers} == {1}
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("window", [UNIFORM, GAUSSIAN], ids=["uniform", "gaussian"])
def test_ssim_refuses_images_below_its_window(window: Window) -> None:
    small = np.zeros((1, 30, window.size - 1, 3), np.uint8)
    with pytest.raises(SpecError, match=f"window of {window.size}"):
        Ssim(window).update(batch(small, small))


def ms_ssim_by_hand(a: np.ndarray, b: np.ndarray) -> float:
    x, y = tensors(a, b)
    product = torch.ones(len(a), 3, dtype=torch.float64)
    for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        ssim, contrast = means(x, y)
        product *= F.relu(ssim if scale == 4 else contrast) ** weight
        x, y = halved(x), halved(y)
    return product.mean().item()


def halved(x: torch.Tensor) -> torch.Tensor:
    """2x2 means, the last row and column repeated where there is no partner."""
    x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2), mode="replicate")
    return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4


@pytest.mark.parametrize("size", [(176, 192), (171, 183)])  # even at every scale, and odd
def test_ms_ssim_by_hand(size: tuple[int, int]) -> None:
    a, b = pairs(2, *size)
    expected = ms_ssim_by_hand(a, b)
    assert value(MsSsim(GAUSSIAN), a, b) == pytest.approx(expected, abs=1e-12)
    assert value(MsSsim(UNIFORM), a, b) == pytest.approx(expected, abs=1e-12)  # the paper's window all the same
    assert abs(expected - value(Ssim(GAUSSIAN), a, b)) > 0.01


def test_ms_ssim_of_a_negative_is_0() -> None:
    """The contrast of an image and its negative is negative: its power is no number."""
    a, _ = pairs(1, 176, 176)
    assert value(MsSsim(GAUSSIAN), a, 255 - a) == 0.0 == ms_ssim_by_hand(a, 255 - a)


def test_ms_ssim_needs_room_for_five_scales() -> None:
    assert smallest_side(GAUSSIAN) == smallest_side(UNIFORM) == 160
    a, b = pairs(1, 161, 161)
    assert 0 < value(MsSsim(UNIFORM), a, b) < 1
    with pytest.raises(SpecError, match="sides above 160"):
        MsSsim(UNIFORM).update(batch(a[:, :160], b[:, :160]))
