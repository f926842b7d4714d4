"""The judge through the libraries' own code: torch-fidelity end to end, real architectures with random weights."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch_fidelity
from random_weights import write_inception, write_torchscript
from torch import Tensor, nn
from torch.utils.data import Dataset
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from vqbench.errors import MissingWeights, SpecError
from vqbench.eval.features import TORCHSCRIPT, clean_extractor, fidelity_extractor, open_extractor
from vqbench.eval.fid import Fid, Moments
from vqbench.eval.inception_score import InceptionScore
from vqbench.eval.precision_recall import PrecisionRecall
from vqbench.eval.protocols import load_protocol
from vqbench.specs import PretrainedSpec

CPU = torch.device("cpu")


class Tensors(Dataset[Tensor]):
    """uint8 images as torch-fidelity takes them."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = torch.from_numpy(images).permute(0, 3, 1, 2)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def images(seed: int, count: int, size: int = 16) -> np.ndarray:
    rng = np.random.default_rng(seed)
    grey = rng.integers(0, 200, (count, 1, 1, 1)) + rng.integers(0, 56, (count, size, size, 3))
    return np.asarray(grey, dtype=np.uint8)


def test_our_pieces_are_calculate_metrics(classifier: nn.Module) -> None:
    protocol, generated, real = load_protocol("demo"), images(0, 60), images(1, 50)
    extract = fidelity_extractor(protocol.judge, CPU, classifier=classifier)
    assert protocol.inception_score and protocol.precision_recall
    moments, reference = Moments(), extract(real)
    moments.update(reference.pooled)
    metrics = [
        Fid(moments.gaussian()),
        InceptionScore(protocol.inception_score),
        PrecisionRecall(reference.pooled.numpy(), protocol.precision_recall),
    ]
    for start in range(0, 60, 13):
        for metric in metrics:
            metric.update(extract(generated[start : start + 13]))
    theirs = torch_fidelity.calculate_metrics(
        input1=Tensors(generated), input2=Tensors(real), cuda=False, fid=True, isc=True, prc=True, cache=False,
        feature_extractor="photo-classifier", classifier=classifier, isc_splits=2, verbose=False, save_cpu_ram=True,
    )  # fmt: skip
    ours = {k: v for metric in metrics for k, v in metric.compute().items()}
    assert ours["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4, abs=1e-6)
    assert ours["is"] == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
    assert (ours["precision"], ours["recall"]) == (theirs["precision"], theirs["recall"])
    assert ours["fid"] > 0 and 0 < ours["precision"] <= 1


def test_features_do_not_depend_on_the_batch(classifier: nn.Module) -> None:
    extract, some = fidelity_extractor(load_protocol("demo").judge, CPU, classifier=classifier), images(2, 9)
    whole, parts = extract(some), [extract(some[:4]), extract(some[4:])]
    torch.testing.assert_close(whole.pooled, torch.cat([p.pooled for p in parts]))
    expected = classifier.logits(classifier.features(torch.from_numpy(some).permute(0, 3, 1, 2) / 127.5 - 1))  # type: ignore[operator]
    torch.testing.assert_close(whole.logits, expected)


def test_the_scales_network_must_be_the_protocols() -> None:
    spec = PretrainedSpec(kind="photo-classifier", options={"channels": [4, 4, 8, 8, 8]})
    with pytest.raises(SpecError, match=r"'inception-v3'.*'photo-classifier'"):
        open_extractor(load_protocol("adm").judge, spec, cast(Any, SimpleNamespace()), CPU)


@pytest.mark.parametrize(("field", "value"), [("extractor", "photo-classifer"), ("features", "feature")])
def test_unknown_extractor_or_layer(classifier: nn.Module, field: str, value: str) -> None:
    judge = load_protocol("demo").judge.model_copy(update={field: value})
    with pytest.raises(SpecError, match="did you mean"):
        fidelity_extractor(judge, CPU, classifier=classifier)


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of Inception's true shapes, saved as torch-fidelity reads them."""
    return write_inception(tmp_path_factory.mktemp("weights") / "weights-inception-2015-12-05-6726825d.pth")


def test_inception_with_weights_of_the_true_shape(inception: Path) -> None:
    judge, some = load_protocol("adm").judge, images(3, 3, 24)
    extract = fidelity_extractor(judge, CPU, feature_extractor_weights_path=str(inception))
    found = extract(some)
    assert found.pooled.shape == (3, 2048) and found.logits is not None and found.logits.shape == (3, 1008)
    network = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(inception)
    )
    expected = network(torch.from_numpy(some).permute(0, 3, 1, 2))
    torch.testing.assert_close(found.pooled, expected[0], rtol=1e-4, atol=1e-5)
    assert found.pooled.mean() > 0.01
    moments = Moments()
    moments.update(found.pooled)
    metric = Fid(moments.gaussian(), "rfid")
    metric.update(found)
    assert metric.count == 3


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pth")
    with pytest.raises(MissingWeights, match="fetch them again"):
        fidelity_extractor(load_protocol("adm").judge, CPU, feature_extractor_weights_path=str(tmp_path / "other.pth"))


@pytest.fixture
def torchscript(tmp_path: Path, inception: Path) -> Path:
    """The same weights as clean-fid reads them: TorchScript with the trunk under ``layers``."""
    return write_torchscript(tmp_path / TORCHSCRIPT, inception)


def test_clean_fid_is_torch_fidelity_where_no_resize_is_needed(torchscript: Path, inception: Path) -> None:
    """Both libraries over the same random weights: equal at 299 pixels, and apart where their resizes differ."""
    judge = load_protocol("clean-fid").judge
    clean = clean_extractor(judge, torchscript, CPU)
    other = fidelity_extractor(load_protocol("adm").judge, CPU, feature_extractor_weights_path=str(inception))
    whole, small = images(4, 1, 299), images(5, 1, 24)
    assert clean(whole).logits is None
    torch.testing.assert_close(clean(whole).pooled, other(whole).pooled, rtol=1e-3, atol=1e-5)
    assert not torch.allclose(clean(small).pooled, other(small).pooled, rtol=1e-2, atol=1e-3)
    with pytest.raises(MissingWeights, match=TORCHSCRIPT):
        clean_extractor(judge, inception, CPU)


def test_clean_fids_resize_is_pils_bicubic_on_floats() -> None:
    from cleanfid.resize import build_resizer
    from PIL import Image

    (some,) = images(6, 1, 24)
    channels = [Image.fromarray(some[..., c].astype(np.float32)) for c in range(3)]
    expected = [np.asarray(c.resize((299, 299), Image.Resampling.BICUBIC)).clip(0, 255) for c in channels]
    with warnings.catch_warnings(action="ignore"):
        np.testing.assert_allclose(build_resizer("clean")(some), np.stack(expected, axis=2), atol=1e-4)
