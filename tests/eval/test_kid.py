"""KID against torch-fidelity, with the same draws, and against the definition."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch_fidelity.metric_kid import kid_features_to_metric

from vqbench.errors import SpecError
from vqbench.eval.base import Estimate
from vqbench.eval.intervals import groups_of
from vqbench.eval.kid import Kid
from vqbench.eval.protocols import Kernel

from .sets import draw, pooled


def kernel(**changes: Any) -> Kernel:
    return Kernel(**({"subsets": 7, "subset_size": 30, "degree": 3, "coef0": 1.0, "seed": 2020} | changes))


def kid(a: np.ndarray, b: np.ndarray, rules: Kernel) -> Estimate:
    return Kid(rules).compute(pooled(a), pooled(b))["kid"]


def unbiased(a: np.ndarray, b: np.ndarray) -> float:
    """MMD^2 by its definition, over pairs of different images of a set."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    own, other, cross = ((x @ y.T / a.shape[1] + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    pairs = sum((k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (own, other))
    return float(pairs - 2 * cross.mean())


@pytest.mark.parametrize("changes", [{}, {"degree": 2, "gamma": 0.3, "coef0": 0.0}, {"subset_size": 50, "seed": 1}])
@pytest.mark.parametrize("d", [3, 200])
def test_it_is_torch_fidelitys(changes: dict[str, Any], d: int) -> None:
    a, b, rules = draw(0, 60, d, 0.2), draw(1, 50, d), kernel(**changes)
    theirs = kid_features_to_metric(
        torch.from_numpy(a).double(), torch.from_numpy(b).double(), verbose=False, rng_seed=rules.seed,
        kid_subsets=rules.subsets, kid_subset_size=rules.subset_size, kid_kernel="poly",
        kid_kernel_poly_degree=rules.degree, kid_kernel_poly_gamma=rules.gamma, kid_kernel_poly_coef0=rules.coef0,
    )  # fmt: skip
    assert kid(a, b, rules).value == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-10)


def test_subsets_of_all_images_are_the_definition_and_the_interval_its_jackknife() -> None:
    a, b, rules = draw(0, 60, 5, 0.2), draw(1, 60, 5), kernel(subset_size=60)
    found = kid(a, b, rules)
    assert found.value == pytest.approx(unbiased(a, b), rel=1e-10)
    without = [unbiased(a[groups_of(np.arange(60)) != g], b) for g in range(10)]
    half = stats.t.ppf(0.975, 9) * np.std(without) * 3  # sqrt((10 - 1) / 10 * 10) = 3
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), rel=1e-9)
    assert found.n == 60


def test_the_interval_is_as_wide_as_kid_scatters() -> None:
    reference, rules = draw(0, 3000, 6), kernel(subsets=20, subset_size=100)
    found = [kid(draw(seed + 1, 200, 6, 0.3), reference, rules) for seed in range(40)]
    width, scatter = np.mean([e.high - e.low for e in found]), np.std([e.value for e in found], ddof=1)
    assert width == pytest.approx(2 * stats.t.ppf(0.975, 9) * scatter, rel=0.4)


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(40)), st.integers(1, 39))
def test_it_does_not_depend_on_order_or_shards(order: list[int], cut: int) -> None:
    a, b = draw(0, 40, 4), pooled(draw(1, 50, 4))
    one, two = pooled(a, [np.array(order[:cut])]), pooled(a, [np.array(order[cut:])])
    one.merge(two)
    assert Kid(kernel()).compute(one, b) == Kid(kernel()).compute(pooled(a), b)


def test_samples_of_one_distribution_are_near_0() -> None:
    close, far = (kid(draw(0, 300, 8, shift), draw(1, 300, 8), kernel(subset_size=200)) for shift in (0.0, 1.0))
    assert close.low < 0 < close.high and far.low > 0 and abs(close.value) < far.value / 20


def test_a_set_against_itself_is_near_0_on_either_side() -> None:
    """As docs/evaluation.md says: two different subsets of it are compared."""
    rows = [draw(seed, 200, 8) for seed in range(8)]
    values = [kid(x, x, kernel(subsets=20, subset_size=100)).value for x in rows]
    far = kid(rows[0], draw(1, 200, 8, 1.0), kernel(subsets=20, subset_size=100)).value
    assert 0 < max(abs(value) for value in values) < far / 20 and min(values) < 0


def test_sets_smaller_than_a_subset() -> None:
    for n, m in ((29, 40), (40, 29)):
        with pytest.raises(SpecError, match="subsets of 30 images"):
            kid(draw(0, n, 3), draw(1, m, 3), kernel())
    small = kid(draw(0, 12, 3), draw(1, 12, 3), kernel(subset_size=10))
    assert math.isfinite(small.value) and math.isnan(small.low) and math.isnan(small.high)
