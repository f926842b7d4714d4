"""The jackknife's groups: even, of the image alone, and blind to classes that take turns; intervals that cover."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqbench.eval.intervals import GROUPS, groups_of, jackknife


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**9), st.integers(1, 300), st.integers(0, 2**32 - 1))
def test_a_group_belongs_to_the_image(start: int, count: int, seed: int) -> None:
    indices = np.arange(start, start + count)
    whole = groups_of(indices)
    order = np.random.default_rng(seed).permutation(count)
    assert np.array_equal(groups_of(indices[order]), whole[order])
    assert whole.min() >= 0 and whole.max() < GROUPS


def test_groups_are_even_and_every_ten_images_fill_them() -> None:
    found = groups_of(np.arange(5000)).reshape(-1, GROUPS)
    assert (np.sort(found, 1) == np.arange(GROUPS)).all()


@pytest.mark.parametrize("classes", [2, 5, 8, 10, 1000])
def test_classes_that_take_turns_spread_over_the_groups(classes: int) -> None:
    """In each group a class is about as frequent as in the whole set."""
    indices = np.arange(50_000)
    groups, labels = groups_of(indices), indices % classes
    counts = np.zeros((GROUPS, classes))
    np.add.at(counts, (groups, labels), 1)
    expected = 50_000 / GROUPS / classes
    assert np.abs(counts - expected).max() < 6 * np.sqrt(expected)


def test_the_interval_of_a_mean_covers_as_often_as_it_says() -> None:
    rng, hits, groups = np.random.default_rng(0), 0, groups_of(np.arange(200))
    for _ in range(400):
        values = rng.exponential(size=200)
        without = [float(values[groups != g].mean()) for g in range(GROUPS)]
        low, high = jackknife(float(values.mean()), without)
        hits += low <= 1 <= high
    assert 0.91 < hits / 400 < 0.98
