"""The linear probe: separable features are read off, noise is not, and the same seed gives the same bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from vqbench.artifacts import read_json
from vqbench.errors import ArtifactError, Diverged
from vqbench.eval.probe import Labelled, accuracy, fit, run
from vqbench.eval.protocols import load_protocol

RECIPE = load_protocol("demo").probe.model_copy(update={"epochs": 10, "batch": 64})
CPU = torch.device("cpu")


def blobs(seed: int, n: int, spread: float) -> Labelled:
    """Four classes at fixed centres; `spread` 0 is noise. One axis is a thousand times the others."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, n)
    centres = np.random.default_rng(42).normal(size=(4, 8))
    scale = np.array([1000.0, *[1.0] * 7])
    return Labelled(((spread * centres[labels] + rng.normal(size=(n, 8))) * scale).astype(np.float32), labels)


def score(train: Labelled, test: Labelled) -> float:
    return accuracy(fit(train, 4, RECIPE, CPU, "probe"), test, 50, CPU)


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
    first = fit(train, 4, RECIPE, CPU, "probe").state_dict()
    torch.manual_seed(2)
    second = fit(train, 4, RECIPE, CPU, "probe").state_dict()
    assert all(torch.equal(first[k], second[k]) for k in first)
    other = fit(train, 4, RECIPE.model_copy(update={"seed": 5}), CPU, "probe").state_dict()
    assert any(not torch.equal(first[k], other[k]) for k in first)


def test_probe_is_one_linear_layer_on_standardised_features() -> None:
    """No affine batch norm, and running statistics: a score does not depend on the batch it is taken in."""
    model, test = fit(blobs(0, 200, 1.0), 4, RECIPE, CPU, "probe"), blobs(1, 60, 1.0)
    assert sum(p.numel() for p in model.parameters()) == 8 * 4 + 4
    assert accuracy(model, test, 1, CPU) == accuracy(model, test, 60, CPU)


def test_features_that_are_not_finite_stop_the_probe() -> None:
    train = blobs(0, 100, 1.0)
    train.features[3, 2] = np.inf
    with pytest.raises(Diverged, match="not finite"):
        fit(train, 4, RECIPE, CPU, "probe")


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


def test_step_refuses_labels_of_another_set(world: Callable[..., Any], demo_protocol: dict[str, Any]) -> None:
    train = _tokens(blobs(0, 50, 1.0), blobs(0, 50, 1.0)) | {"labels": np.zeros(49, np.int64)}
    spec = {"tokenizer": "t", "protocol": demo_protocol, "num_classes": 4}
    with pytest.raises(ArtifactError, match="50 features, 49 labels"):
        run(world(spec, tokens__t__photos__train=train, tokens__t__photos__validation=train))
