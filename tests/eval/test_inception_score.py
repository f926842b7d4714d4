"""The Inception Score against torch-fidelity, in both orders, and where torch-fidelity gives NaN."""

from __future__ import annotations

import itertools
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
from vqbench.eval import inception_score
from vqbench.eval.base import Estimate
from vqbench.eval.inception_score import InceptionScore
from vqbench.eval.intervals import groups_of, jackknife, student
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


def test_blocks_of_any_size_add_up_to_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = logits(3, 101, 7)
    whole = score(rows, protocol())
    monkeypatch.setattr(inception_score, "ROWS", 7)
    assert score(rows, protocol()) == pytest.approx(whole, rel=1e-12)


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


@pytest.mark.parametrize("count", [7, 19, 20, 40, 41, 59])
def test_few_or_uneven_parts_have_a_jackknife_over_images(count: int) -> None:
    """Written out: every group is left out of its own part, ADM's cuts stay."""
    rows, rules = logits(5, count, 6), Splits(split_size=20, shuffle=True, seed=3)
    order, cuts = np.random.RandomState(3).permutation(count), rules.cuts(count)
    parts = [order[a:b] for a, b in itertools.pairwise(cuts)]
    found = score(rows, rules)
    if count < 20:
        assert found.value > 1 and math.isnan(found.low) and math.isnan(found.high)
        return

    def mean(left: np.ndarray) -> float:
        kept = [rows[part[np.isin(part, left)]] for part in parts]
        return float(np.mean([score(x, protocol(False, 1)).value if len(x) else 1.0 for x in kept]))

    groups = groups_of(np.arange(count))
    without = [mean(np.flatnonzero(groups != group)) for group in range(10)]
    low, high = jackknife(mean(np.arange(count)), without)
    assert found == pytest.approx((mean(np.arange(count)), max(1.0, low), high, count), rel=1e-10)


def test_three_whole_parts_have_students_t_and_a_rest_does_not() -> None:
    rules = Splits(split_size=20, shuffle=False, seed=0)
    assert [rules.whole(n) for n in (5, 20, 40, 60, 61, 80)] == [1, 1, 2, 3, 0, 4]
    rows = logits(6, 61, 6)
    splits = [score(rows[i : i + 20], protocol(splits=1)).value for i in range(0, 60, 20)]
    assert score(rows[:60], rules)[1:3] == pytest.approx(student(splits), rel=1e-12)
    found = score(rows, rules)  # an image alone scores 1: Student's t would span the scale
    assert found.value == pytest.approx(np.mean([*splits, 1.0]), rel=1e-12)
    assert found.high - found.low < np.diff(student([*splits, 1.0]))[0] / 2


def test_no_interval_goes_below_1() -> None:
    rows = np.zeros((30, 6), np.float32)
    rows[25:, 0] = 20  # the last part alone holds two kinds of image
    scores = [1.0, 1.0, score(rows[20:], protocol(False, 1)).value]
    assert student(scores)[0] < 1
    assert score(rows, protocol(False, 3))[1:3] == (1.0, pytest.approx(student(scores)[1]))


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
