"""Teachers through their libraries: small CLIPs of random weights, the loaders that the real files go through."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from helpers import vqbench
from PIL import Image
from torch import Tensor

from vqbench.codebooks import DIMS
from vqbench.errors import MissingWeights, SpecError
from vqbench.pretrained import PhotoClassifier
from vqbench.tokenizers.teachers import ARCHITECTURES, ClassifierTeacher, open_clip_teacher, patch_features

TEXT = {"context_length": 8, "vocab_size": 50, "width": 64, "heads": 1, "layers": 1}
NETWORKS = {
    "tiny-vit": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 4},  # 8 x 8 patches
    "tiny-resnet": {"image_size": 128, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},  # 4 x 4
}


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A small CLIP under its name, its weights beside it."""
    name = request.param
    folder = tmp_path_factory.mktemp(name)
    config = folder / f"{name}.json"
    shape = {"embed_dim": 16, "quick_gelu": True, "vision_cfg": NETWORKS[name], "text_cfg": TEXT}
    config.write_text(json.dumps(shape))
    open_clip.add_model_config(config)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = open_clip.create_model(name, pretrained=None).eval()
    torch.save(model.state_dict(), folder / "weights.pt")
    model.name, model.file = name, folder / "weights.pt"
    return model


def images(side: int, count: int = 3) -> Tensor:
    """(count, 3, side, side) in [-1, 1], smooth."""
    coarse = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return F.interpolate(coarse, side, mode="bilinear")


def by_hand(model: Any, some: Tensor) -> Tensor:
    """The map of images that have the network's own size: hooks in place of the library's outputs."""
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    seen: list[Tensor] = []
    layer = model.visual.ln_post if model.name == "tiny-vit" else model.visual.layer4
    hook = layer.register_forward_hook(lambda _m, _i, out: seen.append(out))
    model.visual((some / 2 + 0.5 - mean) / std)
    hook.remove()
    if model.name == "tiny-resnet":
        return seen[0]
    return (seen[0][:, 1:] @ model.visual.proj).transpose(1, 2).unflatten(2, (8, 8))  # without the class token


@torch.no_grad()
def test_the_map_is_the_networks_own(network: Any) -> None:
    teacher = open_clip_teacher(network.file, "clip-vitl14", network.name)
    some = images(teacher.size)
    found = teacher(some)
    assert found.shape == ((3, 16, 8, 8) if network.name == "tiny-vit" else (3, 256, 4, 4)) and found.std() > 0
    torch.testing.assert_close(found, by_hand(network, some), rtol=1e-4, atol=1e-5)
    assert not any(p.requires_grad for p in teacher.parameters()) and not teacher.training


@torch.no_grad()
def test_images_of_another_size_are_scaled_as_pil_does(network: Any) -> None:
    teacher = open_clip_teacher(network.file, "clip-vitl14", network.name)
    levels = (images(160, 1) * 127.5 + 127.5).round()
    pixels = levels[0].permute(1, 2, 0).byte().numpy()
    small = Image.fromarray(pixels).resize((teacher.size, teacher.size), Image.Resampling.BICUBIC)
    expected = teacher(torch.from_numpy(np.array(small)).permute(2, 0, 1)[None] / 127.5 - 1)
    found = teacher(levels / 127.5 - 1)
    assert (found - expected).abs().max() < 0.05 * expected.std()


@torch.no_grad()
def test_patch_features_are_the_paper_s_pooling(network: Any) -> None:
    """8 x 8 patches to 4 x 4 cells: each is the mean of its own 2 x 2; image by image, row by row."""
    teacher = open_clip_teacher(network.file, "clip-vitl14", network.name)
    some = images(teacher.size)
    found = patch_features(teacher, some, 4)
    side = teacher(some).shape[2] // 4
    expected = F.avg_pool2d(teacher(some), side)  # (B, D, 4, 4)
    assert found.shape == (3 * 16, expected.shape[1])
    torch.testing.assert_close(found[16 + 4 * 2 + 1], expected[1, :, 2, 1])
    one_by_one = torch.cat([patch_features(teacher, image[None], 4) for image in some])
    torch.testing.assert_close(found, one_by_one, rtol=1e-4, atol=1e-5)


def test_a_map_smaller_than_the_grid_is_refused(network: Any) -> None:
    teacher = open_clip_teacher(network.file, "clip-vitl14", network.name)
    with pytest.raises(SpecError, match="smaller than 16 x 16"):
        patch_features(teacher, images(teacher.size, 1), 16)


def test_the_embedded_teacher_gives_a_slice() -> None:
    classifier = PhotoClassifier([4, 8, 8, 16, 16], 3).eval()
    found = ClassifierTeacher(classifier, "relu4_3")(images(32))
    assert torch.equal(found, classifier.slices(images(32)).relu4_3) and found.shape == (3, 16, 4, 4)


def test_another_networks_weights_are_refused(network: Any, tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(MissingWeights, match=r"other.pt does not hold the weights of tiny-"):
        open_clip_teacher(tmp_path / "other.pt", "clip-vitl14", network.name)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_real_towers_give_features_of_the_length_that_specs_say(kind: str) -> None:
    """On the meta device: OpenAI's architectures, without weights or memory."""
    shape = open_clip.get_model_config(ARCHITECTURES[kind])
    assert shape is not None
    vision = shape["vision_cfg"]
    length = vision["width"] * 32 if isinstance(vision["layers"], list | tuple) else shape["embed_dim"]
    assert (length, vision["image_size"]) == (DIMS[kind], 224)


def test_missing_weights_name_the_file_the_rule_and_the_alternative(clone: Path, tmp_path: Path) -> None:
    done = vqbench(clone, "pretrained", "clip-vitl14", "--scale", "tiny", TORCH_HOME=str(tmp_path / "empty"))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    for part in ("clip-vit-l-14-b8cca3fd", "vqbench fetch-weights clip-vitl14 does", "--scale demo"):
        assert part in done.stderr
