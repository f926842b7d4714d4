"""Every generator family from tokens or latents to scored samples, at the tiny scale, and what is refused beforehand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers import copy_clone, snakemake, vqbench
from safetensors.torch import load_file

from vqbench.generators.base import build_generator
from vqbench.papers import bench
from vqbench.rooms import families

SMALL = {
    "maskgit": {"layers": 1, "width": 16, "heads": 2},
    "gpt": {"layers": 1, "width": 16, "heads": 2},
    "dit": {"layers": 1, "width": 16, "heads": 2},
    "sit": {"layers": 1, "width": 16, "heads": 2},
    "ldm": {"base_channels": 32, "multipliers": [1, 2], "num_res_blocks": 1, "context": 16},
}
STEPS = {"dit": {"steps": 3}, "ldm": {"steps": 3}, "sit": {"rtol": 0.1, "atol": 0.1}}
ON = ("vqgan-k1024", "cq-k1024")  # a raster and a channel tokenizer


def entry(family: str) -> dict[str, object]:
    return {"family": family, **SMALL[family]}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which each family has learned both tokenizers and was sampled and scored."""
    folder = copy_clone(tmp_path_factory.mktemp("families") / "clone")
    path = folder / "workflow" / "papers" / "cq.yaml"
    paper = yaml.safe_load(path.read_text())
    names = {f"{family}-{tokenizer}": (family, tokenizer) for family in SMALL for tokenizer in ON}
    for name, (family, tokenizer) in names.items():
        paper["generators"][name] = {**entry(family), "tokenizer": tokenizer}
        paper["samples"][f"{name}-s"] = {"generator": name, **STEPS.get(family, {})}
    path.write_text(yaml.safe_dump(paper, sort_keys=False))
    targets = [f"results/tiny/scores/samples/{name}-s/manifest.json" for name in names]
    done = snakemake(folder, *targets, "--config", "scale=tiny", "--show-failed-logs")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return folder


def test_all_families_are_here() -> None:
    assert set(SMALL) == set(families("generators"))


@pytest.mark.parametrize("family", SMALL)
@pytest.mark.parametrize("tokenizer", ON)
def test_samples_are_images_of_the_tokenizers_codes(ran: Path, family: str, tokenizer: str) -> None:
    (store,) = (ran / f"results/tiny/store/samples/{family}-{tokenizer}-s").iterdir()
    images, ids = np.load(store / "samples.npz")["arr_0"], np.load(store / "ids.npy")
    assert images.shape == (40, 32, 32, 3) and images.std() > 0
    assert len(ids) == 40 and ids.min() >= 0 and ids.max() < 16


def test_the_latency_stands_in_the_run_record_and_in_the_list_alone(ran: Path) -> None:
    name = "gpt-vqgan-k1024-s"
    folder = ran / "results/tiny/samples" / name
    run = json.loads((folder / "run.json").read_text())
    assert run["timed_images"] == 48 and 0 < run["seconds_per_image"] * 48 < run["seconds"]
    assert "seconds_per_image" not in (folder / "manifest.json").read_text()
    listed = vqbench(ran, "list", "samples", "--scale", "tiny").stdout
    assert f"40 images of gpt-vqgan-k1024, {run['seconds_per_image']:.3g} s an image on " in listed


def test_latents_are_written_once_and_quantize_to_the_ids(ran: Path) -> None:
    kinds = ran / "results/tiny/store"
    (latents,) = (kinds / "latents/vqgan-k1024").rglob("latents.npy")
    (ids,) = (p for p in (kinds / "tokens/vqgan-k1024").rglob("ids.npy") if "train" in str(p))
    found, codes = np.load(latents), np.load(ids)
    assert found.dtype == np.float32 and found.shape == (64, 16, 8, 8) and len(codes) == 64
    assert not list((kinds / "latents").rglob("ids.npy"))
    (weights,) = (kinds / "tokenizer/vqgan-k1024").rglob("model.safetensors")
    book = load_file(weights)["quantizer.weight"].double()
    vectors = torch.from_numpy(found).permute(0, 2, 3, 1).flatten(0, 2).double()
    assert np.array_equal(torch.cdist(vectors, book).argmin(1).view(64, -1, 1).numpy(), codes)


def test_two_processes_write_the_same_latents(ran: Path) -> None:
    (latents,) = (ran / "results/tiny/store/latents/vqgan-k1024").rglob("latents.npy")
    before = latents.read_bytes()
    (latents.parent / "finished.json").unlink()
    done = vqbench(ran, "encode", "vqgan-k1024", "--split", "train", "--scale", "tiny", "--processes", "2")
    assert done.returncode == 0, done.stderr
    assert latents.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"generators": {"g": {**entry("dit"), "tokenizer": "cq-k1024", "patch": 0}}}, "'patch' is 0"),
        (
            {"generators": {"g": {**entry("dit"), "tokenizer": "cq-k1024", "training": {"weights": {"mze": 1.0}}}}},
            "did you mean 'mse'",
        ),
        ({"generators": {"g": {**entry("gpt"), "tokenizer": "cq-k1024", "patch": 2}}}, "unknown key 'patch'"),
    ],
)
def test_what_does_not_fit_is_refused_when_the_papers_are_read(
    clone: Path, change: dict[str, dict[str, object]], message: str
) -> None:
    path = clone / "workflow" / "papers" / "cq.yaml"
    paper = yaml.safe_load(path.read_text())
    for section, entries in change.items():
        paper[section].update(entries)
    path.write_text(yaml.safe_dump(paper, sort_keys=False))
    done = vqbench(clone, "list", "--scale", "tiny")
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_every_generator_of_every_paper_fits_a_cpu_at_demo_scale() -> None:
    """A family whose printed sizes a scale does not replace would be trained at full size."""
    found = bench("demo")
    with torch.device("meta"):
        sizes = {
            name: sum(p.numel() for p in build_generator(spec).parameters()) for name, spec in found.generators.items()
        }
    assert len(sizes) >= 35 and {name: size for name, size in sizes.items() if size > 3e6} == {}
