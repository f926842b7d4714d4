"""VGG-16, DINOv2 and CLIP as judges: small ones through the same code, and the true shapes in the full suite."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from random_weights import write_dinov2, write_vgg16
from torch import Tensor, nn
from torch_fidelity.feature_extractor_clip import FeatureExtractorCLIP
from torch_fidelity.feature_extractor_vgg16 import FeatureExtractorVGG16

from vqbench.errors import MissingWeights
from vqbench.eval.base import Layer
from vqbench.eval.features import make_extractor, open_network
from vqbench.eval.inception import InceptionV3
from vqbench.eval.judge_kinds import (
    ClassifierNetwork,
    ClipImage,
    DinoV2,
    Vgg16,
    fitted_places,
    open_clip_image,
    open_dinov2,
)
from vqbench.eval.judge_network import JudgeNetwork
from vqbench.eval.judges import known_judges, with_judge
from vqbench.eval.protocols import FOLDER, JUDGED, load_protocol, metric_name
from vqbench.eval.set_metrics import BUILD, set_metrics

CPU = torch.device("cpu")
POOLED: frozenset[Layer] = frozenset({"pooled"})
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
TINY_CLIP = {"embed_dim": 16, "quick_gelu": True,
             "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16},
             "text_cfg": {"context_length": 77, "vocab_size": 100, "width": 64, "heads": 1, "layers": 1}}  # fmt: skip


def photos(count: int, size: int) -> np.ndarray:
    return np.random.default_rng(size).integers(0, 256, (count, size, size, 3)).astype(np.uint8)


def channels_first(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def near(found: Tensor, expected: Tensor, relative: float = 1e-4) -> None:
    assert found.std() > 1e-3
    torch.testing.assert_close(found, expected, rtol=relative, atol=relative * float(expected.std()))


def small_vgg() -> Any:
    """torchvision's parts, thin."""
    model: Any = nn.Module()
    model.features = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2))
    model.avgpool = nn.AdaptiveAvgPool2d(7)
    wide = [nn.Linear(6 * 49, 32), nn.ReLU(True), nn.Dropout(), nn.Linear(32, 32), nn.ReLU(True), nn.Dropout()]
    model.classifier = nn.Sequential(*wide, nn.Linear(32, 10))
    return model.eval().requires_grad_(False)


def test_vggs_layers_of_a_thin_one() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = small_vgg()
    some = channels_first(photos(2, 224)).float()
    x = (some / 255 - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)
    expected = model.classifier[3](model.classifier[:2](model.avgpool(model.features(x)).flatten(1)))
    found = Vgg16(model).eval()(some, ["fc2", "fc2_relu"])
    near(found["fc2"], expected)
    near(found["fc2_relu"], expected.relu())
    assert found["fc2"].min() < 0


@pytest.mark.full
def test_vgg16_is_torch_fidelitys(tmp_path: Path) -> None:
    path, some = write_vgg16(tmp_path / "vgg16.pth", whole=True), photos(2, 64)
    judge = load_protocol("torch-fidelity").precision_recall
    assert judge is not None and judge.judge is not None
    found = make_extractor(judge.judge, open_network("vgg16", path, CPU), CPU, POOLED)(some).pooled
    theirs = FeatureExtractorVGG16("vgg16", ["fc2_relu"], feature_extractor_weights_path=str(path))
    near(found, theirs(channels_first(some))[0])


def metas_places(places: Tensor) -> Tensor:
    """facebookresearch/dinov2's interpolation of (1, 1 + 37 * 37, d) for 224 pixels, in numpy's order of axes."""
    grid = places[0, 1:].T.reshape(1, -1, 37, 37)
    fitted = F.interpolate(grid, scale_factor=(16.1 / 37, 16.1 / 37), mode="bicubic")
    return torch.cat([places[0, :1], fitted[0].flatten(1).T])


def dinov2_by_hand(state: dict[str, Tensor], images: Tensor, heads: int, depth: int) -> Tensor:
    """The class token of a ViT with layer scale, written out: (B, 3, 224, 224) in [0, 255] -> (B, d)."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    x = (images / 255 - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)
    patches = F.conv2d(x, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], 14).flatten(2).mT
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), patches], 1) + metas_places(state["pos_embed"])
    for block in (f"blocks.{i}" for i in range(depth)):
        qkv = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv").unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        attention = (qkv[0] @ qkv[1].mT / qkv.shape[-1] ** 0.5).softmax(-1) @ qkv[2]
        x = x + state[f"{block}.ls1.gamma"] * linear(attention.transpose(1, 2).flatten(2), f"{block}.attn.proj")
        hidden = F.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1"))
        x = x + state[f"{block}.ls2.gamma"] * linear(hidden, f"{block}.mlp.fc2")
    return norm(x, "norm")[:, 0]


def test_dinov2_of_two_blocks_against_a_vit_written_out(tmp_path: Path) -> None:
    shape = {"depth": 2, "embed_dim": 48, "num_heads": 3}
    state, some = write_dinov2(tmp_path / "small.pth", **shape), channels_first(photos(2, 224)).float()
    assert state["pos_embed"].shape == (1, 1 + 37 * 37, 48)
    found = open_dinov2(tmp_path / "small.pth", **shape).eval()(some, ["cls"])["cls"]
    near(found, dinov2_by_hand(state, some, heads=3, depth=2))
    near(fitted_places(state["pos_embed"], 16)[0], metas_places(state["pos_embed"]), 1e-6)
    assert torch.equal(fitted_places(state["pos_embed"], 37), state["pos_embed"])
    with pytest.raises(MissingWeights, match=r"'dinov2-vitl14'.*fetch it again"):  # a smaller sibling's file
        open_network("dinov2-vitl14", tmp_path / "small.pth", CPU)


@pytest.mark.full
def test_dinov2_of_the_true_shape(tmp_path: Path) -> None:
    state, some = write_dinov2(tmp_path / "large.pth"), photos(2, 224)
    extract = make_extractor(
        load_protocol("dgm-eval").judge, open_network("dinov2-vitl14", tmp_path / "large.pth", CPU), CPU, POOLED
    )
    near(extract(some).pooled, dinov2_by_hand(state, channels_first(some).float(), heads=16, depth=24), 1e-3)


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CLIP, ``tiny-clip-judge``, as OpenAI's files are: TorchScript, half precision."""
    folder = tmp_path_factory.mktemp("clip")
    (folder / "tiny-clip-judge.json").write_text(json.dumps(TINY_CLIP))
    open_clip.add_model_config(folder / "tiny-clip-judge.json")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = open_clip.create_model("tiny-clip-judge", pretrained=None)
    holder = nn.Module()
    for name, value in model.state_dict().items():
        *parents, leaf = name.split(".")
        place = holder
        for parent in parents:
            if not hasattr(place, parent):
                place.add_module(parent, nn.Identity())
            place = place.get_submodule(parent)
        place.register_buffer(leaf, value.half())
    with warnings.catch_warnings(action="ignore"):  # torch.jit is deprecated
        torch.jit.script(holder).save(str(folder / "clip.pt"))
    return folder / "clip.pt"


def test_clip_is_torch_fidelitys(clip_file: Path) -> None:
    some = channels_first(photos(3, 32))
    with warnings.catch_warnings(action="ignore"):
        theirs = FeatureExtractorCLIP("clip-vit-b-32", ["clip"], feature_extractor_weights_path=str(clip_file))
    found = open_clip_image(clip_file, "tiny-clip-judge").eval()(some.float(), ["clip"])["clip"]
    near(found, theirs(some)[0])


def test_clip_of_other_weights_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pt")
    with pytest.raises(MissingWeights, match="ViT-B-32-quickgelu"):
        open_network("clip-vitb32", tmp_path / "other.pt", CPU)


def test_vgg_of_other_weights_is_refused(tmp_path: Path) -> None:
    write_vgg16(tmp_path / "vgg16.pth")  # its convolutions alone, as LPIPS needs them
    with pytest.raises(MissingWeights, match=r"'vgg16'.*classifier.*fetch it again"):
        open_network("vgg16", tmp_path / "vgg16.pth", CPU)


CLASSES: dict[str, type[JudgeNetwork]] = {
    "inception-v3": InceptionV3, "vgg16": Vgg16, "dinov2-vitl14": DinoV2, "clip-vitb32": ClipImage,
    "photo-classifier": ClassifierNetwork,
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.yaml")))
@pytest.mark.parametrize("kind", sorted(CLASSES))
def test_every_judge_takes_its_place_in_every_protocol(name: str, kind: str) -> None:
    """What is left of the protocol's metrics can be built, from layers that the network has, under names of its own."""
    before = load_protocol(name)
    protocol = with_judge(before, kind)
    judge, network = protocol.judge, CLASSES[kind]
    assert {judge.features, judge.logits or judge.features, judge.spatial or judge.features} <= set(network.layers)
    assert judge.network == kind and (network.size is None or judge.size == network.size)
    listed = [metric for metric in protocol.metrics if metric in BUILD]
    assert "fid" in listed and len(set_metrics(listed, protocol)) >= 1
    own = protocol.precision_recall
    if kind == before.judge.network:
        assert judge == before.judge and (own is None or own.judge is None)
        if before.precision_recall is None or before.precision_recall.judge is None:
            assert protocol == before
            return
    assert (own is None) == (before.precision_recall is None) and (own is None or own.judge is None)
    assert set(before.metrics) - set(protocol.metrics) <= {"is", "sfid"}
    assert all(metric_name(metric, protocol) != metric_name(metric, before) for metric in JUDGED)


def test_the_judges_that_can_take_a_place_are_all_there_are() -> None:
    assert set(known_judges()) == set(CLASSES)
