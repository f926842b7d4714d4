"""The extractor and its networks: against torch-fidelity's modules with the same random weights of the true shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_weights import write_inception, write_torchscript
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from vqbench.errors import MissingWeights, SpecError
from vqbench.eval.base import Layer
from vqbench.eval.features import ClassifierNetwork, Extractor, make_extractor, open_network
from vqbench.eval.inception import InceptionV3
from vqbench.eval.protocols import Judge, load_protocol
from vqbench.pretrained import PhotoClassifier

CPU = torch.device("cpu")
ADM, DEMO = load_protocol("adm").judge, load_protocol("demo").judge
THEIRS = ["64", "192", "768", "2048", "logits_unbiased", "logits"]


def photos(seed: int, count: int, size: int = 16) -> np.ndarray:
    rng = np.random.default_rng(seed)
    grey = rng.integers(0, 200, (count, 1, 1, 1)) + rng.integers(0, 56, (count, size, size, 3))
    return np.asarray(grey, dtype=np.uint8)


def channels_first(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def layers(*names: Layer) -> frozenset[Layer]:
    return frozenset(names)


def assert_near(found: Tensor, expected: Tensor, relative: float = 1e-4) -> None:
    """Within `relative` of the expected layer's own size, value by value."""
    assert found.shape == expected.shape and found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=relative, atol=relative * float(expected.std()))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of Inception's true shapes, saved as torch-fidelity reads them."""
    return write_inception(tmp_path_factory.mktemp("weights") / "weights-inception-2015-12-05-6726825d.pth")


@pytest.fixture(scope="module")
def inception(weights: Path) -> InceptionV3:
    network = open_network("inception-v3", weights, CPU)
    assert isinstance(network, InceptionV3)
    return network


@pytest.fixture
def stand_in(classifier: nn.Module) -> ClassifierNetwork:
    assert isinstance(classifier, PhotoClassifier)
    return ClassifierNetwork(classifier)


def test_inception_is_torch_fidelitys(inception: InceptionV3, weights: Path) -> None:
    """All layers, and sFID's: the first seven channels of Mixed_6d's 1x1 branch in the order row, column, channel."""
    theirs = FeatureExtractorInceptionV3("inception-v3-compat", THEIRS, feature_extractor_weights_path=str(weights))
    seen: list[Tensor] = []
    theirs.Mixed_6d.branch1x1.register_forward_hook(lambda _, __, out: seen.append(out.clone()))
    some = np.concatenate(
        [photos(3, 1, 64), np.random.default_rng(4).integers(0, 256, (1, 64, 64, 3)).astype(np.uint8)]
    )
    expected = dict(zip(THEIRS, theirs(channels_first(some)), strict=True))
    for name, values in expected.items():
        judge = ADM.model_copy(update={"features": name})
        assert_near(make_extractor(judge, inception, CPU, layers("pooled"))(some).pooled, values)
    found = make_extractor(ADM, inception, CPU, layers("pooled", "logits", "spatial"))(some)
    assert found.logits is not None and found.spatial is not None and found.spatial.shape == (2, 2023)
    assert_near(found.logits, expected["logits_unbiased"])
    grid = found.spatial.view(2, 17, 17, 7)
    assert_near(grid.permute(0, 3, 1, 2), seen[0][:, :7])
    assert found.pooled.mean() > 0.01 and grid.std() > 0.01


def test_only_what_is_asked_for_is_computed(inception: InceptionV3, monkeypatch: pytest.MonkeyPatch) -> None:
    some = photos(5, 1, 40)

    def refuse(*_: Any) -> Tensor:
        raise AssertionError("computed, though nobody asked")

    monkeypatch.setattr(inception.to_768, "forward", refuse)
    found = make_extractor(ADM, inception, CPU, layers("spatial"))(some)
    assert found.spatial is not None and found.logits is None and found.manifold is None
    assert found.pooled.shape == (1, 0)
    with pytest.raises(AssertionError, match="nobody asked"):
        make_extractor(ADM, inception, CPU, layers("logits"))(some)


def test_inceptions_features_do_not_depend_on_the_batch(inception: InceptionV3) -> None:
    extract, some = make_extractor(ADM, inception, CPU, layers("pooled", "logits", "spatial")), photos(6, 11, 32)
    whole = extract(some)
    parts = [extract(some[:1]), extract(some[1:4]), extract(some[4:])]
    for name in ("pooled", "logits", "spatial"):
        assert_near(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name), 1e-5)


@pytest.mark.parametrize("level", [0, 128, 255])
def test_flat_images_give_finite_features(inception: InceptionV3, stand_in: ClassifierNetwork, level: int) -> None:
    flat = np.full((2, 32, 32, 3), level, np.uint8)
    for judge, network in ((ADM, inception), (DEMO, stand_in)):
        found = make_extractor(judge, network, CPU, layers("pooled", "logits"))(flat)
        assert found.logits is not None
        for values in (found.pooled, found.logits):
            assert torch.isfinite(values).all()
            assert_near(values[:1], values[1:], 1e-5)


def test_the_stand_in_is_the_classifier(stand_in: ClassifierNetwork, classifier: Any) -> None:
    some = photos(7, 150)
    extract: Extractor = make_extractor(DEMO, stand_in, CPU, layers("pooled", "logits"))
    expected = classifier.features(channels_first(some) / 127.5 - 1)
    found = extract(some)
    assert found.logits is not None
    assert_near(found.pooled, expected)
    assert_near(found.logits, classifier.logits(expected))
    alone = torch.cat([extract(some[i : i + 1]).pooled for i in range(150)])
    torch.testing.assert_close(alone, found.pooled, rtol=1e-5, atol=1e-6)


def test_manifold_is_pooled_or_a_network_of_its_own(stand_in: ClassifierNetwork, inception: InceptionV3) -> None:
    some = photos(8, 2, 32)
    plain = make_extractor(DEMO, stand_in, CPU, layers("manifold"))(some)
    assert plain.manifold is None and plain.pooled.shape == (2, 16)
    judge = ADM.model_copy(update={"features": "192"})
    both = make_extractor(DEMO, stand_in, CPU, layers("pooled", "manifold"), (judge, inception))(some)
    assert both.manifold is not None and both.manifold.shape == (2, 192)
    assert torch.equal(both.pooled, plain.pooled)
    second = make_extractor(DEMO, stand_in, CPU, layers("manifold"), (judge, inception))(some)
    assert second.pooled.shape == (2, 0) and second.manifold is not None
    assert torch.equal(second.manifold, both.manifold)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("features", "feature", "no layer 'feature'; did you mean 'features'"),
        ("logits", "logit", "no layer 'logit'; did you mean 'logits'"),
        ("spatial", "spatial", "no layer 'spatial'"),
    ],
)
def test_unknown_layers(stand_in: ClassifierNetwork, field: str, value: str, message: str) -> None:
    judge = DEMO.model_copy(update={field: value})
    with pytest.raises(SpecError, match=message):
        make_extractor(judge, stand_in, CPU, layers("pooled"))
    with pytest.raises(SpecError, match="no layer 'pool3'"):
        make_extractor(
            DEMO, stand_in, CPU, layers("manifold"), (DEMO.model_copy(update={"features": "pool3"}), stand_in)
        )


def test_layers_and_sizes_that_a_protocol_does_not_give(stand_in: ClassifierNetwork, inception: InceptionV3) -> None:
    with pytest.raises(SpecError, match="names no 'spatial' layer"):
        make_extractor(DEMO, stand_in, CPU, layers("spatial"))
    with pytest.raises(SpecError, match="takes images of 299 pixels; mend 'size: 224'"):
        make_extractor(ADM.model_copy(update={"size": 224}), inception, CPU, layers("pooled"))
    bare = make_extractor(ADM.model_copy(update={"resize": "none"}), inception, CPU, layers("pooled"))
    with pytest.raises(SpecError, match="does not resize, these are 16x16"):
        bare(photos(9, 1))


def test_an_unknown_kind_is_refused(weights: Path) -> None:
    with pytest.raises(SpecError, match=r"'inception-v4'.*did you mean 'inception-v3'"):
        open_network("inception-v4", weights, CPU)


def other_network(path: Path, _: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), path)


def one_less(path: Path, weights: Path) -> None:
    state = torch.load(weights)
    del state["Mixed_7b.branch_pool.bn.running_var"]
    torch.save(state, path)


def another_shape(path: Path, weights: Path) -> None:
    torch.save(torch.load(weights) | {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}, path)


def one_more(path: Path, weights: Path) -> None:
    torch.save(torch.load(weights) | {"AuxLogits.fc.weight": torch.zeros(1)}, path)


def cut_off(path: Path, weights: Path) -> None:
    path.write_bytes(weights.read_bytes()[:100_000])


def a_page(path: Path, _: Path) -> None:
    path.write_text("<html>404</html>")


def a_list(path: Path, _: Path) -> None:
    torch.save([1, 2], path)


def no_file(path: Path, _: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (other_network, "'Conv2d_1a_3x3.conv.weight' is missing, expected \\(32, 3, 3, 3\\)"),
        (one_less, "'Mixed_7b.branch_pool.bn.running_var' is missing"),
        (another_shape, "'fc.weight' has shape \\(1000, 2048\\), expected \\(1008, 2048\\)"),
        (one_more, "1 more tensors, e.g. 'AuxLogits.fc.weight'"),
        (cut_off, "cannot be read"),
        (a_page, "cannot be read"),
        (a_list, "no state dict"),
        (no_file, "cannot be read"),
        (write_torchscript, "cannot be read.*TorchScript"),
    ],
)
def test_wrong_weights_are_refused(damage: Any, reason: str, weights: Path, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    damage(path, weights)
    with pytest.raises(MissingWeights, match=f"weights.pth does not hold .*'inception-v3' .*{reason}.*fetch it again"):
        open_network("inception-v3", path, CPU)


def test_every_shipped_judge_can_be_read() -> None:
    """What the protocols name is what the networks have."""
    from vqbench.eval.judge_kinds import ClipImage, DinoV2, Vgg16
    from vqbench.eval.protocols import FOLDER

    kinds: dict[str, Any] = {
        "inception-v3": InceptionV3, "photo-classifier": ClassifierNetwork, "vgg16": Vgg16, "dinov2-vitl14": DinoV2,
        "clip-vitb32": ClipImage,
    }  # fmt: skip
    for path in sorted(FOLDER.glob("*.yaml")):
        protocol = load_protocol(path.stem)
        second = protocol.precision_recall.judge if protocol.precision_recall else None
        for judge in (protocol.judge, *([second] if isinstance(second, Judge) else [])):
            kind = kinds[judge.network]
            assert {judge.features, judge.logits, judge.spatial} - {None} <= set(kind.layers), path.stem
            assert kind.size in (judge.size, None), path.stem
