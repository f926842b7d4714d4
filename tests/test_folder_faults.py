"""A folder of images through the real DAG: hostile names, broken files, reading processes that are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import yaml
from helpers import copy_clone, environment, snakemake, vqbench
from PIL import Image

TINY = ("--config", "scale=tiny")
HOSTILE = "a b;'\"$(touch pwned)`touch pwned`&touch pwned"


def write_images(root: Path, classes: list[str], count: int, size: int = 40) -> Path:
    """``root/{train,validation}/<class>/<hostile name>.png``."""
    rng = np.random.default_rng(0)
    for split in ("train", "validation"):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{HOSTILE}{i}.png")
    return root


def add_dataset(folder: Path, count: int, **change: object) -> None:
    """The data set ``scans``, whose path is $SCANS, in the clone's datasets.yaml."""
    entry = {"kind": "folder", "path": "$SCANS", "resolution": 32, "classes": 2, "augment": "flip",
             "splits": {"train": "train", "validation": "validation"},
             "sizes": {"train": count, "validation": count}} | change  # fmt: skip
    path = folder / "workflow" / "datasets.yaml"
    path.write_text(path.read_text() + yaml.safe_dump({"scans": entry}))


def test_hostile_names_of_clone_folder_and_files_run_nothing(tmp_path: Path) -> None:
    folder = copy_clone(tmp_path / HOSTILE / "clone")
    images = write_images(tmp_path / f"{HOSTILE} data", [HOSTILE, "plain"], 3)
    broken = images / "train" / HOSTILE / f"{HOSTILE}1.png"
    broken.write_bytes(broken.read_bytes()[:60])
    add_dataset(folder, 6, on_bad_image="skip")
    done = snakemake(folder, "results/tiny/datasets/scans/manifest.json", *TINY, SCANS=str(images))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    manifest = json.loads((folder / "results/tiny/datasets/scans/manifest.json").read_text())
    assert manifest["facts"] == {
        "images": {"train": 5, "validation": 6},
        "skipped": {"train": 1, "validation": 0},
    }, "a broken image is counted where the entry says skip"
    assert not list(tmp_path.rglob("pwned"))


def test_a_broken_image_is_named_by_the_step_where_the_entry_says_fail(clone: Path, tmp_path: Path) -> None:
    images = write_images(tmp_path / "data", ["one", "two"], 3)
    broken = images / "train" / "two" / f"{HOSTILE}1.png"
    broken.write_bytes(b"")
    add_dataset(clone, 6)
    done = vqbench(clone, "check-dataset", "scans", "--scale", "tiny", SCANS=str(images))
    assert done.returncode == 1 and str(broken) in done.stderr and "Traceback" not in done.stderr, done.stderr


def children(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """What it started and what still runs of that."""
    return psutil.Process(process.pid).children(recursive=True)


def start(folder: Path, log: Path, *words: str, **env: str) -> subprocess.Popen[str]:
    with log.open("w") as file:
        command = [sys.executable, "-m", "vqbench.cli", *words, "--scale", "tiny"]
        return subprocess.Popen(
            command, cwd=folder, stdout=file, stderr=file, text=True, env=environment(folder, **env)
        )


def test_a_killed_loader_process_is_named_and_training_goes_on_from_its_checkpoint(clone: Path, tmp_path: Path) -> None:
    images = write_images(tmp_path / "data", ["one", "two"], 8)
    add_dataset(clone, 16)
    path = clone / "workflow" / "scales" / "tiny.yaml"
    scale = yaml.safe_load(path.read_text())
    scale["datasets"]["imagenet256"] = "scans"
    scale["tokenizers"]["training"] |= {"steps": 200, "checkpoint_every": 5}
    path.write_text(yaml.safe_dump(scale, sort_keys=False))
    for words in (("check-dataset", "scans"), ("check-dataset", "photos-tiny"), ("pretrained", "tiny-classifier")):
        done = vqbench(clone, *words, "--scale", "tiny", SCANS=str(images))
        assert done.returncode == 0, done.stderr
    log = tmp_path / "log"
    process = start(clone, log, "train-tokenizer", "cq-k16384", SCANS=str(images))
    while not list((clone / "results").rglob("checkpoint-*.json")):
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    worker = max(children(process), key=lambda one: one.pid)
    os.kill(worker.pid, signal.SIGKILL)
    assert process.wait(60) == 1
    said = log.read_text()
    assert "Traceback" not in said and f"DataLoader worker (pid {worker.pid}) is killed by signal" in said, said
    assert "the last good checkpoint is step" in said
    failure = next((clone / "results").rglob("failure.json"))
    assert "DataLoader worker" in json.loads(failure.read_text())["reason"]
    done = vqbench(clone, "train-tokenizer", "cq-k16384", "--scale", "tiny", SCANS=str(images))
    assert done.returncode == 0 and "resumed cq-k16384 at step" in done.stdout, done.stderr


def test_a_killed_decoding_process_ends_the_check_in_a_line(clone: Path, tmp_path: Path) -> None:
    images = write_images(tmp_path / "data", ["one", "two"], 1, size=1500)
    for split in ("train", "validation"):
        for i in range(1500):  # enough to decode for seconds
            for name in ("one", "two"):
                (images / split / name / f"{i}.png").hardlink_to(images / split / name / f"{HOSTILE}0.png")
    add_dataset(clone, 3002)
    log = tmp_path / "log"
    process = start(clone, log, "check-dataset", "scans", SCANS=str(images))
    while not children(process):
        assert process.poll() is None, log.read_text()
        time.sleep(0.02)
    time.sleep(0.5)
    os.kill(children(process)[0].pid, signal.SIGKILL)
    assert process.wait(60) == 1
    assert "was killed" in log.read_text() and "Traceback" not in log.read_text(), log.read_text()
