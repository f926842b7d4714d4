"""SIGKILL at a random moment of every stage: the same command again ends with the bytes of a run left in peace.

FAULT_SEED repeats a run of this file, whose seed pytest prints at its top; FAULT_TRIALS is the number of kills a stage.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from forks import Forks
from helpers import copy_clone

from vqbench.artifacts import read_json

TRIALS = int(os.environ.get("FAULT_TRIALS", "3"))
SEED = os.environ["FAULT_SEED"]
BEFORE = (
    ("check-dataset", "photos-tiny"),
    ("pretrained", "tiny-classifier"),
    ("reference", "photos-tiny", "--split", "train"),
    ("reference", "photos-tiny", "--split", "validation"),
)
# In the order in which one needs the other.
STAGES = {
    "train-tokenizer": ("train-tokenizer", "cq-k16384"),
    "tokenize": ("tokenize", "cq-k16384", "--split", "train"),
    "tokenize-validation": ("tokenize", "cq-k16384", "--split", "validation"),
    "reconstruct": ("reconstruct", "cq-k16384"),
    "train-generator": ("train-generator", "cq-b-k16384"),
    "sample": ("sample", "cq-b-k16384-s10"),
    "score-tokenizer": ("score", "cq-k16384"),
    "score-samples": ("score", "cq-b-k16384-s10"),
}


class Calm(NamedTuple):
    """A stage left in peace: where it publishes, how long it takes (seconds), and what it made."""

    manifest: Path
    seconds: float
    made: dict[str, bytes]


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """A server in a clone whose runs are long enough to be hit between any two checkpoints or blocks."""
    clone = copy_clone(tmp_path_factory.mktemp("kills") / "clone")
    scale = clone / "workflow" / "scales" / "tiny.yaml"
    text = scale.read_text().replace("steps: 3\n", "steps: 24\n").replace("checkpoint_every: 2", "checkpoint_every: 5")
    scale.write_text(text.replace("count: 40\n", "count: 80\n"))
    with Forks(clone) as forks:
        for words in BEFORE:
            done = forks.run(*words)
            assert done.status == 0, done.text
        yield forks


@pytest.fixture(scope="module")
def calm(forks: Forks) -> dict[str, Calm]:
    """Every stage, once."""
    found = {}
    for stage, words in STAGES.items():
        began = time.monotonic()
        done = forks.run(*words)
        assert done.status == 0, done.text
        seconds = time.monotonic() - began
        manifest = forks.log.parent / "clone" / done.text.splitlines()[-1]
        found[stage] = Calm(manifest, seconds, made(manifest))
    return found


def store_of(manifest: Path) -> Path:
    """The folder that a manifest's files lie in."""
    results = next(p for p in manifest.parents if p.name == "results")
    return results.parent / str(read_json(manifest)["store"])


def made(manifest: Path) -> dict[str, bytes]:
    """The manifest and all of its store, but for the record of time and machine, and the lock."""
    store = store_of(manifest)
    files = [p for p in store.rglob("*") if p.is_file() and p.name not in ("run.json", ".lock")]
    return {"published": manifest.read_bytes()} | {str(p.relative_to(store)): p.read_bytes() for p in files}


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_killed_at_a_random_moment_ends_with_the_same_bytes(
    stage: str, forks: Forks, calm: dict[str, Calm]
) -> None:
    known, words, rng = calm[stage], STAGES[stage], random.Random(f"{SEED} {stage}")
    resumed, store = 0, store_of(known.manifest)
    for trial in range(TRIALS):
        shutil.rmtree(store)
        known.manifest.unlink()
        moment = rng.uniform(0, known.seconds)
        where = f"FAULT_SEED={SEED}, {stage}, trial {trial}, killed after {moment:.3f} of {known.seconds:.3f} s"
        while not forks.killed(moment, *words):
            moment *= 0.8  # this one was faster than the calm one: it ended first
            shutil.rmtree(store)
            known.manifest.unlink()
        done = forks.run(*words)
        assert done.status == 0, f"{where}\n{done.text}"
        resumed += "resumed" in done.text
        now = made(known.manifest)
        assert now.keys() == known.made.keys(), where
        assert [n for n in now if now[n] != known.made[n]] == [], where
    print(
        f"{stage}: {TRIALS} kills within {known.seconds:.2f} s, {resumed} resumed from a checkpoint; FAULT_SEED={SEED}"
    )
