"""FID, sFID and FID-infinity against SciPy, torch-fidelity, clean-fid and closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from cleanfid.fid import frechet_distance as clean_frechet
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.linalg import sqrtm
from torch_fidelity.metric_fid import fid_statistics_to_metric

from vqbench.errors import ArtifactError, SpecError
from vqbench.eval import frechet
from vqbench.eval.base import Batch, Features, Layer
from vqbench.eval.feature_set import FeatureSet
from vqbench.eval.fid import Fid
from vqbench.eval.fid_infinity import FidInfinity
from vqbench.eval.frechet import Frechet, Subsets, frechet_distance
from vqbench.eval.intervals import groups_of
from vqbench.eval.moments import Gaussian, gaussian_of
from vqbench.eval.protocols import Extrapolation
from vqbench.eval.sfid import Sfid

from .sets import draw, moments, pooled

INFINITY = Extrapolation(points=6, smallest=5000, seed=0)


def by_sqrtm(a: Gaussian, b: Gaussian) -> float:
    """The definition."""
    root = sqrtm(a.sigma @ b.sigma).real
    return float(((a.mu - b.mu) ** 2).sum() + np.trace(a.sigma + b.sigma - 2 * root))


def by_torch_fidelity(a: Gaussian, b: Gaussian) -> float:
    sides = [{"mu": g.mu, "sigma": g.sigma} for g in (a, b)]
    return float(fid_statistics_to_metric(*sides, verbose=False)["frechet_inception_distance"])


def by_factors(x: np.ndarray, y: np.ndarray) -> float:
    """The trace of the root as a nuclear norm of the images themselves: stable where covariances are singular."""
    a, b = (rows.astype(np.float64) for rows in (x, y))
    shift = a.mean(0) - b.mean(0)
    a, b = ((rows - rows.mean(0)) / math.sqrt(len(rows) - 1) for rows in (a, b))
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(shift @ shift + (a**2).sum() + (b**2).sum() - 2 * cross)


def two(n: int, m: int, d: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    return draw(seed, n, d), draw(seed + 1, m, d, 0.3, 1.2)


@pytest.mark.filterwarnings("ignore:The `disp` argument is deprecated:DeprecationWarning")
@pytest.mark.parametrize(("n", "m", "d"), [(300, 300, 8), (400, 900, 64), (200, 150, 128)])
def test_distance_is_scipys_torch_fidelitys_and_clean_fids(n: int, m: int, d: int) -> None:
    a, b = map(gaussian_of, two(n, m, d))
    assert frechet_distance(a, b) == pytest.approx(by_sqrtm(a, b), rel=1e-8)
    assert frechet_distance(a, b) == pytest.approx(by_torch_fidelity(a, b), rel=1e-8)
    assert frechet_distance(a, b) == pytest.approx(clean_frechet(a.mu, a.sigma, b.mu, b.sigma), rel=1e-8)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-10)


@pytest.mark.parametrize(("n", "m"), [(50, 40), (40, 50), (50, 400), (400, 50), (96, 97), (2, 2), (2, 300)])
def test_singular_covariances(n: int, m: int) -> None:
    """Fewer images than dimensions; with their rows, and from mean and covariance alone (ADM's layout)."""
    x, y = two(n, m, 96)
    a, b = gaussian_of(x), gaussian_of(y)
    expected = by_factors(x, y)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(a, b) == pytest.approx(by_torch_fidelity(a, b), rel=1e-6)
    assert frechet_distance(a.by_moments(), b.by_moments()) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(a, b.by_moments()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("small", [0, 512])
def test_large_products_agree_with_small_ones(monkeypatch: pytest.MonkeyPatch, small: int) -> None:
    monkeypatch.setattr(frechet, "SMALL", small)
    for n, m in ((60, 50), (50, 60), (60, 300), (300, 60)):
        x, y = two(n, m, 80)
        assert frechet_distance(gaussian_of(x), gaussian_of(y)) == pytest.approx(by_factors(x, y), rel=1e-7)


def test_closed_forms() -> None:
    first, second = np.array([1.0, 4.0, 9.0]), np.array([4.0, 1.0, 16.0])
    a, b = Gaussian(np.zeros(3), np.diag(first), 9), Gaussian(np.array([1.0, 2.0, 2.0]), np.diag(second), 9)
    assert frechet_distance(a, b) == pytest.approx(9 + (1 + 1 + 1), rel=1e-9)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    turned = [Gaussian(turn @ g.mu, turn @ g.sigma @ turn.T, 9) for g in (a, b)]
    assert frechet_distance(*turned) == pytest.approx(12, rel=1e-9)
    x = draw(0, 300, 16)
    scaled = gaussian_of(2 * x)  # N(2 mu, 4 S): |mu|^2 + tr S
    expected = float((x.mean(0, dtype=np.float64) ** 2).sum() + np.trace(gaussian_of(x).sigma))
    assert frechet_distance(gaussian_of(x), scaled) == pytest.approx(expected, rel=1e-9)
    moved = Gaussian(gaussian_of(x).mu + 0.5, gaussian_of(x).sigma, len(x))
    assert frechet_distance(gaussian_of(x), moved) == pytest.approx(16 * 0.25, rel=1e-9)


@pytest.mark.parametrize(("n", "d"), [(30, 64), (64, 65), (65, 64), (100, 64), (128, 64), (300, 64), (700, 600)])
@pytest.mark.parametrize("reference", [pooled, moments])
def test_fid_of_identical_sets_is_0(n: int, d: int, reference: Callable[[np.ndarray], FeatureSet]) -> None:
    """Fewer images than dimensions, up to twice as many, and more: each goes another way through Subsets."""
    rows = np.maximum(draw(4, n, d, shift=0.4), 0)  # as pooled features are
    whole = reference(rows)
    assert abs(Fid().compute(pooled(rows), whole)["fid"].value) < 1e-9
    assert Fid().compute(pooled(rows), pooled(rows[:-1]))["fid"].value > 1e-6


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.integers(2, 60), st.integers(1, 40), st.floats(-6, 6), st.booleans(), st.booleans())
def test_the_same_statistics_are_0_apart(seed: int, n: int, d: int, size: float, collapsed: bool, rows: bool) -> None:
    x = draw(seed, n, d, shift=3.0, scale=10**size)
    if collapsed:  # half of the dimensions are always 0, as after a ReLU
        x[:, : d // 2] = 0
    known = gaussian_of(x) if rows else gaussian_of(x).by_moments()
    assert 0 <= frechet_distance(known, known) <= 1e-9 * np.trace(known.sigma)
    other = gaussian_of(draw(seed + 1, n, d, scale=10**size))
    assert frechet_distance(known, other) >= 0 and frechet_distance(other, known) >= 0


def test_a_wide_spectrum_loses_no_digits() -> None:
    """Eigenvalues of the product span more than float64: their roots come from the factors."""
    rng = np.random.default_rng(0)
    turn, scale = np.linalg.qr(rng.normal(size=(60, 60)))[0], np.logspace(0, -6, 60)
    a = Gaussian(np.zeros(60), (turn * scale**2) @ turn.T, 1000)
    b = Gaussian(np.zeros(60), (turn * (3 * scale) ** 2) @ turn.T, 1000)
    assert frechet_distance(a, b) == pytest.approx(4 * (scale**2).sum(), rel=1e-9)
    assert frechet_distance(a, a) <= 1e-9 * np.trace(a.sigma)


def test_sets_without_any_spread() -> None:
    same = gaussian_of(np.ones((5, 3), np.float32))
    spread = gaussian_of(draw(0, 50, 3))
    expected = float(((spread.mu - 1) ** 2).sum() + np.trace(spread.sigma))
    for other in (same, gaussian_of(np.ones((2, 3), np.float32))):
        assert frechet_distance(other, spread) == pytest.approx(expected, rel=1e-9)
        assert frechet_distance(spread, other) == pytest.approx(expected, rel=1e-9)
        assert frechet_distance(other, same) == 0


def test_what_is_not_finite_or_of_another_length_is_refused() -> None:
    good, other = gaussian_of(draw(0, 20, 3)), gaussian_of(draw(0, 20, 4))
    bad = Gaussian(good.mu, np.where(np.eye(3)[::-1] > 0, np.nan, good.sigma), good.n)
    for a, b in ((good, bad), (bad, good)):
        with pytest.raises(ArtifactError, match="not finite"):
            frechet_distance(a, b)
    with pytest.raises(ArtifactError, match="two judges"):
        frechet_distance(good, other)
    with pytest.raises(ArtifactError, match="two judges"):
        Fid().compute(pooled(draw(0, 20, 3)), pooled(draw(0, 20, 4)))


@pytest.mark.parametrize(("n", "m", "d"), [(200, 300, 12), (60, 50, 80), (60, 300, 80), (85, 300, 80), (300, 50, 80)])
def test_subsets_have_the_distance_of_their_own_statistics(n: int, m: int, d: int) -> None:
    x, y = two(n, m, d)
    distances = Subsets(Frechet(gaussian_of(y)), gaussian_of(x), x)
    rng = np.random.default_rng(0)
    for share in (0.1, 0.4, 0.9, 1.1):
        kept = rng.random(n) < share
        expected = frechet_distance(gaussian_of(x[kept]), gaussian_of(y))
        assert distances(kept) == pytest.approx(expected, rel=1e-9)


def test_fid_with_its_interval_and_any_kind_of_reference() -> None:
    x, y = two(120, 300, 8)
    found = Fid("rfid").compute(pooled(x), pooled(y))["rfid"]
    assert found.value == pytest.approx(by_sqrtm(gaussian_of(x), gaussian_of(y)), rel=1e-8)
    assert Fid().compute(pooled(x), moments(y))["fid"] == pytest.approx(found, rel=1e-9)
    without = [by_sqrtm(gaussian_of(x[groups_of(np.arange(120)) != g]), gaussian_of(y)) for g in range(10)]
    half = stats.t.ppf(0.975, 9) * np.std(without) * 3  # sqrt((10 - 1) / 10 * 10) = 3
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), rel=1e-6)
    assert found.n == 120
    small = Fid().compute(pooled(x[:19]), pooled(y))["fid"]
    assert small.value > 0 and math.isnan(small.low) and math.isnan(small.high)


def test_the_interval_of_fid_is_as_wide_as_fid_scatters() -> None:
    y, width = moments(draw(0, 20_000, 6)), []
    values = []
    for seed in range(60):
        found = Fid().compute(pooled(draw(seed + 1, 200, 6, 0.5)), y)["fid"]
        values.append(found.value)
        width.append(found.high - found.low)
    assert np.mean(width) == pytest.approx(2 * stats.t.ppf(0.975, 9) * np.std(values, ddof=1), rel=0.3)


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(40)), st.integers(1, 39), st.sampled_from([4, 60]))
def test_fid_does_not_depend_on_order_or_shards(order: list[int], cut: int, d: int) -> None:
    x, y = two(40, 50, d)
    expected = Fid().compute(pooled(x), pooled(y))["fid"]
    one, two_ = pooled(x, [np.array(order[:cut])]), pooled(x, [np.array(order[cut:])])
    one.merge(two_)
    assert Fid().compute(one, pooled(y))["fid"] == expected


def test_the_factor_of_the_reference_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, original = [], frechet._factor
    monkeypatch.setattr(frechet, "_factor", lambda sigma: calls.append(1) or original(sigma))
    generated, reference = pooled(draw(0, 200, 5)), moments(draw(1, 200, 5))
    Fid().compute(generated, reference)
    FidInfinity(INFINITY).compute(generated, reference)
    assert len(calls) == 1
    Fid().compute(generated, moments(draw(2, 200, 5)))
    assert len(calls) == 2


def test_sfid_reads_the_spatial_layer() -> None:
    x, y = two(50, 60, 4)
    layer: Layer = "spatial"
    sides = []
    for rows in (x, y):
        found = FeatureSet(frozenset({layer}), {layer: None})
        flat = pooled(rows).matrix("pooled")
        found.update(
            Batch(np.arange(len(rows)), features=Features(torch.zeros(len(rows), 1), None, torch.from_numpy(flat)))
        )
        sides.append(found)
    assert Sfid().compute(*sides)["sfid"] == Fid().compute(pooled(x), pooled(y))["fid"]


def test_fid_infinity_is_a_line_in_1_over_n() -> None:
    x, y = two(400, 900, 12)
    metric, generated = FidInfinity(INFINITY), pooled(x)
    sizes, values = metric.curve(generated, pooled(y))
    np.testing.assert_array_equal(sizes, np.linspace(40, 400, 6).astype(int))  # a tenth, below 5,000
    assert values[-1] == pytest.approx(Fid().compute(generated, pooled(y))["fid"].value, rel=1e-10)
    design = np.stack([np.ones(6), 1 / sizes], 1)
    (intercept, _), residual, *_ = np.linalg.lstsq(design, values, rcond=None)
    found = metric.compute(generated, pooled(y))["fid_infinity"]
    assert found.value == pytest.approx(intercept, rel=1e-9)
    error = math.sqrt(residual[0] / 4 * np.linalg.inv(design.T @ design)[0, 0])
    assert found.high - found.value == pytest.approx(stats.t.ppf(0.975, 4) * error, rel=1e-9)
    assert found == FidInfinity(INFINITY).compute(pooled(x, [np.arange(400)[::-1]]), pooled(y))["fid_infinity"]


def test_fid_infinity_takes_the_bias_away() -> None:
    reference, biased, found = moments(draw(0, 20_000, 40), step=500), [], []
    for seed in range(5):
        generated = pooled(draw(seed + 1, 600, 40))  # of the same distribution: the truth is 0
        biased.append(Fid().compute(generated, reference)["fid"].value)
        found.append(FidInfinity(INFINITY).compute(generated, reference)["fid_infinity"].value)
    assert abs(np.mean(found)) < 0.2 * np.mean(biased)
    assert np.mean(biased) > 0


def test_fid_infinity_of_identical_sets_is_that_of_the_fit() -> None:
    """As docs/evaluation.md says: subsets differ from the whole set, so the line does not go through 0."""
    rows = draw(3, 400, 8)
    found = FidInfinity(INFINITY).compute(pooled(rows), pooled(rows))["fid_infinity"].value
    assert 0 < abs(found) < FidInfinity(INFINITY).compute(pooled(rows), pooled(rows + 1))["fid_infinity"].value / 20


def test_fid_infinity_needs_images() -> None:
    with pytest.raises(SpecError, match="at least 20"):
        FidInfinity(INFINITY).compute(pooled(draw(0, 19, 3)), pooled(draw(1, 50, 3)))
