"""PSNR, SSIM and LPIPS against scikit-image and lpips on whole arrays, and against formulas written out by hand."""

from __future__ import annotations

import math

import lpips
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import uniform_filter
from skimage.metrics import structural_similarity

from vqbench.errors import SpecError
from vqbench.eval.perceptual import Lpips
from vqbench.eval.protocols import SignalNoise, Window
from vqbench.eval.psnr import Psnr
from vqbench.eval.ssim import Ssim

# lpips builds its network through an argument of torchvision that is deprecated.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The parameter 'pretrained' is deprecated:UserWarning"),
    pytest.mark.filterwarnings("ignore:Arguments other than a weight enum:UserWarning"),
]

RGB = SignalNoise(space="rgb", data_range=255, identical="exclude")
UNIFORM = Window(window="uniform", size=7, data_range=255)
GAUSSIAN = Window(window="gaussian", size=11, sigma=1.5, data_range=255)


def pairs(count: int = 5, size: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Smooth images and noisy versions of them, uint8 (count, size, size, 3)."""
    rng = np.random.default_rng(0)
    images = uniform_filter(rng.integers(0, 256, (count, size, size, 3)).astype(float), (0, 5, 5, 0))
    noisy = images + rng.normal(0, 1, images.shape) * np.linspace(2, 40, count)[:, None, None, None]
    return images.round().clip(0, 255).astype(np.uint8), noisy.round().clip(0, 255).astype(np.uint8)


def test_psnr_is_the_mean_over_images_of_the_formula() -> None:
    a, b = pairs()
    metric = Psnr(RGB)
    metric.update(a[:2], b[:2])
    metric.update(a[2:], b[2:])
    mse = ((a.astype(float) - b.astype(float)) ** 2).mean((1, 2, 3))
    assert metric.compute()["psnr"] == pytest.approx(np.mean(10 * np.log10(255**2 / mse)), rel=1e-12)
    pooled = 10 * math.log10(255**2 / mse.mean())
    assert abs(metric.compute()["psnr"] - pooled) > 1  # the two poolings are really different numbers


def test_psnr_leaves_identical_pairs_out_and_counts_them() -> None:
    a, b = pairs()
    b[3] = a[3]
    metric, rest = Psnr(RGB), Psnr(RGB)
    metric.update(a, b)
    keep = [0, 1, 2, 4]
    rest.update(a[keep], b[keep])
    assert metric.compute() == rest.compute()
    assert (metric.count, metric.identical) == (4, 1)
    same = Psnr(RGB)
    same.update(a, a)
    assert math.isnan(same.compute()["psnr"]) and same.count == 0


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 254), st.integers(1, 8))
def test_psnr_of_a_constant_error(level: int, error: int) -> None:
    a = np.full((1, 8, 8, 3), min(level, 255 - error), np.uint8)
    metric = Psnr(RGB)
    metric.update(a, a + np.uint8(error))
    assert metric.compute()["psnr"] == pytest.approx(20 * math.log10(255 / error), rel=1e-12)


@pytest.mark.parametrize("window", [UNIFORM, GAUSSIAN])
def test_ssim_is_scikit_images(window: Window) -> None:
    a, b = pairs()
    metric = Ssim(window)
    metric.update(a[:3], b[:3])
    metric.update(a[3:], b[3:])
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False} if window is GAUSSIAN else {}
    expected = [
        structural_similarity(x, y, channel_axis=-1, data_range=255, **options) for x, y in zip(a, b, strict=True)
    ]
    assert metric.compute()["ssim"] == pytest.approx(np.mean(expected), rel=1e-12)


def test_ssim_uniform_by_hand() -> None:
    a, b = pairs(1)
    metric = Ssim(UNIFORM)
    metric.update(a, b)
    channels = [_ssim_channel(a[0, ..., c].astype(float), b[0, ..., c].astype(float)) for c in range(3)]
    assert metric.compute()["ssim"] == pytest.approx(np.mean(channels), rel=1e-9)


def _ssim_channel(x: np.ndarray, y: np.ndarray) -> float:
    windows = [
        (x[i : i + 7, j : j + 7], y[i : i + 7, j : j + 7]) for i in range(x.shape[0] - 6) for j in range(x.shape[1] - 6)
    ]
    c1, c2, found = (0.01 * 255) ** 2, (0.03 * 255) ** 2, []
    for u, v in windows:
        cov = np.cov(u.ravel(), v.ravel())
        top = (2 * u.mean() * v.mean() + c1) * (2 * cov[0, 1] + c2)
        found.append(top / ((u.mean() ** 2 + v.mean() ** 2 + c1) * (cov[0, 0] + cov[1, 1] + c2)))
    return float(np.mean(found))


def test_the_window_decides_the_number() -> None:
    a, b = pairs()
    first, second = Ssim(UNIFORM), Ssim(GAUSSIAN)
    first.update(a, b)
    second.update(a, b)
    assert abs(first.compute()["ssim"] - second.compute()["ssim"]) > 1e-3
    first.update(a, a)
    assert first.compute()["ssim"] < 1


def test_ssim_refuses_images_below_its_window() -> None:
    small = np.zeros((1, 6, 6, 3), np.uint8)
    with pytest.raises(SpecError, match="window of 7"):
        Ssim(UNIFORM).update(small, small)


def test_lpips_is_the_librarys() -> None:
    """Real VGG-16 shapes with random weights, the wheel's linear weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).train()  # train(): dropout must be switched off
    a, b = pairs(3, 32)
    metric = Lpips(network)
    metric.update(a[:2], b[:2])
    metric.update(a[2:], b[2:])
    floats = [torch.from_numpy(x).permute(0, 3, 1, 2).float() / 127.5 - 1 for x in (a, b)]
    with torch.no_grad():
        expected = network.eval()(*floats).mean().item()
    assert metric.compute()["lpips"] == pytest.approx(expected, rel=1e-5)
    assert expected > 0
    same = Lpips(network)
    same.update(a, a)
    assert same.compute() == {"lpips": 0.0}
