"""PSNR against scikit-image on whole arrays, and against formulas written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio

from vqbench.eval.intervals import groups_of
from vqbench.eval.protocols import load_protocol
from vqbench.eval.psnr import Psnr

from .pair_sets import RGB, estimate, pairs, value


def test_psnr_is_scikit_images() -> None:
    a, b = pairs(7, 31, 18)
    expected = np.mean([peak_signal_noise_ratio(x, y, data_range=255) for x, y in zip(a, b, strict=True)])
    assert value(Psnr(RGB), a, b) == pytest.approx(expected, rel=1e-12)


def test_psnr_of_luma_is_scikit_images_of_luma() -> None:
    a, b = pairs(4)
    luma = [x.astype(float) @ [0.299, 0.587, 0.114] for x in (a, b)]
    expected = np.mean([peak_signal_noise_ratio(x, y, data_range=255) for x, y in zip(*luma, strict=True)])
    settings = RGB.model_copy(update={"space": "y"})
    assert value(Psnr(settings), a, b) == pytest.approx(expected, rel=1e-12)
    assert abs(value(Psnr(RGB), a, b) - expected) > 0.1  # luma and RGB are really different numbers


def test_the_vqgan_lc_protocol_gives_its_studio_range_luma() -> None:
    """Its script: Y = (65.481 R + 128.553 G + 24.966 B + 16) / 255 of RGB in [0, 1], PSNR with a peak of 1."""
    a, b = pairs(4)
    luma = [((x / 255) @ [65.481, 128.553, 24.966] + 16) / 255 for x in (a, b)]
    expected = np.mean([-10 * math.log10(((x - y) ** 2).mean()) for x, y in zip(*luma, strict=True)])
    assert value(Psnr(load_protocol("vqgan-lc-code").psnr), a, b) == pytest.approx(expected, rel=1e-12)


def test_colours_of_one_luma_have_no_error_in_luma() -> None:
    """A difference of colour whose luma is 0 exactly; in floating point a rest of 1e-14 would be some 300 dB."""
    r, g, b = next(
        (r, g, b) for r in range(1, 200) for g in range(-200, 200) for b in (-(299 * r + 587 * g) // 114,)
        if 299 * r + 587 * g + 114 * b == 0 and abs(b) < 200
    )  # fmt: skip
    first = np.full((1, 4, 4, 3), [max(0, -v) for v in (r, g, b)], np.uint8)
    second = np.full((1, 4, 4, 3), [max(0, v) for v in (r, g, b)], np.uint8)
    luma = Psnr(RGB.model_copy(update={"space": "y"}))
    assert math.isnan(value(luma, first, second)) and luma.identical == 1
    assert value(Psnr(RGB), first, second) > 0


@pytest.mark.parametrize("space", ["rgb", "y"])
def test_psnr_leaves_identical_pairs_out_and_counts_them(space: str) -> None:
    a, b = pairs()
    b[3] = a[3]
    settings = RGB.model_copy(update={"space": space})
    metric = Psnr(settings)
    keep = [0, 1, 2, 4]
    assert estimate(metric, a, b) == estimate(Psnr(settings), a[keep], b[keep])
    assert metric.compute()["psnr"].n == 4 and metric.identical == 1


@pytest.mark.parametrize("pooling", ["images", "mse"])
def test_psnr_of_identical_sets_is_undefined(pooling: str) -> None:
    a, _ = pairs()
    metric = Psnr(RGB.model_copy(update={"pooling": pooling}))
    found = estimate(metric, a, a)
    assert math.isnan(found.value) and math.isnan(found.low) and found.n == 0 and metric.identical == len(a)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 254), st.integers(1, 8))
def test_psnr_of_a_constant_error(level: int, error: int) -> None:
    a = np.full((1, 8, 8, 3), min(level, 255 - error), np.uint8)
    assert value(Psnr(RGB), a, a + np.uint8(error)) == pytest.approx(20 * math.log10(255 / error), rel=1e-12)


def test_pooled_psnr_is_of_the_mean_error_of_all_pairs() -> None:
    a, b = pairs(30)
    b[3] = a[3]
    metric = Psnr(RGB.model_copy(update={"pooling": "mse"}))
    found = estimate(metric, a, b)
    mse = ((a.astype(float) - b.astype(float)) ** 2).mean((1, 2, 3))
    assert found.value == pytest.approx(10 * math.log10(255**2 / mse.mean()), rel=1e-12)
    assert found.n == 30 and metric.identical == 1
    assert value(Psnr(RGB), a, b) - found.value > 1  # the two poolings are really different numbers
    without = [10 * math.log10(255**2 / mse[groups_of(np.arange(30)) != g].mean()) for g in range(10)]
    spread = math.sqrt(9 / 10 * np.sum((without - np.mean(without)) ** 2))
    assert found.high - found.value == pytest.approx(2.2621571627409915 * spread, rel=1e-6)
