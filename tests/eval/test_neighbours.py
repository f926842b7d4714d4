"""Precision, recall, density and coverage: counts equal to brute force in float64, whatever the features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import pairwise_distances
from torch_fidelity.metric_prc import prc_features_to_metric

from vqbench.errors import ArtifactError, SpecError
from vqbench.eval import distances, neighbours
from vqbench.eval.density_coverage import DensityCoverage
from vqbench.eval.distances import Blocks
from vqbench.eval.feature_set import draw as chosen
from vqbench.eval.intervals import wilson
from vqbench.eval.neighbours import Counts, Distinct, ball_counts
from vqbench.eval.precision_recall import PrecisionRecall
from vqbench.eval.protocols import Neighbours

from .sets import draw, pooled

CPU = torch.device("cpu")
NEAR = Neighbours(neighborhood=3, comparison="<=", reference_count=None, seed=0)


def squared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.stack([((b.astype(np.float64) - row) ** 2).sum(1) for row in a.astype(np.float64)])


def brute(a: np.ndarray, b: np.ndarray, k: int, closed: bool) -> Counts:
    """All pairs in float64."""
    pairs = squared(a, b)
    of_a, of_b = (np.sort(squared(x, x), 1)[:, k] for x in (a, b))  # rank 0 is the image itself
    compare = np.less_equal if closed else np.less
    around, recalled = compare(pairs, of_b), compare(pairs, of_a[:, None])
    return Counts(
        int(around.any(1).sum()), int(recalled.any(0).sum()), int(around.sum()), int(around.any(0).sum()), around.sum(1)
    )


def check(a: np.ndarray, b: np.ndarray, k: int = 3) -> None:
    a, b = a.astype(np.float32), b.astype(np.float32)
    for closed in (True, False):
        found, expected = ball_counts(a, b, k, closed, CPU), brute(a, b, k, closed)
        assert found[:4] == expected[:4]
        np.testing.assert_array_equal(found.per_image, expected.per_image)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks smaller than the sets, so that few images go through many blocks."""
    monkeypatch.setattr(distances, "ROWS", 13)
    monkeypatch.setattr(distances, "COLUMNS", 22)
    monkeypatch.setattr(neighbours, "SAMPLE", 5)


@pytest.mark.usefixtures("small_blocks")
@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 9999), st.integers(6, 70), st.integers(6, 70), st.integers(1, 9), st.integers(1, 5),
    st.sampled_from(["normal", "far", "lattice", "copies", "modes", "shared"]),
)  # fmt: skip
def test_counts_are_brute_force(seed: int, n: int, m: int, d: int, k: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(n, d)), rng.normal(0.3, 1, (m, d))
    if kind == "far":
        a, b = a + 1e4, b + 1e4
    elif kind == "lattice":  # most distances tie
        a, b = rng.integers(0, 3, (n, d)), rng.integers(0, 3, (m, d))
    elif kind == "copies":
        a, b = a[rng.integers(0, 5, n)], b[rng.integers(0, 5, m)]
    elif kind == "modes":  # nearer to each other than float32 can tell at that distance from the mean
        a, b = (np.where(rng.random((len(x), 1)) < 0.5, -50, 50) + 1e-5 * x for x in (a, b))
    elif kind == "shared":
        b[: m // 2] = a[rng.integers(0, n, m // 2)]
    check(a, b, k)


@pytest.mark.parametrize(("n", "m", "d"), [(1300, 1100, 2), (1300, 1100, 32), (200, 300, 512)])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_counts_of_more_images_than_a_block(n: int, m: int, d: int, offset: float) -> None:
    check(draw(5, n, d, 0.1) + np.float32(offset), draw(6, m, d) + np.float32(offset))


def test_collapsed_sets() -> None:
    spread, point = draw(0, 40, 6), np.ones((50, 6))
    check(point, spread)
    check(spread, point)
    check(point, point)
    check(np.concatenate([point, spread[:20]]), spread)
    assert ball_counts(point.astype(np.float32), point.astype(np.float32), 3, True, CPU)[:2] == (50, 50)
    assert ball_counts(point.astype(np.float32), point.astype(np.float32), 3, False, CPU)[:2] == (0, 0)


def test_crowded_images_are_decided_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modes of more images than there is room for candidates."""
    monkeypatch.setattr(neighbours, "CROWD", 4)
    rng = np.random.default_rng(0)
    a, b = (np.where(rng.random((n, 1)) < 0.5, -50, 50) + 1e-5 * rng.normal(size=(n, 4)) for n in (150, 120))
    check(a, b)
    check(rng.integers(0, 2, (150, 7)), rng.integers(0, 2, (120, 7)))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 9999), st.integers(1, 300), st.floats(-3, 3), st.floats(0, 1e3))
def test_the_bound_of_the_error_holds(seed: int, d: int, size: float, offset: float) -> None:
    a = draw(seed, 30, d, offset, 10**size)
    b = draw(seed + 1, 40, d, offset, 10**size)
    (block,) = Blocks(a, b, CPU)
    error = np.abs(block.halves.numpy() - squared(a, b) / 2)
    assert (error <= block.error[0][:, None]).all() and (error <= block.error[1]).all()


def test_distinct_rows_keep_the_order_of_images() -> None:
    rows = draw(0, 6, 3)[[2, 0, 2, 2, 5, 0]]
    found = Distinct(rows)
    np.testing.assert_array_equal(found.rows, rows[[0, 1, 4]])
    np.testing.assert_array_equal(found.counts, [3, 2, 1])
    np.testing.assert_array_equal(found.rows[found.inverse], rows)
    apart = draw(0, 6, 3)
    assert Distinct(apart).rows is apart


def test_precision_and_recall_are_torch_fidelitys() -> None:
    a, b = draw(1, 150, 12, 0.3, 0.8), draw(2, 200, 12)
    theirs = prc_features_to_metric(torch.from_numpy(a), torch.from_numpy(b), verbose=False)
    found = PrecisionRecall(NEAR).compute(pooled(a), pooled(b))
    assert found["precision"].value == pytest.approx(theirs["precision"], abs=1e-6)
    assert found["recall"].value == pytest.approx(theirs["recall"], abs=1e-6)
    assert 0.1 < found["recall"].value < found["precision"].value < 1
    assert found["precision"][1:3] == wilson(round(150 * found["precision"].value), 150)
    assert found["precision"].n == found["recall"].n == 150


@pytest.mark.parametrize("closed", [True, False])
def test_swapping_the_sets_swaps_precision_and_recall(closed: bool) -> None:
    near = NEAR.model_copy(update={"comparison": "<=" if closed else "<"})
    a, b = np.round(draw(1, 80, 3, 0.5), 1), np.round(draw(2, 90, 3), 1)  # rounded: with ties
    one, two = (PrecisionRecall(near).compute(pooled(x), pooled(y)) for x, y in ((a, b), (b, a)))
    assert one["precision"].value == two["recall"].value != one["recall"].value == two["precision"].value


def test_identical_sets_and_sets_apart() -> None:
    a = draw(0, 50, 7)
    same, apart = pooled(a), pooled(a + np.float32(100))
    assert [e.value for e in PrecisionRecall(NEAR).compute(pooled(a), same).values()] == [1, 1]
    assert [e.value for e in PrecisionRecall(NEAR).compute(pooled(a), apart).values()] == [0, 0]
    found = DensityCoverage(NEAR).compute(pooled(a), same)
    assert found["coverage"].value == 1 and found["density"].value == pytest.approx((50 * 4) / (3 * 50))
    assert [e.value for e in DensityCoverage(NEAR).compute(pooled(a), apart).values()] == [0, 0]


def test_density_and_coverage_are_prdcs() -> None:
    """The formulas of clovaai/generative-evaluation-prdc, with scikit-learn's distances as there."""
    fake, real, k = draw(1, 120, 9, 0.3).astype(np.float64), draw(2, 90, 9).astype(np.float64), 5
    radius = np.partition(pairwise_distances(real), k, axis=-1)[:, k]
    distance = pairwise_distances(real, fake)
    density = (1.0 / k) * (distance < radius[:, None]).sum(0).mean()
    coverage = (distance.min(1) < radius).mean()
    near = Neighbours(neighborhood=k, comparison="<", reference_count=None, seed=0)
    found = DensityCoverage(near).compute(pooled(fake.astype(np.float32)), pooled(real.astype(np.float32)))
    assert found["density"].value == pytest.approx(density, rel=1e-12)
    assert found["coverage"].value == pytest.approx(coverage, rel=1e-12)
    spread = (distance < radius[:, None]).sum(0) / k
    half = 1.959963984540054 * spread.std(ddof=1) / np.sqrt(120)
    assert found["density"].high - found["density"].value == pytest.approx(half, rel=1e-9)


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(30)), st.integers(1, 29))
def test_values_do_not_depend_on_order_or_shards(order: list[int], cut: int) -> None:
    a, b = draw(1, 30, 4), pooled(draw(2, 40, 4))
    one, two = pooled(a, [np.array(order[:cut])]), pooled(a, [np.array(order[cut:])])
    one.merge(two)
    assert PrecisionRecall(NEAR).compute(one, b) == PrecisionRecall(NEAR).compute(pooled(a), b)
    assert DensityCoverage(NEAR).compute(one, b) == DensityCoverage(NEAR).compute(pooled(a), b)


def test_balls_are_counted_once_for_all_four(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, original = [], neighbours.ball_counts
    monkeypatch.setattr(neighbours, "ball_counts", lambda *a: calls.append(1) or original(*a))
    a, b = pooled(draw(1, 30, 4)), pooled(draw(2, 40, 4))
    for metric in (PrecisionRecall(NEAR), DensityCoverage(NEAR)):
        metric.compute(a, b)
    assert len(calls) == 1
    DensityCoverage(NEAR.model_copy(update={"comparison": "<"})).compute(a, b)
    PrecisionRecall(NEAR).compute(a, pooled(draw(3, 40, 4)))
    assert len(calls) == 3


@pytest.mark.parametrize(("n", "m"), [(30, 90), (90, 30), (40, 40)])
def test_equal_counts_compare_as_many_of_each(n: int, m: int) -> None:
    """As dgm-eval does: the larger set is drawn from, and the count that goes with a number is that of those drawn."""
    near, a, b = NEAR.model_copy(update={"equal_counts": True}), draw(1, n, 5), draw(2, m, 5, 0.3)
    size = min(n, m)
    some_a, some_b = (x[chosen(len(x), size, 0, "equal-counts")] if len(x) > size else x for x in (a, b))
    expected = brute(some_a, some_b, 3, True)
    found = PrecisionRecall(near).compute(pooled(a), pooled(b)) | DensityCoverage(near).compute(pooled(a), pooled(b))
    assert found["precision"].value == expected.precise / size and found["recall"].value == expected.recalled / size
    assert found["density"].value == expected.inside / (3 * size) and found["coverage"].value == expected.covered / size
    assert {e.n for e in found.values()} == {size}
    assert (PrecisionRecall(NEAR).compute(pooled(a), pooled(b))["recall"] == found["recall"]) == (n == m)


def test_products_are_of_full_precision() -> None:
    torch.set_float32_matmul_precision("medium")
    try:
        check(draw(5, 60, 8), draw(6, 50, 8))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_sets_that_do_not_fit_are_refused() -> None:
    for a, b in ((3, 30), (30, 3)):
        with pytest.raises(SpecError, match="more than 3"):
            PrecisionRecall(NEAR).compute(pooled(draw(0, a, 4)), pooled(draw(1, b, 4)))
    with pytest.raises(ArtifactError, match="two judges"):
        DensityCoverage(NEAR).compute(pooled(draw(0, 9, 4)), pooled(draw(1, 9, 5)))
