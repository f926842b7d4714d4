"""The Inception Score against torch-fidelity, in both orders, and where torch-fidelity gives NaN."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import softmax
from torch_fidelity.metric_isc import isc_features_to_metric

from vqbench.errors import ArtifactError, SpecError
from vqbench.eval.base import Estimate
from vqbench.eval.inception_score import InceptionScore
from vqbench.eval.protocols import Splits

from .sets import logits_of, pooled


def protocol(shuffle: bool = True, splits: int = 4) -> Splits:
    return Splits(splits=splits, shuffle=shuffle, seed=2020)


def logits(seed: int, n: int, classes: int, scale: float = 3.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, (n, classes)).astype(np.float32)


def score(rows: np.ndarray, rules: Splits) -> Estimate:
    return InceptionScore(rules).compute(logits_of(rows), None)["is"]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("n", "classes", "splits"), [(101, 10, 4), (10, 1008, 10), (500, 1008, 10), (57, 5, 1)])
@pytest.mark.parametrize("scale", [0.01, 3.0, 30.0])
def test_it_is_torch_fidelitys(shuffle: bool, n: int, classes: int, splits: int, scale: float) -> None:
    rows = logits(n, n, classes, scale)
    theirs = isc_features_to_metric(torch.from_numpy(rows), splits, shuffle, 2020)
    assert score(rows, protocol(shuffle, splits)).value == pytest.approx(theirs["inception_score_mean"], rel=1e-10)


def test_probabilities_that_underflow_add_nothing() -> None:
    rows = logits(0, 40, 5)
    dead = np.concatenate([rows, np.full((40, 1), -5000, np.float32)], axis=1)
    assert math.isnan(isc_features_to_metric(torch.from_numpy(dead), 4)["inception_score_mean"])
    assert score(dead, protocol()).value == pytest.approx(score(rows, protocol()).value, rel=1e-12)
    certain = 1e4 * np.eye(8, dtype=np.float32)[np.arange(96) % 8]
    assert score(certain, protocol(shuffle=False)).value == pytest.approx(8, rel=1e-10)


def test_it_lies_between_1_and_the_number_of_classes() -> None:
    same = np.tile(logits(0, 1, 7), (40, 1))
    assert score(same, protocol()).value == pytest.approx(1, abs=1e-12)
    assert score(np.zeros((40, 7), np.float32), protocol()).value == pytest.approx(1, abs=1e-12)


def test_sorted_samples_need_the_shuffle() -> None:
    rows = 20 * np.eye(8, dtype=np.float32)[np.repeat(np.arange(8), 50)]
    assert score(rows, protocol()).value > 7.5
    assert score(rows, protocol(shuffle=False)).value < 2.1


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(24)), st.integers(1, 23), st.booleans())
def test_it_does_not_depend_on_order_or_shards(order: list[int], cut: int, shuffle: bool) -> None:
    rows = logits(0, 24, 6)
    one, two = logits_of(rows, [np.array(order[:cut])]), logits_of(rows, [np.array(order[cut:])])
    one.merge(two)
    assert InceptionScore(protocol(shuffle)).compute(one)["is"] == score(rows, protocol(shuffle))


def test_its_interval_is_over_the_splits() -> None:
    rows = logits(0, 40, 6)
    splits = [score(rows[i : i + 10], protocol(splits=1)).value for i in range(0, 40, 10)]
    found = score(rows, protocol(shuffle=False))
    half = stats.t.ppf(0.975, 3) * np.std(splits, ddof=1) / 2
    assert found == pytest.approx((np.mean(splits), np.mean(splits) - half, np.mean(splits) + half, 40), rel=1e-12)
    one = score(rows, protocol(splits=1))
    assert one.value > 1 and math.isnan(one.low) and math.isnan(one.high)


def test_parts_of_so_many_images_are_adms() -> None:
    """openai/guided-diffusion:evaluations/evaluator.py (compute_inception_score) steps through the samples; written out."""
    rows = logits(1, 47, 6)
    p = softmax(rows.astype(np.float64), axis=1)
    parts = [p[start : start + 10] for start in range(0, 47, 10)]
    theirs = [np.exp((part * (np.log(part) - np.log(part.mean(0)))).sum(1).mean()) for part in parts]
    rules = Splits(split_size=10, shuffle=False, seed=0)
    assert rules.cuts(47) == [0, 10, 20, 30, 40, 47] and rules.cuts(10) == [0, 10]
    assert score(rows, rules).value == pytest.approx(np.mean(theirs), rel=1e-10)


def test_too_few_images_and_missing_logits() -> None:
    with pytest.raises(SpecError, match="3 images cannot be cut into 4 splits"):
        score(logits(0, 3, 5), protocol())
    with pytest.raises(ArtifactError, match="'logits' of this set were not kept"):
        InceptionScore(protocol()).compute(pooled(logits(0, 9, 5)))
