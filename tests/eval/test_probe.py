"""The linear probe: separable features are read off, noise is not, and the same seed gives the same bits.

Also the step ``tokens``, which writes the features that it reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from vqbench.artifacts import read_json
from vqbench.errors import ArtifactError, Diverged
from vqbench.eval import probe_fit
from vqbench.eval.probe import run, top_one
from vqbench.eval.probe_fit import Labelled, fit
from vqbench.eval.protocols import ProbeRecipe, load_protocol
from vqbench.specs import TokensSpec
from vqbench.tokenizers import encoding

RECIPE = load_protocol("demo").probe.model_copy(update={"epochs": 10, "batch": 64})
LBFGS = {"pooling": "mean", "optimizer": "lbfgs", "weight_decay": 1e-3, "epochs": 500, "seed": 0}
CPU = torch.device("cpu")


def blobs(seed: int, n: int, spread: float) -> Labelled:
    """Four classes at fixed centres; `spread` 0 is noise. One axis is a thousand times the others."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, n)
    centres = np.random.default_rng(42).normal(size=(4, 8))
    scale = np.array([1000.0, *[1.0] * 7])
    return Labelled(((spread * centres[labels] + rng.normal(size=(n, 8))) * scale).astype(np.float32), labels)


def score(train: Labelled, test: Labelled, recipe: ProbeRecipe = RECIPE) -> float:
    """Top-1 in [0, 1]."""
    return top_one(fit(train, 4, recipe, CPU, "probe").model, test, 50, CPU).value / 100


def test_probe_reads_separable_features_as_well_as_logistic_regression() -> None:
    train, test = blobs(0, 600, 1.5), blobs(1, 400, 1.5)
    mean, std = train.features.mean(0), train.features.std(0)
    theirs = LogisticRegression().fit((train.features - mean) / std, train.labels)
    expected = theirs.score((test.features - mean) / std, test.labels)
    assert expected > 0.8
    assert score(train, test) == pytest.approx(expected, abs=0.03)


def test_probe_is_at_chance_on_noise() -> None:
    assert score(blobs(2, 600, 0.0), blobs(3, 1000, 0.0)) == pytest.approx(0.25, abs=0.06)


def test_probe_is_seeded_and_leaves_the_global_generator_out_of_it() -> None:
    train = blobs(0, 100, 1.0)
    torch.manual_seed(1)
    first = fit(train, 4, RECIPE, CPU, "probe").model.state_dict()
    torch.manual_seed(2)
    second = fit(train, 4, RECIPE, CPU, "probe").model.state_dict()
    assert all(torch.equal(first[k], second[k]) for k in first)
    other = fit(train, 4, RECIPE.model_copy(update={"seed": 5}), CPU, "probe").model.state_dict()
    assert any(not torch.equal(first[k], other[k]) for k in first)


def test_probe_is_one_linear_layer_on_standardised_features() -> None:
    """No affine batch norm, and running statistics: a score does not depend on the batch it is taken in."""
    model, test = fit(blobs(0, 200, 1.0), 4, RECIPE, CPU, "probe").model, blobs(1, 60, 1.0)
    assert sum(p.numel() for p in model.parameters()) == 8 * 4 + 4
    assert top_one(model, test, 1, CPU) == top_one(model, test, 60, CPU)


@pytest.mark.parametrize("optimizer", ["adamw", "lbfgs"])
def test_features_that_are_not_finite_stop_the_probe(optimizer: str) -> None:
    train = blobs(0, 100, 1.0)
    train.features[3, 2] = np.inf
    with pytest.raises(Diverged, match="not finite"):
        fit(train, 4, RECIPE if optimizer == "adamw" else ProbeRecipe(**LBFGS), CPU, "probe")


@pytest.mark.parametrize("decay", [1e-1, 1e-3])
def test_lbfgs_finds_scikit_learns_solution(decay: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where features are read in many parts."""
    monkeypatch.setattr(probe_fit, "BYTES", 8 * 8 * 37)
    train, test = blobs(0, 300, 0.7), blobs(1, 400, 0.7)
    fitted = fit(train, 4, ProbeRecipe(**LBFGS | {"weight_decay": decay}), CPU, "probe")
    wide = train.features.astype(np.float64)
    mean, deviation = wide.mean(0), np.sqrt(wide.var(0) + 1e-5)
    theirs = LogisticRegression(C=1 / (300 * decay), tol=1e-10, max_iter=5000)
    theirs.fit((wide - mean) / deviation, train.labels)
    state = fitted.model.state_dict()
    np.testing.assert_allclose(state["1.weight"].numpy(), theirs.coef_, atol=2e-4)
    np.testing.assert_allclose(state["1.bias"].numpy(), theirs.intercept_, atol=2e-4)
    assert fitted.converged and 1 < fitted.steps < 500
    shares = theirs.predict_proba((test.features - mean) / deviation)
    ours = torch.softmax(fitted.model(torch.from_numpy(test.features).double()), 1).detach().numpy()
    np.testing.assert_allclose(ours, shares, atol=2e-4)


def test_lbfgs_says_when_it_did_not_converge() -> None:
    fitted = fit(blobs(0, 300, 0.7), 4, ProbeRecipe(**LBFGS | {"epochs": 2}), CPU, "probe")
    assert fitted.converged is False and fitted.steps == 2


def test_interval_is_wilsons() -> None:
    """Of 40 right among 50, by the formula."""
    model = torch.nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.eye(2))
    data = Labelled(np.tile(np.array([[1.0, 0.0]], np.float32), (50, 1)), np.array([0] * 40 + [1] * 10))
    found, z, p, n = top_one(model, data, 7, CPU), 1.959963984540054, 0.8, 50
    centre, half = p + z * z / 2 / n, z * math.sqrt(p * (1 - p) / n + z * z / 4 / n / n)
    bounds = (100 * (centre - half) / (1 + z * z / n), 100 * (centre + half) / (1 + z * z / n))
    assert found == pytest.approx((80.0, *bounds, 50))


def _tokens(before: Labelled, after: Labelled) -> dict[str, np.ndarray]:
    return {"features_before": before.features, "features_after": after.features, "labels": before.labels}


def test_step_scores_before_and_after(world: Callable[..., Any], demo_protocol: dict[str, Any]) -> None:
    train, test = _tokens(blobs(0, 300, 1.5), blobs(4, 300, 0.0)), _tokens(blobs(1, 200, 1.5), blobs(5, 200, 0.0))
    spec = {"tokenizer": "t", "protocol": demo_protocol, "num_classes": 4}
    job = world(spec, tokens__t__photos__train=train, tokens__t__photos__validation=test)
    assert run(job) == {"images": 200, "protocol": "demo"}
    found = read_json(job.store / "scores.json")["metrics"]
    assert set(found) == {"probe_before", "probe_after"}
    assert found["probe_before"]["value"] > 75 > 45 > found["probe_after"]["value"]
    assert (found["probe_before"]["unit"], found["probe_before"]["n"]) == ("%", 200)
    assert found["probe_before"]["low"] < found["probe_before"]["value"] < found["probe_before"]["high"]
    recipe = demo_protocol["probe"]
    steps = recipe["epochs"] * (300 // recipe["batch"])
    fits = read_json(job.store / "scores.json")["probes"]
    assert fits == {place: {"steps": steps, "converged": None} for place in ("before", "after")}


def test_step_fits_by_lbfgs_where_the_protocol_says_so(
    world: Callable[..., Any], demo_protocol: dict[str, Any]
) -> None:
    train, test = _tokens(blobs(0, 300, 1.5), blobs(4, 300, 1.5)), _tokens(blobs(1, 200, 1.5), blobs(5, 200, 0.0))
    spec = {"tokenizer": "t", "protocol": demo_protocol | {"probe": LBFGS}, "num_classes": 4}
    job = world(spec, tokens__t__photos__train=train, tokens__t__photos__validation=test)
    run(job)
    found = read_json(job.store / "scores.json")
    assert found["metrics"]["probe_before"]["value"] > 75 > 45 > found["metrics"]["probe_after"]["value"]
    assert found["probes"]["before"]["converged"] is True


def test_step_refuses_features_pooled_otherwise(world: Callable[..., Any], demo_protocol: dict[str, Any]) -> None:
    train = _tokens(blobs(0, 50, 1.0), blobs(0, 50, 1.0))
    spec = {"tokenizer": "t", "num_classes": 4,
            "protocol": demo_protocol | {"probe": demo_protocol["probe"] | {"pooling": "flat"}}}  # fmt: skip
    with pytest.raises(ArtifactError, match="has 'mean' features, the protocol's probe reads 'flat'"):
        run(world(spec, tokens__t__photos__train=train, tokens__t__photos__validation=train))


def test_step_refuses_labels_of_another_set(world: Callable[..., Any], demo_protocol: dict[str, Any]) -> None:
    train = _tokens(blobs(0, 50, 1.0), blobs(0, 50, 1.0)) | {"labels": np.zeros(49, np.int64)}
    spec = {"tokenizer": "t", "protocol": demo_protocol, "num_classes": 4}
    with pytest.raises(ArtifactError, match="50 features, 49 labels"):
        run(world(spec, tokens__t__photos__train=train, tokens__t__photos__validation=train))


class Halves:
    """A tokenizer that halves: latents are the image's 2x2 block means, ids say which are bright."""

    def encode(self, images: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(images, 8)  # (B, 3, 2, 2)

    def quantize(self, latents: Tensor) -> Any:
        bright = latents.mean(1) > 0  # (B, 2, 2)
        return SimpleNamespace(ids=bright.flatten(1)[..., None].long(), latents=latents / 2)


class Pixels:
    labels = np.arange(5)

    def __init__(self) -> None:
        self.pixels = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3)).astype(np.uint8)

    def __len__(self) -> int:
        return 5

    def batch(self, start: int, size: int) -> np.ndarray:
        return self.pixels[start : start + size]


@pytest.mark.parametrize("pooling", ["mean", "flat"])
def test_tokens_step_writes_ids_and_latents(pooling: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = Pixels()
    monkeypatch.setattr(encoding, "open_images", lambda *_: images)
    monkeypatch.setattr(encoding, "open_tokenizer", lambda *_: Halves())
    monkeypatch.setattr(encoding, "device", lambda: CPU)
    spec = TokensSpec(tokenizer="t", dataset="photos", split="train", views=2, pooling=pooling, batch=2)
    bench = SimpleNamespace(
        datasets={"photos": None}, tokenizers={"t": SimpleNamespace(tokens=SimpleNamespace(num_codes=2))}
    )
    job: Any = SimpleNamespace(
        spec=spec, bench=bench, store=tmp_path, upstream=lambda *_: None, key=("tokens", "t/photos/train")
    )
    assert encoding.run(job) == {"images": 5, "views": 2, "codes": 2, "pooling": pooling}
    both = np.concatenate([images.pixels, images.pixels[:, :, ::-1]]) / 127.5 - 1  # (10, 16, 16, 3)
    blocks = both.reshape(10, 2, 8, 2, 8, 3).mean((2, 4)).transpose(0, 3, 1, 2)  # (10, 3, 2, 2)
    expected = blocks.reshape(10, 12) if pooling == "flat" else blocks.mean((2, 3))
    before, after, ids, labels = (
        np.load(tmp_path / f"{n}.npy") for n in ("features_before", "features_after", "ids", "labels")
    )
    np.testing.assert_allclose(before, expected, atol=1e-6)
    np.testing.assert_allclose(after, expected / 2, atol=1e-6)
    assert before.dtype == after.dtype == np.float32 and ids.dtype == np.int32
    np.testing.assert_array_equal(ids, (blocks.mean(1) > 0).reshape(10, 4, 1))
    np.testing.assert_array_equal(labels, np.tile(np.arange(5), 2))
    np.save(tmp_path / "again.npy", before)  # the very bytes that NumPy writes
    assert (tmp_path / "again.npy").read_bytes() == (tmp_path / "features_before.npy").read_bytes()
