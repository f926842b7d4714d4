"""FID, Inception Score, precision and recall against SciPy, closed forms and brute force in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cleanfid.fid import frechet_distance as clean_frechet
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from torch_fidelity.metric_fid import fid_features_to_statistics

from vqbench.errors import ArtifactError, SpecError
from vqbench.eval.features import Features
from vqbench.eval.fid import Fid, Gaussian, Moments, frechet_distance
from vqbench.eval.inception_score import InceptionScore
from vqbench.eval.precision_recall import PrecisionRecall
from vqbench.eval.protocols import Neighbours, Splits

SPLITS = Splits(splits=4, shuffle=True, seed=2020)
NEAR = Neighbours(neighborhood=3, reference_count=100, seed=0, batch=37)


def gaussian(features: np.ndarray) -> Gaussian:
    moments = Moments()
    moments.update(torch.from_numpy(features))
    return moments.gaussian()


def draw(seed: int, n: int, d: int, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(d, d))
    return (rng.normal(size=(n, d)) @ mixing + shift).astype(np.float32)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 40), st.integers(1, 39), st.floats(0, 1e4))
def test_moments_do_not_depend_on_batches(seed: int, n: int, cut: int, shift: float) -> None:
    features = draw(seed, n, 5, shift)
    whole, parts = gaussian(features), Moments()
    for part in (features[: min(cut, n - 1)], features[min(cut, n - 1) :]):
        parts.update(torch.from_numpy(part))
    exact = features.astype(np.float64)
    np.testing.assert_allclose(parts.gaussian().mu, exact.mean(0), rtol=1e-12, atol=1e-10)
    np.testing.assert_allclose(parts.gaussian().sigma, np.cov(exact, rowvar=False), rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(whole.sigma, parts.gaussian().sigma, rtol=1e-8, atol=1e-8)


def test_moments_are_torch_fidelitys_statistics() -> None:
    features = draw(0, 200, 6, 3.0)
    theirs, ours = fid_features_to_statistics(torch.from_numpy(features)), gaussian(features)
    np.testing.assert_allclose(ours.mu, theirs["mu"], rtol=1e-5)
    np.testing.assert_allclose(ours.sigma, theirs["sigma"], rtol=1e-9)


@pytest.mark.filterwarnings("ignore:The `disp` argument is deprecated:DeprecationWarning")
def test_fid_is_scipys_and_clean_fids() -> None:
    a, b = gaussian(draw(1, 300, 8)), gaussian(draw(2, 300, 8, 0.3) * 1.2)
    root = sqrtm(a.sigma @ b.sigma).real
    expected = ((a.mu - b.mu) ** 2).sum() + np.trace(a.sigma + b.sigma - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-7)
    assert frechet_distance(a, b) == pytest.approx(clean_frechet(*a[:2], *b[:2]), rel=1e-7)


def test_fid_of_diagonal_gaussians_in_closed_form() -> None:
    first, second = np.array([1.0, 4.0, 9.0]), np.array([4.0, 1.0, 16.0])
    a, b = Gaussian(np.zeros(3), np.diag(first), 9), Gaussian(np.array([1.0, 2.0, 2.0]), np.diag(second), 9)
    assert frechet_distance(a, b) == pytest.approx(9 + (1 + 1 + 1))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))


def test_fid_of_singular_covariances_is_small_finite_and_not_negative() -> None:
    few = draw(3, 20, 64)
    metric = Fid(gaussian(few), "rfid")
    metric.update(Features(torch.from_numpy(few[:7]), None))
    metric.update(Features(torch.from_numpy(few[7:]), None))
    same, scale = metric.compute()["rfid"], np.trace(gaussian(few).sigma)
    assert 0 <= same < 1e-5 * scale
    other = frechet_distance(gaussian(few), gaussian(draw(4, 20, 64)))
    assert np.isfinite(other) and 1e-2 * scale < other < 4 * scale
    assert metric.count == 20


def test_fid_refuses_what_has_no_covariance() -> None:
    with pytest.raises(ArtifactError, match="at least 2"):
        gaussian(draw(0, 1, 3))
    with pytest.raises(ArtifactError, match="not finite"):
        gaussian(np.array([[1.0, np.nan], [0.0, 1.0]]))


def inception_score(logits: np.ndarray, protocol: Splits = SPLITS) -> float:
    metric = InceptionScore(protocol)
    for part in np.array_split(logits, 3):
        metric.update(Features(torch.zeros(len(part), 1), torch.from_numpy(part)))
    return metric.compute()["is"]


def test_inception_score_is_numpys() -> None:
    logits = np.random.default_rng(0).normal(0, 3, (101, 10)).astype(np.float32)
    order = np.random.RandomState(2020).permutation(101)
    p = np.exp(logits.astype(float))[order]
    p /= p.sum(1, keepdims=True)
    scores = []
    for i in range(4):
        part = p[i * 101 // 4 : (i + 1) * 101 // 4]
        scores.append(np.exp((part * (np.log(part) - np.log(part.mean(0)))).sum(1).mean()))
    assert inception_score(logits) == pytest.approx(np.mean(scores), rel=1e-9)


def test_inception_score_of_sorted_samples_needs_the_shuffle() -> None:
    labels = np.repeat(np.arange(8), 50)
    logits = 20 * np.eye(8, dtype=np.float32)[labels]
    mixed = logits[np.random.default_rng(1).permutation(400)]
    assert inception_score(logits) == pytest.approx(inception_score(mixed), rel=0.05)
    assert inception_score(logits) > 7.5
    assert inception_score(logits, SPLITS.model_copy(update={"shuffle": False})) < 2.1


def test_inception_score_survives_underflow() -> None:
    logits = np.random.default_rng(0).normal(0, 1, (40, 5)).astype(np.float32)
    dead = np.concatenate([logits, np.full((40, 1), -5000, np.float32)], axis=1)
    assert inception_score(dead) == pytest.approx(inception_score(logits), rel=1e-9)
    with pytest.raises(SpecError, match="splits"):
        inception_score(logits[:3])


def brute_precision_recall(a: np.ndarray, b: np.ndarray, k: int) -> tuple[float, float]:
    a, b = a.astype(np.float64), b.astype(np.float64)
    distance = np.linalg.norm(a[:, None] - b[None], axis=2)
    radius = [np.sort(np.linalg.norm(x[:, None] - x[None], axis=2), axis=1)[:, k] for x in (a, b)]
    return float((distance <= radius[1]).any(1).mean()), float((distance <= radius[0][:, None]).any(0).mean())


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_precision_recall_is_brute_force(offset: float) -> None:
    """Also far from the origin, where float32 distances by matmul cancel unless the features are centred."""
    a, b = draw(5, 120, 6, 0.8) * 0.8 + np.float32(offset), draw(6, 90, 6) + np.float32(offset)
    metric = PrecisionRecall(b, NEAR)
    for part in np.array_split(a, 4):
        metric.update(Features(torch.from_numpy(part), None))
    precision, recall = brute_precision_recall(a, b, 3)
    assert metric.compute() == {"precision": pytest.approx(precision), "recall": pytest.approx(recall)}
    assert 0.2 < recall < precision < 1


def test_precision_recall_of_sets_apart_and_too_small() -> None:
    apart = PrecisionRecall(draw(7, 30, 4), NEAR)
    apart.update(Features(torch.from_numpy(draw(8, 30, 4, 500.0)), None))
    assert apart.compute() == {"precision": 0.0, "recall": 0.0}
    small = PrecisionRecall(draw(7, 3, 4), NEAR)
    small.update(Features(torch.from_numpy(draw(8, 30, 4)), None))
    with pytest.raises(SpecError, match="more than 3"):
        small.compute()
