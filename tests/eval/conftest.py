"""Small real things for the eval tests: a classifier, a tokenizer on disk, and a job that reads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lpips
import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from vqbench.data import open_images
from vqbench.eval.protocols import FOLDER, Protocol, read_protocol
from vqbench.specs import DatasetSpec, PretrainedSpec, TokenSpec

PHOTOS = DatasetSpec(
    kind="embedded", images=("astronaut", "coffee"), short_side=64, sizes={"train": 30, "validation": 24},
    classes=2, resolution=16,
)  # fmt: skip
CROPS = DatasetSpec(
    kind="embedded", images=("astronaut", "coffee"), short_side=144, sizes={"train": 48, "validation": 40},
    classes=2, resolution=32,
)  # fmt: skip
CLASSIFIER = PretrainedSpec(kind="photo-classifier", dataset="photos", options={"channels": [4, 4, 8, 8, 8]})
TOKENS = TokenSpec(layout="raster", grid=2, num_tokens=4, code_dim=3, num_codes=16)


@pytest.fixture
def demo_protocol() -> dict[str, Any]:
    """The shipped demo protocol with counts that fit the small sets of these tests."""
    data: dict[str, Any] = yaml.safe_load((FOLDER / "demo.yaml").read_text())
    data["batch"], data["precision_recall"]["reference_count"] = 7, 20
    return data


@pytest.fixture
def protocol(demo_protocol: dict[str, Any]) -> Protocol:
    """The demo protocol for `real` and `other`."""
    demo_protocol["kid"]["subset_size"] = 20
    demo_protocol["fid_infinity"]["smallest"] = 12
    return read_protocol(demo_protocol)


@pytest.fixture(scope="session")
def real() -> np.ndarray:
    """48 crops of two photographs, 32 pixels."""
    return open_images(CROPS, "train").batch(0, 48)


@pytest.fixture(scope="session")
def other() -> np.ndarray:
    """40 others."""
    return open_images(CROPS, "validation").batch(0, 40)


@pytest.fixture
def weights(classifier: nn.Module) -> dict[str, Any]:
    """The stand-in's, as ``evaluate`` takes them."""
    return {"photo-classifier": classifier}


@pytest.fixture
def classifier() -> nn.Module:
    """A randomly initialised photo classifier, frozen."""
    from vqbench.pretrained import PhotoClassifier

    with torch.random.fork_rng():
        torch.manual_seed(3)
        return PhotoClassifier([4, 4, 8, 8, 8], 2).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def alexnet() -> nn.Module:
    """LPIPS over AlexNet's shapes with random weights, and the wheel's linear weights; dropout on."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).train().requires_grad_(False)


@pytest.fixture(scope="module")
def alexnet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of AlexNet's shapes, as torchvision's file has them."""
    from torchvision.models import alexnet

    path = tmp_path_factory.mktemp("alexnet") / "alexnet.pth"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save({k: v for k, v in alexnet(weights=None).state_dict().items() if k.startswith("features.")}, path)
    return path


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Eleven small images."""
    return np.random.default_rng(0).integers(0, 256, (11, 12, 10, 3), dtype=np.uint8)


class Upstream:
    """Stands where a job finds :class:`vqbench.jobs.Finished`: a folder of files."""

    def __init__(self, key: tuple[str, str], store: Path, facts: dict[str, Any] | None = None) -> None:
        self.key, self.store, self.facts = key, store, facts or {}

    def file(self, name: str) -> Path:
        assert (self.store / name).is_file(), f"{self.key} has no {name}"
        return self.store / name


class FakeJob:
    """A job over folders in `base`; upstream must be declared by putting it into `inputs`."""

    def __init__(self, base: Path, spec: dict[str, Any], inputs: dict[tuple[str, str], Upstream], bench: Any) -> None:
        self.spec, self.bench, self.inputs = spec, bench, inputs
        self.key, self.store = ("test", "job"), base
        base.mkdir(parents=True, exist_ok=True)

    def upstream(self, kind: str, name: str) -> Upstream:
        return self.inputs[(kind, name)]


class PatchTokenizer(nn.Module):
    """A tokenizer of four grey codes: enough to decode ids with."""

    tokens = TOKENS

    def decode_ids(self, ids: Tensor) -> Tensor:
        """(B, 4, 1) -> (B, 3, 16, 16) in [-1, 1]."""
        grey = (ids.float() / 7.5 - 1).reshape(-1, 1, 2, 2)
        return grey.repeat_interleave(8, 2).repeat_interleave(8, 3).expand(-1, 3, -1, -1)


@pytest.fixture
def world(tmp_path: Path, classifier: nn.Module) -> Callable[..., FakeJob]:
    """``world(spec, **arrays)``: a job whose inputs are written below tmp_path; references come from :func:`reference`."""
    from vqbench.artifacts import write_tensors

    write_tensors(tmp_path / "judge" / "model.safetensors", classifier.state_dict())
    bench = SimpleNamespace(
        overlay=SimpleNamespace(threads=1), datasets={"photos": PHOTOS}, pretrained={"judge": CLASSIFIER},
        generators={"g": SimpleNamespace(tokens=TOKENS)}, samples={"s": SimpleNamespace(generator="g")},
        tokenizers={"t": SimpleNamespace(dataset="photos", tokens=TOKENS)},
    )  # fmt: skip
    common = {
        ("pretrained", "judge"): Upstream(("pretrained", "judge"), tmp_path / "judge", {"classes": 2}),
        ("dataset", "photos"): Upstream(("dataset", "photos"), tmp_path),
    }

    def make(spec: dict[str, Any], **folders: dict[str, np.ndarray]) -> FakeJob:
        """Each keyword ``kind__a__b={file: array}`` becomes the input (kind, "a/b"); "_" in kinds stays."""
        inputs = dict(common)
        for key, arrays in folders.items():
            kind, *names = key.split("__")
            store = tmp_path / key
            store.mkdir(exist_ok=True)
            for name, array in arrays.items():
                np.save(store / f"{name}.npy", array)
            facts = {"images": len(next(iter(arrays.values()), ()))}
            inputs[(kind, "/".join(names))] = Upstream((kind, "/".join(names)), store, facts)
        for split in ("train", "validation"):
            inputs[("reference", f"photos/{split}")] = Upstream(
                ("reference", f"photos/{split}"), tmp_path / f"ref-{split}"
            )
        return FakeJob(tmp_path / "out", spec, inputs, bench)

    return make


@pytest.fixture
def patch_tokenizer() -> nn.Module:
    """A :class:`PatchTokenizer`."""
    return PatchTokenizer()
