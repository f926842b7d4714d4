"""Exact sums against fractions and math.fsum, over the whole range of float64."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqbench.errors import ArtifactError
from vqbench.eval import exact_mean
from vqbench.eval.exact_mean import CHUNK, LARGEST, ExactMean
from vqbench.eval.intervals import normal

numbers = st.floats(-1e299, 1e299) | st.sampled_from([0.0, -0.0, 5e-324, -5e-324, 2.0**-1022, 1.0, 9.9e299, -9.9e299])


def mean_of(values: list[float]) -> ExactMean:
    found = ExactMean()
    found.add(np.array(values))
    return found


@given(st.lists(numbers, min_size=1, max_size=40))
def test_mean_and_interval_are_those_of_fractions(values: list[float]) -> None:
    exact = [Fraction(v) for v in values]
    mean = sum(exact) / len(exact)
    found = mean_of(values).estimate()
    assert found.n == len(values)
    assert found.value == float(mean)  # a fraction is rounded once, correctly
    if len(values) == 1:
        assert math.isnan(found.low) and math.isnan(found.high)
        return
    variance = sum((v - mean) ** 2 for v in exact) / (len(exact) - 1)
    low, high = normal(float(mean), root(variance), len(values))
    assert found.low == pytest.approx(low, rel=1e-14) and found.high == pytest.approx(high, rel=1e-14)


def root(number: Fraction) -> float:
    """Square root, also of what is no float64."""
    scale = 4**1200
    return math.isqrt(number.numerator * scale // number.denominator) / 2**1200


@given(st.lists(st.floats(-1e12, 1e12), min_size=1, max_size=60))
def test_mean_is_fsums(values: list[float]) -> None:
    assert mean_of(values).estimate().value == pytest.approx(math.fsum(values) / len(values), rel=1e-15, abs=1e-320)


@given(st.lists(numbers, min_size=2, max_size=30), st.randoms(use_true_random=False), st.integers(1, 29))
def test_order_batches_and_shards_change_no_bit(values: list[float], random: object, cut: int) -> None:
    whole = mean_of(values).estimate()
    shuffled = list(values)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    left, right = mean_of(shuffled[:cut]), ExactMean()
    for value in shuffled[cut:]:
        right.add(np.array([value]))
    left.merge(right)
    assert left.count == len(values)
    assert left.estimate() == whole


def test_long_arrays_are_added_in_chunks() -> None:
    values = np.random.default_rng(0).normal(30, 5, 2 * CHUNK + 17)
    found = mean_of(values.tolist()).estimate()
    assert found.value == math.fsum(values) / len(values)
    assert (found.high - found.low) / 2 == pytest.approx(1.959963984540054 * values.std(ddof=1) / len(values) ** 0.5)


def test_a_chunks_limb_sums_are_exact_at_the_worst() -> None:
    """The largest mantissas, so many of them that a sum of limb products is as large as it can be."""
    worst = np.nextafter(2.0, 1.0)
    found = mean_of([worst] * CHUNK)
    assert Fraction(found._sum, 1 << exact_mean.UNIT) == CHUNK * Fraction(worst)
    assert Fraction(found._squares, 1 << 2 * exact_mean.UNIT) == CHUNK * Fraction(worst) ** 2
    found.merge(mean_of([-worst] * CHUNK))
    assert found.estimate().value == 0.0


def test_what_cancels_in_floating_point_does_not_here() -> None:
    assert mean_of([1e16, 1.0, -1e16]).estimate().value == 1 / 3
    same = mean_of([1e8 + 0.1] * 1000).estimate()
    assert same.low == same.value == same.high == 1e8 + 0.1


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf, LARGEST, -LARGEST])
def test_what_is_not_finite_is_refused_whole(wrong: float) -> None:
    mean = mean_of([1.0, 2.0])
    before = mean.estimate()
    with pytest.raises(ArtifactError, match="not finite"):
        mean.add(np.array([3.0, wrong]))
    assert mean.estimate() == before


def test_nothing_is_undefined() -> None:
    empty = ExactMean()
    empty.add(np.array([]))
    assert empty.estimate().n == 0 and math.isnan(empty.estimate().value)


@settings(max_examples=5, deadline=None)
@given(st.integers(1000, 100_000))
def test_memory_does_not_grow(count: int) -> None:
    found = mean_of(np.random.default_rng(count).normal(0, 1, count).tolist())
    assert found._sum.bit_length() < 1300 and found._squares.bit_length() < 2600
