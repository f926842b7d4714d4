"""What PSNR, SSIM, MS-SSIM and LPIPS have in common: shards, identical pairs, pairs that do not fit."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vqbench.errors import SpecError
from vqbench.eval.base import Batch, Estimate, Metric
from vqbench.eval.ms_ssim import MsSsim
from vqbench.eval.perceptual import Lpips
from vqbench.eval.psnr import Psnr
from vqbench.eval.ssim import Ssim

from .pair_sets import GAUSSIAN, LPIPS_WARNINGS, RGB, UNIFORM, batch, estimate, pairs, scikit_ssim, value

pytestmark = LPIPS_WARNINGS


METRICS: dict[str, Callable[[], Metric]] = {
    "psnr": lambda: Psnr(RGB),
    "psnr-y": lambda: Psnr(RGB.model_copy(update={"space": "y"})),
    "psnr-mse": lambda: Psnr(RGB.model_copy(update={"pooling": "mse"})),
    "ssim-uniform": lambda: Ssim(UNIFORM),
    "ssim-gaussian": lambda: Ssim(GAUSSIAN),
    "ssim-gray": lambda: Ssim(GAUSSIAN.model_copy(update={"channels": "gray"})),
}


@pytest.mark.parametrize("name", METRICS)
@settings(max_examples=10, deadline=None)
@given(st.permutations(range(24)), st.lists(st.integers(0, 24), max_size=5), st.integers(0, 2**16))
def test_order_batches_and_shards_change_no_bit(name: str, order: list[int], cuts: list[int], seed: int) -> None:
    a, b = pairs(24, 13, 15, seed)
    b[5] = a[5]
    whole, shards = METRICS[name](), [METRICS[name](), METRICS[name]()]
    whole.update(batch(a, b))
    edges = [0, *sorted(cuts), 24]
    for i, (start, stop) in enumerate(pairwise(edges)):
        places = np.array(order[start:stop], dtype=np.int64)
        shards[i % 2].update(Batch(places, b[places], a[places]))
    shards[0].merge(shards[1])
    assert shards[0].compute() == whole.compute()
    assert (found := next(iter(whole.compute().values()))).low < found.value < found.high


def test_ms_ssim_in_shards() -> None:
    a, b = pairs(4, 161, 161)
    whole, first, second = (MsSsim(GAUSSIAN) for _ in range(3))
    whole.update(batch(a, b))
    for metric, rows in ((first, [3]), (second, [0]), (first, [2, 1])):
        metric.update(Batch(np.array(rows), b[rows], a[rows]))
    second.merge(first)
    assert second.compute() == whole.compute()


def test_lpips_in_shards(alexnet: nn.Module) -> None:
    """To the rounding of the network's float32, which may sum otherwise in another batch."""
    a, b = pairs(11, 64, 64)
    network = copy.deepcopy(alexnet)
    whole, first, second = (Lpips(network) for _ in range(3))
    whole.update(batch(a, b))
    first.update(batch(a[9:], b[9:]))
    for i in range(9):
        second.update(batch(a[i : i + 1], b[i : i + 1]))
    first.merge(second)
    assert first.compute()["lpips"].n == 11
    assert first.compute()["lpips"] == pytest.approx(whole.compute()["lpips"], rel=1e-6)


@pytest.mark.parametrize("name", ["ssim-uniform", "ssim-gaussian", "ssim-gray"])
@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**16), st.integers(11, 60), st.integers(11, 60))
def test_ssim_of_identical_images_is_exactly_1(name: str, seed: int, height: int, width: int) -> None:
    a = np.random.default_rng(seed).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    assert estimate(METRICS[name](), a, a) == Estimate(1.0, 1.0, 1.0, 2)


def test_other_metrics_of_identical_images(alexnet: nn.Module) -> None:
    a, _ = pairs(5, 176, 161)
    assert estimate(MsSsim(GAUSSIAN), a, a) == Estimate(1.0, 1.0, 1.0, 5)
    assert estimate(Lpips(copy.deepcopy(alexnet)), a[:, :64, :64], a[:, :64, :64]) == Estimate(0.0, 0.0, 0.0, 5)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**16), st.sampled_from(["ssim-uniform", "ssim-gaussian"]))
def test_ssim_is_symmetric_and_bounded(seed: int, name: str) -> None:
    a, b = np.random.default_rng(seed).integers(0, 256, (2, 1, 20, 20, 3), dtype=np.uint8)
    found = value(METRICS[name](), a, b)
    assert -1 <= found < 1
    assert value(METRICS[name](), b, a) == found
    assert abs(found - scikit_ssim(a, b, name == "ssim-gaussian")) < 1e-12


@pytest.mark.parametrize("name", METRICS)
def test_pairs_must_fit(name: str) -> None:
    a, b = pairs(3)
    for wrong in (b[:2], b[:, :15]):
        with pytest.raises(SpecError, match="as many of both, of one size"):
            METRICS[name]().update(batch(a, wrong))


@pytest.mark.parametrize("name", METRICS)
def test_no_pairs_are_undefined_and_sizes_may_differ_between_batches(name: str) -> None:
    metric = METRICS[name]()
    a, b = pairs(2)
    metric.update(batch(a[:0], b[:0]))
    (nothing,) = metric.compute().values()
    assert math.isnan(nothing.value) and nothing.n == 0
    metric.update(batch(*pairs(2, 20, 30)))
    metric.update(batch(*pairs(1, 40, 12)))
    assert next(iter(metric.compute().values())).n == 3


def test_arrays_may_be_read_only_and_strided(alexnet: nn.Module) -> None:
    a, b = pairs(2, 64, 64)
    metrics = {**METRICS, "lpips": lambda: Lpips(copy.deepcopy(alexnet))}
    views = [np.repeat(x, 2, axis=2)[:, :, ::2] for x in (a, b)]
    for view in views:
        view.flags.writeable = False
    for name, make in metrics.items():
        assert value(make(), *views) == value(make(), a, b), name


def test_shards_of_other_settings_do_not_merge() -> None:
    for first, second in (
        (Psnr(RGB), Psnr(RGB.model_copy(update={"space": "y"}))),
        (Ssim(UNIFORM), Ssim(GAUSSIAN)),
        (MsSsim(GAUSSIAN), MsSsim(GAUSSIAN.model_copy(update={"data_range": 1.0}))),
    ):
        with pytest.raises(SpecError, match="cannot be merged"):
            first.merge(second)
    with pytest.raises(SpecError, match=r"^psnr: .*\(space rgb and y\)"):  # what differs, and nothing else
        Psnr(RGB).merge(Psnr(RGB.model_copy(update={"space": "y"})))


def test_lpips_of_two_networks_does_not_merge(alexnet: nn.Module) -> None:
    first, second = Lpips(copy.deepcopy(alexnet)), Lpips(copy.deepcopy(alexnet))
    first.merge(second)
    bare = copy.deepcopy(alexnet)
    bare.lpips = False  # the unweighted distance
    with pytest.raises(SpecError, match=r"^lpips: .*weighted True and False"):
        first.merge(Lpips(bare))
