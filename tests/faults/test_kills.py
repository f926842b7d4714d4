"""SIGKILL at a random moment of every stage: the same command again ends with the bytes of a run left in peace.

FAULT_SEED repeats a run of this file, whose seed pytest prints at its top; FAULT_TRIALS is the number of kills a stage.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from forks import STAGES, Forks, made, store_of

from vqbench.artifacts import sha256_file

TRIALS = int(os.environ.get("FAULT_TRIALS", "3"))
SEED = os.environ["FAULT_SEED"]


class Calm(NamedTuple):
    """A stage left in peace: where it publishes, how long it takes (seconds), and what it made."""

    manifest: Path
    seconds: float
    made: dict[str, bytes]


@pytest.fixture(scope="module")
def calm(forks: Forks) -> dict[str, Calm]:
    """Every stage, once."""
    found = {}
    for stage, words in STAGES.items():
        began = time.monotonic()
        manifest = forks.finish(*words)
        found[stage] = Calm(manifest, time.monotonic() - began, made(manifest))
    return found


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


# What people read has no manifest: a file is whole and as before, or not there.
DRAWN = {
    "table": (("table", "cq/1"), ("table1.csv", "table1.md", "table1.tex")),
    "figure": (("figure", "cq/fig4"), ("cq/figures/fig4.pdf", "cq/figures/fig4.png")),
}


@pytest.mark.parametrize("what", DRAWN)
def test_a_table_or_figure_killed_is_whole_or_not_there(what: str, forks: Forks, calm: dict[str, Calm]) -> None:
    words, names = DRAWN[what]
    files = [forks.folder / "results/tiny" / name for name in names]
    began = time.monotonic()
    forks.finish(*words)
    seconds, rng = time.monotonic() - began, random.Random(f"{SEED} {what}")
    known = {path: sha256_file(path) for path in files}
    for trial in range(TRIALS):
        for path in files:
            path.unlink()
        moment = rng.uniform(0, seconds)
        forks.killed(moment, *words)
        where = f"FAULT_SEED={SEED}, {what}, trial {trial}, killed after {moment:.3f} of {seconds:.3f} s"
        assert all(sha256_file(path) == digest for path, digest in known.items() if path.exists()), where
        forks.finish(*words)
        assert {path: sha256_file(path) for path in files} == known, where
