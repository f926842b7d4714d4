"""Pairs of images for the tests of PSNR, SSIM, MS-SSIM and LPIPS."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter
from skimage.metrics import structural_similarity

from vqbench.eval.base import Batch, Estimate, Metric
from vqbench.eval.protocols import SignalNoise, Window

# lpips builds its network through an argument of torchvision that is deprecated.
LPIPS_WARNINGS = [
    pytest.mark.filterwarnings("ignore:The parameter 'pretrained' is deprecated:UserWarning"),
    pytest.mark.filterwarnings("ignore:Arguments other than a weight enum:UserWarning"),
]

RGB = SignalNoise(space="rgb", pooling="images", data_range=255, identical="exclude")
UNIFORM = Window(window="uniform", size=7, data_range=255, channels="rgb", covariance="sample")
GAUSSIAN = Window(window="gaussian", size=11, sigma=1.5, data_range=255, channels="rgb", covariance="population")


def pairs(count: int = 5, height: int = 20, width: int = 20, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Smooth images and noisy versions of them, uint8 (count, height, width, 3)."""
    rng = np.random.default_rng(seed)
    images = uniform_filter(rng.integers(0, 256, (count, height, width, 3)).astype(float), (0, 5, 5, 0))
    images = (images - images.mean()) * 3 + 128
    noisy = images + rng.normal(0, 1, images.shape) * np.linspace(2, 40, count)[:, None, None, None]
    return images.round().clip(0, 255).astype(np.uint8), noisy.round().clip(0, 255).astype(np.uint8)


def batch(originals: np.ndarray, images: np.ndarray, start: int = 0) -> Batch:
    return Batch(np.arange(start, start + len(images)), images, originals)


def estimate(metric: Metric, originals: np.ndarray, images: np.ndarray) -> Estimate:
    """All pairs in one batch."""
    metric.update(batch(originals, images))
    (found,) = metric.compute().values()
    return found


def value(metric: Metric, originals: np.ndarray, images: np.ndarray) -> float:
    return estimate(metric, originals, images).value


def scikit_ssim(a: np.ndarray, b: np.ndarray, gaussian: bool, **options: object) -> float:
    more = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False} if gaussian else {}
    options = {"data_range": 255, "channel_axis": -1} | more | options
    return float(np.mean([structural_similarity(x, y, **options) for x, y in zip(a, b, strict=True)]))


def tensors(*images: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(x).permute(0, 3, 1, 2).double() for x in images]
