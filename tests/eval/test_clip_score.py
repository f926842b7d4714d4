"""CLIP score through open_clip: a small network of random weights against the cosine computed by hand."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from vqbench.errors import ArtifactError, MissingWeights, SpecError
from vqbench.eval.base import Batch
from vqbench.eval.clip_score import ClipScore

TINY = {"embed_dim": 16, "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}}  # fmt: skip
CAPTIONS = ("a photo of a cat", "an astronaut", "coffee", "a rocket at night", "bricks", "a very long " * 60)
MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A small CLIP under the name ``tiny-clip``; its weights lie beside it in three formats."""
    folder = tmp_path_factory.mktemp("clip")
    config = folder / "tiny-clip.json"
    config.write_text(json.dumps(TINY))
    open_clip.add_model_config(config)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = open_clip.create_model("tiny-clip", pretrained=None).eval()
    torch.save(model.state_dict(), folder / "plain.pt")
    save_file(model.state_dict(), folder / "tiny.safetensors")
    _script(model, folder / "scripted.pt")
    model.folder = folder
    return model


class _Weights(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def _script(model: Any, path: Path) -> None:
    """TorchScript with half-precision weights and three extra numbers, as OpenAI's files are."""
    holder = torch.nn.Module()
    for name, value in model.state_dict().items():
        *parents, leaf = name.split(".")
        place = holder
        for parent in parents:
            if not hasattr(place, parent):
                place.add_module(parent, _Weights())
            place = getattr(place, parent)
        place.register_buffer(leaf, value.half())
    for name in ("input_resolution", "context_length", "vocab_size"):
        holder.register_buffer(name, torch.tensor(32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(holder).save(str(path))


def photos(seed: int, n: int, height: int = 40, width: int = 56) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, height, width, 3)).astype(np.uint8)


def by_hand(model: Any, image: np.ndarray, caption: str) -> float:
    """PIL's bicubic to the short side, the centre, OpenAI's normalization; cosine in numpy."""
    height, width = image.shape[:2]
    small = Image.fromarray(image).resize((32 * width // height, 32), Image.Resampling.BICUBIC)
    left = round((small.width - 32) / 2)
    pixels = (np.asarray(small)[:, left : left + 32] / 255 - MEAN) / STD
    with torch.no_grad():
        a = model.encode_image(torch.tensor(pixels.transpose(2, 0, 1)[None], dtype=torch.float32))[0].numpy()
        b = model.encode_text(open_clip.tokenize([caption]))[0].numpy()
    return 100 * max(float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)), 0.0)


def open_tiny(model: Any, name: str = "plain.pt") -> ClipScore:
    return ClipScore(model.folder / name, "tiny-clip")


def test_score_is_the_cosine_times_hundred(network: Any) -> None:
    metric, images = open_tiny(network), photos(0, 6)
    metric.update(Batch(np.arange(6), images, captions=CAPTIONS))
    expected = [by_hand(network, image, text) for image, text in zip(images, CAPTIONS, strict=True)]
    assert max(expected) > 1 and min(expected) == 0.0  # both sides of the maximum are met
    np.testing.assert_allclose(metric.scores(images, CAPTIONS), expected, atol=2e-4)
    found = metric.compute()["clip_score"]
    half = 1.959963985 * np.std(expected, ddof=1) / math.sqrt(6)
    assert found == pytest.approx((np.mean(expected), np.mean(expected) - half, np.mean(expected) + half, 6), abs=2e-4)


def test_shards_and_batches_change_nothing_but_rounding(network: Any) -> None:
    images = photos(1, 6, 32, 32)
    one, parts = open_tiny(network), [open_tiny(network) for _ in range(2)]
    one.update(Batch(np.arange(6), images, captions=CAPTIONS))
    for i in (5, 2, 0, 4, 1, 3):
        parts[i % 2].update(Batch(np.array([i]), images[i : i + 1], captions=CAPTIONS[i : i + 1]))
    parts[0].merge(parts[1])
    assert parts[0].compute()["clip_score"] == pytest.approx(one.compute()["clip_score"], abs=1e-4)


@pytest.mark.parametrize(("name", "tolerance"), [("tiny.safetensors", 0.0), ("scripted.pt", 0.2)])
def test_every_format_of_weights_is_read(network: Any, name: str, tolerance: float) -> None:
    """The scripted file holds half precision."""
    images = photos(2, 6)
    plain, other = (open_tiny(network, n).scores(images, CAPTIONS) for n in ("plain.pt", name))
    np.testing.assert_allclose(plain, other, atol=tolerance)
    assert np.isfinite(plain).all()


def test_mistakes_are_named(network: Any, tmp_path: Path) -> None:
    metric = open_tiny(network)
    with pytest.raises(SpecError, match="2 images and 1 captions"):
        metric.update(Batch(np.arange(2), photos(0, 2), captions=("a",)))
    with pytest.raises(SpecError, match="empty"):
        metric.update(Batch(np.arange(1), photos(0, 1), captions=(" ",)))
    with pytest.raises(SpecError, match="did you mean 'ViT-B-32'"):
        ClipScore(network.folder / "plain.pt", "ViT-B-3_2")
    (tmp_path / "bad.pt").write_bytes(b"not weights")
    for weights in (tmp_path / "bad.pt", tmp_path / "none.pt"):
        with pytest.raises(MissingWeights, match=weights.name):
            ClipScore(weights, "tiny-clip")
    torch.save({"visual.proj": torch.zeros(2, 2)}, tmp_path / "other.pt")
    with pytest.raises(MissingWeights, match="tiny-clip"):
        ClipScore(tmp_path / "other.pt", "tiny-clip")


def test_damaged_weights_are_refused(network: Any, tmp_path: Path) -> None:
    state = network.state_dict() | {"visual.proj": torch.full_like(network.visual.proj, math.nan)}
    torch.save(state, tmp_path / "nan.pt")
    with pytest.raises(ArtifactError, match="not finite"):
        ClipScore(tmp_path / "nan.pt", "tiny-clip").update(Batch(np.arange(1), photos(0, 1), captions=("a",)))
