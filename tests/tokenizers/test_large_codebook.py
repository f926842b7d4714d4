"""VQGAN-LC at the tiny scale through Snakemake: features, codebooks of every method, tokenizers on them, scores."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers import copy_clone, environment, snakemake, vqbench
from torch import Tensor

from vqbench.artifacts import read_json, read_tensors, write_tensors
from vqbench.specs import TokenSpec
from vqbench.tokenizers.large_codebook import LargeCodebookTokenizer, standardized
from vqbench.tokenizers.quantizers.projected import CODEBOOK, ProjectedQuantizer

ROOT = Path("results/tiny")
FACES = {"kind": "embedded", "images": ["retina", "rocket"], "short_side": 144, "sizes": {"train": 1024, "validation": 16},
         "classes": 2, "resolution": 32, "augment": "flip"}  # fmt: skip
CODEBOOKS: dict[str, dict[str, Any]] = {
    "by-class": {"teacher": "clip-vitl14", "dataset": "imagenet256", "method": "kmeans-per-class", "num_codes": 1000},
    "faces": {"teacher": "clip-vitb16", "dataset": "photos-tiny-faces", "method": "kmeans", "num_codes": 16384},
    "drawn": {"teacher": "clip-rn50", "dataset": "imagenet256", "method": "random-features", "num_codes": 1024},
    "noise": {"method": "random", "num_codes": 10_000, "code_dim": 768},
}
COMMON = {"family": "large_codebook", "dataset": "imagenet256"}
TOKENIZERS: dict[str, dict[str, Any]] = {
    "lc": {"codebook": "by-class", "num_codes": 1000},
    "lc-f8": {
        "codebook": "faces",
        "num_codes": 16384,
        "codebook_dim": 512,
        "downsample": 8,
        "multipliers": [1, 2, 2, 4],
    },
    "lc-learned": {"codebook": "drawn", "num_codes": 1024, "codebook_dim": 2048, "trainable": True},
    "lc-bare": {"codebook": "noise", "num_codes": 10_000, "code_dim": 768, "projector": False},
}


def with_entries(folder: Path) -> Path:
    """A clone whose first paper has the codebooks and tokenizers above, and another data set to make one from."""
    path = folder / "workflow" / "papers" / "cq.yaml"
    paper = yaml.safe_load(path.read_text())
    paper["codebooks"] = CODEBOOKS
    paper["tokenizers"] |= {name: {**COMMON, **entry} for name, entry in TOKENIZERS.items()}
    path.write_text(yaml.safe_dump(paper, sort_keys=False))
    with (folder / "workflow" / "datasets.yaml").open("a") as file:
        yaml.safe_dump({"photos-tiny-faces": FACES}, file)
    return folder


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which every tokenizer was trained and scored."""
    folder = with_entries(copy_clone(tmp_path_factory.mktemp("lc") / "clone"))
    targets = [str(ROOT / f"scores/tokenizers/{name}/photos-tiny/manifest.json") for name in TOKENIZERS]
    done = snakemake(folder, *targets, "--config", "scale=tiny", "--show-failed-logs")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return folder


def store(ran: Path, kind: str, name: str) -> Path:
    return ran / str(read_json(ran / ROOT / kind / name / "manifest.json")["store"])


def facts(ran: Path, kind: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = read_json(ran / ROOT / kind / name / "manifest.json")["facts"]
    return found


def codes_of(ran: Path, name: str) -> Tensor:
    return read_tensors(store(ran, "codebooks", name) / "codebook.safetensors")["codebook"]


def features_of(ran: Path, name: str) -> np.ndarray:
    found: np.ndarray = np.load(store(ran, "features", name) / "features.npy", mmap_mode="r")
    return found


def weights(ran: Path, name: str) -> dict[str, Tensor]:
    return read_tensors(store(ran, "tokenizers", name) / "model.safetensors")


def test_features_are_16_vectors_an_image_and_a_class(ran: Path) -> None:
    found = features_of(ran, "clip-vitl14/photos-tiny")
    assert found.shape == (64 * 16, 8) and found.dtype == np.float16 and np.ptp(found, axis=0).min() > 0
    labels = np.load(store(ran, "features", "clip-vitl14/photos-tiny") / "labels.npy")
    assert labels.tolist() == [i % 4 for i in range(64)]
    assert features_of(ran, "clip-rn50/photos-tiny").shape == (1024, 4)
    assert features_of(ran, "clip-vitb16/photos-tiny-faces").shape == (16_384, 8)


def test_codebooks_have_the_scaled_sizes(ran: Path) -> None:
    shapes = {name: tuple(codes_of(ran, name).shape) for name in CODEBOOKS}
    assert shapes == {"by-class": (12, 8), "faces": (24, 8), "drawn": (16, 4), "noise": (20, 8)}
    counts = np.load(store(ran, "codebooks", "faces") / "counts.npy")
    assert counts.sum() == facts(ran, "codebooks", "faces")["features"] == 16_384
    assert facts(ran, "codebooks", "faces")["inertia"] > 0
    noise = codes_of(ran, "noise")
    assert 0.9 / 20 < noise.abs().max() <= 1 / 20 and noise.mean().abs() < 0.01, "uniform in [-1 / K, 1 / K]"
    drawn = codes_of(ran, "drawn").numpy()
    rows = features_of(ran, "clip-rn50/photos-tiny").astype(np.float32)
    assert all((rows == code).all(1).any() for code in drawn)


def test_each_class_has_its_own_centres(ran: Path) -> None:
    """Three codes a class, within the range of that class' own features."""
    rows = features_of(ran, "clip-vitl14/photos-tiny").astype(np.float32).reshape(64, 16, 8)
    counts = np.load(store(ran, "codebooks", "by-class") / "counts.npy").reshape(4, 3)
    assert counts.sum(1).tolist() == [256] * 4
    for label, centres in enumerate(codes_of(ran, "by-class").view(4, 3, 8).numpy()):
        mine = rows[np.arange(64) % 4 == label].reshape(-1, 8)
        assert (centres >= mine.min(0) - 1e-5).all() and (centres <= mine.max(0) + 1e-5).all()


def test_a_frozen_codebook_is_bit_identical_after_training(ran: Path) -> None:
    for name in ("lc", "lc-f8", "lc-bare"):
        codebook = codes_of(ran, TOKENIZERS[name]["codebook"])
        assert torch.equal(weights(ran, name)["quantizer.weight"], codebook)
    learned = weights(ran, "lc-learned")["quantizer.weight"]
    assert not torch.equal(learned, codes_of(ran, "drawn")) and torch.allclose(
        learned, codes_of(ran, "drawn"), atol=0.1
    )


def test_a_trained_tokenizer_needs_no_codebook(ran: Path, tmp_path: Path) -> None:
    """Its ids are written again, the same, where neither features nor codebooks are left."""
    clone = tmp_path / "clone"
    shutil.copytree(ran, clone, symlinks=True)
    for kind in ("features", "codebooks"):
        shutil.rmtree(clone / ROOT / kind)
    for kind in ("features", "codebook"):
        shutil.rmtree(clone / ROOT / "store" / kind)
    for name, tokens in (("lc", 64), ("lc-f8", 256)):
        folder = store(clone, "tokens", f"{name}/photos-tiny/validation")
        before = (folder / "ids.npy").read_bytes()
        shutil.rmtree(folder)
        done = vqbench(clone, "tokenize", name, "--split", "validation", "--scale", "tiny")
        assert done.returncode == 0, done.stderr
        assert (folder / "ids.npy").read_bytes() == before
        ids = np.load(folder / "ids.npy")
        assert ids.shape == (48, tokens, 1) and len(np.unique(ids)) > 1


def test_standardized_codes_are_centred_and_of_length_1_on_average() -> None:
    codes = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) * 3 + 7
    found = standardized(codes)
    assert found.mean(0).abs().max() < 1e-6 and found.norm(dim=1).mean() == pytest.approx(1)
    back = found * (codes - codes.mean(0)).norm(dim=1).mean() + codes.mean(0)
    torch.testing.assert_close(back, codes, rtol=1e-5, atol=1e-5)
    assert torch.equal(standardized(torch.full((3, 2), 4.0)), torch.zeros(3, 2))


@pytest.mark.parametrize(("facts_of_it", "moved"), [({"features": 100}, True), ({}, False)])
def test_only_codes_from_features_are_standardized(facts_of_it: dict[str, int], moved: bool, tmp_path: Path) -> None:
    """Random ones keep the distribution that Table 6 is about."""
    codes = torch.rand(16, 6, generator=torch.Generator().manual_seed(0))
    write_tensors(tmp_path / CODEBOOK, {"codebook": codes})
    tokens = TokenSpec(layout="raster", grid=4, num_tokens=16, code_dim=4, num_codes=16)
    made: Any = SimpleNamespace(file=lambda name: tmp_path / name, facts=facts_of_it)
    tokenizer: Any = SimpleNamespace(standardize=True, quantizer=ProjectedQuantizer(tokens, 6))
    LargeCodebookTokenizer.take(tokenizer, "codebook", made)
    assert torch.equal(tokenizer.quantizer.weight, standardized(codes) if moved else codes)


def test_the_tokens_say_the_projected_dimension(ran: Path) -> None:
    tokens = {n: read_json(ran / ROOT / "tokenizers" / n / "manifest.json")["spec"]["tokens"] for n in TOKENIZERS}
    assert {n: (t["code_dim"], t["grid"], t["num_codes"]) for n, t in tokens.items()} == {
        "lc": (8, 8, 12), "lc-f8": (8, 16, 24), "lc-learned": (8, 8, 16), "lc-bare": (8, 8, 20),
    }  # fmt: skip


def test_only_a_family_that_needs_one_waits_for_a_codebook(ran: Path) -> None:
    inputs = {n: read_json(ran / ROOT / "tokenizers" / n / "manifest.json")["inputs"] for n in TOKENIZERS}
    assert all(f"codebook/{TOKENIZERS[n]['codebook']}" in found for n, found in inputs.items())
    done = snakemake(ran, "-n", "results/tiny/table6b.csv", "--config", "scale=tiny")
    assert done.returncode == 0 and "rule codebook" not in done.stdout + done.stderr


def test_the_batch_of_images_does_not_matter(ran: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    shutil.copytree(ran, clone, symlinks=True)
    scale = clone / "workflow" / "scales" / "tiny.yaml"
    scale.write_text(scale.read_text().replace("batch: 32", "batch: 7"))
    done = vqbench(clone, "features", "clip-vitl14", "--dataset", "photos-tiny", "--scale", "tiny")
    assert done.returncode == 0, done.stderr
    one, other = (features_of(folder, "clip-vitl14/photos-tiny").astype(np.float32) for folder in (ran, clone))
    np.testing.assert_allclose(one, other, rtol=2**-10, atol=1e-6)


def test_two_processes_write_the_same_features(ran: Path) -> None:
    folder = store(ran, "features", "clip-vitl14/photos-tiny")
    before = (folder / "features.npy").read_bytes()
    (folder / "finished.json").unlink()
    words = ("features", "clip-vitl14", "--dataset", "photos-tiny", "--scale", "tiny", "--processes", "2")
    done = vqbench(ran, *words)
    assert done.returncode == 0, done.stderr
    assert (folder / "features.npy").read_bytes() == before


def killed_when_saved(clone: Path, folder: Path, words: list[str]) -> bool:
    """Start a command and send it SIGKILL when a state of it is saved; whether it still ran then."""
    shutil.rmtree(folder)
    process = subprocess.Popen(words, cwd=clone, env=environment(clone), stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(folder.glob("state/*/checkpoint-*.json")):
        time.sleep(0.001)
    process.kill()
    return process.wait() == -signal.SIGKILL and bool(list(folder.glob("state/*/checkpoint-*.json")))


@pytest.mark.parametrize("name", ["by-class", "faces"])
def test_a_codebook_killed_on_its_way_ends_with_the_same_bytes(ran: Path, name: str, tmp_path: Path) -> None:
    """SIGKILL as soon as a state is saved, then the same command again."""
    clone = tmp_path / "clone"
    shutil.copytree(ran, clone, symlinks=True)
    folder = store(clone, "codebooks", name)
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix in (".npy", ".safetensors")}
    manifest = (clone / ROOT / "codebooks" / name / "manifest.json").read_bytes()
    words = [sys.executable, "-m", "vqbench.cli", "codebook", name, "--scale", "tiny"]
    assert any(killed_when_saved(clone, folder, words) for _ in range(10)), "every run ended before it was hit"
    done = vqbench(clone, *words[3:])
    assert done.returncode == 0, done.stderr
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix in (".npy", ".safetensors")} == before
    assert (clone / ROOT / "codebooks" / name / "manifest.json").read_bytes() == manifest


def test_a_feature_that_is_no_number_is_named_with_its_file(ran: Path, tmp_path: Path) -> None:
    """Written so, whatever wrote it: the manifest lists the damaged bytes as its own."""
    from vqbench.artifacts import describe, sealed, write_json

    clone = tmp_path / "clone"
    shutil.copytree(ran, clone, symlinks=True)
    folder = store(clone, "features", "clip-vitl14/photos-tiny")
    found = np.load(folder / "features.npy")
    found[700, 3] = np.nan
    np.save(folder / "features.npy", found)
    path = clone / ROOT / "features" / "clip-vitl14" / "photos-tiny" / "manifest.json"
    body = {k: v for k, v in json.loads(path.read_text()).items() if k != "self"}
    write_json(path, sealed(body | {"outputs": describe(folder, body["outputs"])}))
    done = vqbench(clone, "codebook", "by-class", "--scale", "tiny")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "features.npy holds a feature that is not finite (row 700)" in done.stderr


def test_plan_and_list_know_codebooks(ran: Path) -> None:
    listed = vqbench(ran, "list", "codebooks", "--scale", "tiny")
    assert listed.returncode == 0 and "kmeans-per-class" in listed.stdout
    planned = vqbench(ran, "plan", "lc-f8", "--scale", "tiny")
    assert planned.returncode == 0 and "tokenizer/lc-f8" in planned.stdout, planned.stderr
    by_name = snakemake(ran, "-n", "by-class", "--config", "scale=tiny")
    assert by_name.returncode == 0, by_name.stderr[-2000:]


def test_all_of_it_is_planned_at_paper_scale(clone: Path) -> None:
    done = snakemake(with_entries(clone), "-n", "--config", "scale=paper", "--", "lc")
    text = done.stdout + done.stderr
    assert done.returncode == 0, text[-3000:]
    for rule in ("features", "codebook", "train_tokenizer"):
        assert f"rule {rule}:" in text
    planned = vqbench(clone, "plan", "lc")
    assert planned.returncode == 0, planned.stderr
    (line,) = (line for line in planned.stdout.splitlines() if line.startswith("features/"))
    _, seen, hours, disk = line.replace("to do", "to-do").split()[1:]
    assert (seen, float(disk)) == ("1,281,167", 31.49)  # 1,281,167 images x 16 vectors x 768 numbers x 2 bytes
    assert float(hours) == pytest.approx(1_281_167 * 162.4e9 / 15e12 / 3600, rel=0.02)  # open_clip states 162 GFLOPs
