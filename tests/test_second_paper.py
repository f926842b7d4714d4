"""VQGAN-LC's kinds of step, really run at the tiny scale: teacher's features, k-means, latents, four generators, a classifier."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from helpers import copy_clone, snakemake
from safetensors.torch import load_file

# Table 8 has two data sets with two codebooks; the others learn from one of its tokenizers. LDM's and DiT's samples are of the
# same latents as SiT's.
TABLE = "results/tiny/vqgan_lc/table8.csv"
SAMPLES = ["gpt-lc-k100000-s", "ldm-lc-k100000-s", "dit-lc-k100000-s", "sit-lc-k100000-released-code"]
CLASSIFIER = "lc-k100000-vit"
KINDS = ("features", "codebook", "tokenizer", "latents", "generator", "samples", "classifier")


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clone in which all of that was made."""
    folder = copy_clone(tmp_path_factory.mktemp("ran") / "clone")
    done = snakemake(folder, TABLE, *SAMPLES, CLASSIFIER, "--config", "scale=tiny", "--show-failed-logs")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return folder


def one(folder: Path, kind: str, name: str, file: str) -> Path:
    """A file of a run's only store."""
    (path,) = (folder / "results" / "tiny" / "store" / kind / name).glob(f"**/{file}")
    return path


def test_runs_share_what_they_read(ran: Path) -> None:
    """One store of features a data set, of a codebook, of latents: a second version of any would be a second folder."""
    stores = {kind: len(list((ran / "results" / "tiny" / "store" / kind).glob("**/finished.json"))) for kind in KINDS}
    assert stores == {
        "features": 2,
        "codebook": 2,
        "tokenizer": 4,
        "latents": 1,
        "generator": 4,
        "samples": 4,
        "classifier": 1,
    }


def test_the_table_is_measured_and_its_rows_have_distances_of_their_own(ran: Path) -> None:
    with (ran / TABLE).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["status"] for row in rows} == {"measured"} and len(rows) == 4
    for column in ("rFID measured [demo-judge]", "Perplexity measured"):
        assert len({float(row[column]) for row in rows}) == 4, column
    assert all(5 < float(row["PSNR measured [vqgan-lc-code]"]) < 50 for row in rows)
    assert all(0 < float(row["Utilization(%) measured"].rstrip("%")) <= 100 for row in rows)
    assert [row["rFID printed"] for row in rows] == ["3.81", "4.08", "2.62", "2.91"]


def test_the_codebook_is_frozen_bit_for_bit(ran: Path) -> None:
    made = load_file(one(ran, "codebook", "clip-k100000-ffhq", "codebook.safetensors"))["codebook"]
    for name in ("lc-from-ffhq", "ffhq-lc-k100000"):
        model = load_file(one(ran, "tokenizer", name, "model.safetensors"))
        assert torch.equal(model["quantizer.weight"], made), name


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_are_scored(name: str, ran: Path) -> None:
    metrics = json.loads(one(ran, "sample-scores", name, "scores.json").read_text())["metrics"]
    assert metrics["fid[demo-judge]"]["value"] > 0 and metrics["fid[demo-judge]"]["n"] == 40
    assert 0 < metrics["usage"]["value"] <= 100


def test_the_classifier_is_scored(ran: Path) -> None:
    top1 = json.loads(one(ran, "classifier-scores", CLASSIFIER, "scores.json").read_text())["metrics"]["top1"]
    assert 0 <= top1["low"] <= top1["value"] <= top1["high"] <= 100 and top1["n"] == 48
