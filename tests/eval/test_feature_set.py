"""Feature sets: the same whatever the order of images, the batches and the shards; memory is bounded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_fidelity.metric_fid import fid_features_to_statistics

from vqbench.errors import ArtifactError, SpecError
from vqbench.eval import moments as moments_module
from vqbench.eval import rows as rows_module
from vqbench.eval.feature_set import FeatureSet, choose
from vqbench.eval.moments import Moments, gaussian_of
from vqbench.eval.protocols import Neighbours

from .sets import POOLED, batch, draw, moments, pooled


@st.composite
def ways(draw_: st.DrawFn) -> tuple[np.ndarray, list[np.ndarray], int]:
    """Images' features, batches of their indices in any order, and how many of the batches go to a first shard."""
    n = draw_(st.integers(2, 40))
    order = np.array(draw_(st.permutations(range(n))))
    cuts = sorted(draw_(st.lists(st.integers(1, n - 1), max_size=5, unique=True)))
    parts = np.split(order, cuts)
    return draw(draw_(st.integers(0, 99)), n, 5, draw_(st.sampled_from([0.0, 1e4]))), parts, draw_(st.integers(0, 5))


@settings(max_examples=60, deadline=None)
@given(ways())
def test_rows_and_moments_do_not_depend_on_order_batches_or_shards(
    way: tuple[np.ndarray, list[np.ndarray], int],
) -> None:
    rows, parts, cut = way
    one, two = pooled(rows, parts[:cut]), pooled(rows, parts[cut:])
    one.merge(two)
    whole = pooled(rows)
    np.testing.assert_array_equal(one.matrix("pooled"), rows)
    np.testing.assert_array_equal(one.gaussian("pooled").sigma, whole.gaussian("pooled").sigma)
    np.testing.assert_array_equal(one.gaussian("pooled").mu, whole.gaussian("pooled").mu)
    assert one.count == whole.count == len(rows)


@settings(max_examples=40, deadline=None)
@given(ways(), st.sampled_from([1, 8, 1024]))
def test_moments_are_numpys(way: tuple[np.ndarray, list[np.ndarray], int], held: int) -> None:
    rows, parts, cut = way
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moments_module, "HELD", held)
        one, two = Moments(), Moments()
        for i, part in enumerate(parts):
            (one if i < cut else two).update(torch.from_numpy(rows[part]))
        one.merge(two)
        found, again = one.gaussian(), one.gaussian()
    exact = rows.astype(np.float64)
    np.testing.assert_allclose(found.mu, exact.mean(0), rtol=1e-12, atol=1e-12)
    scale = np.trace(np.cov(exact, rowvar=False))
    np.testing.assert_allclose(found.sigma, np.cov(exact, rowvar=False), rtol=0, atol=1e-9 * scale)
    np.testing.assert_array_equal(found.sigma, again.sigma)
    if len(rows) <= 5:  # singular: the rows themselves are kept
        assert found.rows is not None
        np.testing.assert_array_equal(np.sort(found.rows, 0), np.sort(rows, 0))


def test_moments_hold_no_rows_of_a_large_set() -> None:
    found = Moments()
    for start in range(0, 5000, 100):
        found.update(torch.from_numpy(draw(start, 100, 4)))
    assert found.gaussian().rows is None and found.count == found.gaussian().n == 5000
    assert sum(map(len, found._held)) <= moments_module.HELD


def test_statistics_are_torch_fidelitys() -> None:
    rows = draw(0, 200, 6, 3.0)
    theirs, ours = fid_features_to_statistics(torch.from_numpy(rows)), gaussian_of(rows)
    np.testing.assert_allclose(ours.mu, theirs["mu"], rtol=1e-5)  # its mean is float32
    np.testing.assert_allclose(ours.sigma, theirs["sigma"], rtol=1e-9)
    np.testing.assert_allclose(moments(rows).gaussian("pooled").sigma, ours.sigma, rtol=1e-12)


@pytest.mark.parametrize("shuffled", [False, True])
def test_rows_beyond_the_bound_go_to_a_file(monkeypatch: pytest.MonkeyPatch, shuffled: bool) -> None:
    monkeypatch.setattr(rows_module, "SPILL", 4000)
    monkeypatch.setattr(rows_module, "CHUNK", 7)
    rows = draw(0, 300, 8)
    order = np.random.default_rng(0).permutation(300) if shuffled else np.arange(300)
    found, other = pooled(rows, np.split(order[:200], 20)), pooled(rows, np.split(order[200:], 10))
    assert found._rows["pooled"]._bytes <= 4000 < found._rows["pooled"]._written * 32
    np.testing.assert_array_equal(found.matrix("pooled"), rows[np.sort(order[:200])])
    found.merge(other)  # more may come after the rows were read
    np.testing.assert_array_equal(found.matrix("pooled"), rows)
    np.testing.assert_array_equal(found.gaussian("pooled").sigma, gaussian_of(rows).sigma)
    assert isinstance(found.matrix("pooled"), np.memmap)


def test_chosen_images_are_the_same_for_any_batches() -> None:
    rows = draw(0, 60, 4)
    chosen = choose(60, Neighbours(neighborhood=3, comparison="<=", reference_count=20, seed=5))
    np.testing.assert_array_equal(
        chosen, choose(60, Neighbours(neighborhood=1, comparison="<", reference_count=20, seed=5))
    )
    assert len(np.unique(chosen)) == 20
    for step in (7, 60):
        found = FeatureSet(POOLED, {"manifold": chosen})
        for start in range(0, 60, step):
            found.update(batch(np.arange(start, min(start + step, 60)), rows[start : start + step]))
        np.testing.assert_array_equal(found.matrix("manifold"), rows[chosen])
        np.testing.assert_array_equal(found.indices("manifold"), chosen)
        assert found.count == found.gaussian("pooled").n == 60


def test_precision_and_recall_keep_no_second_copy_of_the_pooled_features() -> None:
    rows, layers = draw(0, 30, 4), dict.fromkeys(("pooled", "manifold"))
    found, empty = FeatureSet(POOLED, layers), FeatureSet(POOLED, layers)  # type: ignore[arg-type]
    found.update(batch(np.arange(30), rows))
    assert found.matrix("manifold") is found.matrix("pooled") and found.has_rows("manifold")
    empty.merge(found)
    assert empty.matrix("manifold") is empty.matrix("pooled")
    own = FeatureSet(POOLED, layers)  # type: ignore[arg-type]
    own.update(batch(np.arange(30), rows, manifold=2 * rows))
    np.testing.assert_array_equal(own.matrix("manifold"), 2 * rows)
    np.testing.assert_array_equal(own.matrix("pooled"), rows)


def test_shards_that_keep_something_else_do_not_merge() -> None:
    rows, chosen = draw(0, 12, 4), np.arange(0, 12, 2)
    some, others = FeatureSet(POOLED, {"pooled": chosen}), FeatureSet(POOLED, {"pooled": chosen + 1})
    for first, second in ((pooled(rows), moments(rows)), (some, others), (FeatureSet(POOLED, {"pooled": None}), some)):
        with pytest.raises(SpecError, match="features: shards of different settings cannot be merged"):
            first.merge(second)
    with pytest.raises(SpecError, match=r"lengths \{'pooled': 4\} and \{'pooled': 5\}"):
        pooled(rows).merge(pooled(draw(0, 12, 5)))
    with pytest.raises(SpecError, match=r"lengths \{'pooled': 4\} and \{'pooled': 5\}"):
        moments(rows).merge(moments(draw(0, 12, 5)))


def test_shards_of_one_and_of_two_judges_do_not_merge() -> None:
    """Precision and recall's features are the pooled ones, or a second network's."""
    rows, layers = draw(0, 30, 4), dict.fromkeys(("pooled", "manifold"))
    one, two = FeatureSet(POOLED, layers), FeatureSet(POOLED, layers)  # type: ignore[arg-type]
    one.update(batch(np.arange(15), rows[:15]))
    two.update(batch(np.arange(15, 30), rows[15:], manifold=2 * rows[15:]))
    for first, second in ((one, two), (two, one)):
        with pytest.raises(SpecError, match="manifold"):
            first.merge(second)
    assert two.matrix("manifold") is not two.matrix("pooled") and two.count == 15


def test_what_is_computed_once_is_forgotten_when_images_come() -> None:
    rows, calls = draw(0, 10, 3), []
    found = pooled(rows[:5])
    for _ in range(2):
        assert found.once("key", lambda: calls.append(1) or len(calls)) == 1  # type: ignore[func-returns-value]
    found.update(batch(np.arange(5, 10), rows[5:]))
    assert found.once("key", lambda: "new") == "new"
    assert found.gaussian("pooled").n == 10


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_are_refused(bad: float) -> None:
    rows = draw(0, 4, 3)
    rows[2, 1] = bad
    with pytest.raises(ArtifactError, match="not finite"):
        pooled(rows)


def test_what_a_set_lacks_is_said() -> None:
    rows = draw(0, 4, 3)
    with pytest.raises(ArtifactError, match="no image"):
        pooled(rows, []).matrix("pooled")
    with pytest.raises(ArtifactError, match="at least 2"):
        pooled(rows[:1]).gaussian("pooled")
    with pytest.raises(ArtifactError, match="counted twice"):
        pooled(rows, [np.array([0, 1]), np.array([1, 2])]).matrix("pooled")
    with pytest.raises(ArtifactError, match="not kept"):
        pooled(rows).matrix("logits")
    assert not moments(rows).has_rows("pooled") and moments(rows).layers == ("pooled",)
