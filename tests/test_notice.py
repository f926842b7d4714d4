"""Signals to a step that keeps its state: it saves, says so, exits 75, and the same command ends with the same bytes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from filelock import FileLock
from forks import STAGES, Forks, made, store_of
from helpers import copy_clone, environment, vqbench

from vqbench.notice import SIGNALS, Notice

COMMAND = ("pretrained", "tiny-classifier", "--scale", "tiny")


def stores(folder: Path) -> Path:
    return next((folder / "results/tiny/store/pretrained/tiny-classifier").iterdir())


def interrupted(folder: Path, number: signal.Signals, saved: int) -> str:
    """Start the step, signal it when it is past its last checkpoint, and return what it said."""
    process = subprocess.Popen(
        [sys.executable, "-m", "vqbench.cli", *COMMAND],
        cwd=folder, env=environment(folder), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    said = process.stderr.readline()  # the first bar: it is in its loop
    time.sleep(1)
    process.send_signal(number)
    said += process.communicate(timeout=60)[1]
    assert process.returncode == os.EX_TEMPFAIL, said
    assert steps(folder) > saved, "it saved at the step that it was in, not at its last checkpoint"
    return said


def steps(folder: Path) -> int:
    return max(int(p.stem.split("-")[1]) for p in stores(folder).glob("state/checkpoint-*.json"))


def test_each_signal_saves_the_step_and_the_same_command_goes_on(clone: Path) -> None:
    network = clone / "workflow" / "pretrained.yaml"
    text = (
        network.read_text()
        .replace("steps: 5\n", "steps: 2500\n")
        .replace("checkpoint_every: 5", "checkpoint_every: 2500")
    )
    network.write_text(text)
    assert vqbench(clone, "check-dataset", "photos-tiny", "--scale", "tiny").returncode == 0
    saved = 0
    for number in SIGNALS:
        said = interrupted(clone, number, saved)
        saved = steps(clone)
        assert f"stopped by {number.name} at step {saved}" in said and "Traceback" not in said
        assert not (stores(clone) / "failure.json").exists(), "no table shall call it failed"
    done = vqbench(clone, *COMMAND)
    assert done.returncode == 0 and f"at step {saved}" in done.stdout, done.stderr[-2000:]
    disturbed = (stores(clone) / "model.safetensors").read_bytes()
    (stores(clone) / "finished.json").unlink()
    (clone / "results/tiny/pretrained/tiny-classifier/manifest.json").unlink()
    assert vqbench(clone, *COMMAND).returncode == 0
    assert (stores(clone) / "model.safetensors").read_bytes() == disturbed


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """A clone whose generator and samples take seconds, with all that they need; no checkpoint comes before the end."""
    clone = copy_clone(tmp_path_factory.mktemp("notice") / "clone")
    path = clone / "workflow" / "scales" / "tiny.yaml"
    scale = yaml.safe_load(path.read_text())
    scale["generators"]["training"] |= {"steps": 600, "checkpoint_every": 600}
    scale["samples"]["set"] |= {"count": 3200}
    path.write_text(yaml.safe_dump(scale, sort_keys=False))
    with Forks(clone) as forks:
        for stage in ("check-dataset", "pretrained", "train-tokenizer", "tokenize", "train-generator"):
            forks.finish(*STAGES[stage])
        yield forks


@pytest.mark.parametrize("stage", ["train-generator", "sample"])
def test_a_generator_and_its_samples_save_at_sigterm_and_go_on(forks: Forks, stage: str) -> None:
    manifest = forks.finish(*STAGES[stage])
    undisturbed, store = made(manifest), store_of(manifest)
    shutil.rmtree(store)
    manifest.unlink()
    forks.log.write_text("")
    pid, until = forks.start(*STAGES[stage]), time.monotonic() + 60
    while "%|" not in forks.log.read_text():  # the first bar: it is in its loop
        assert time.monotonic() < until, forks.log.read_text()
        time.sleep(0.01)
    os.kill(pid, signal.SIGTERM)
    done = forks.wait()
    assert done.status == os.EX_TEMPFAIL and "stopped by SIGTERM at" in done.text and "Traceback" not in done.text, done
    kept = {p.name for p in (store / "state").glob("[!.]*")}
    assert any(name.startswith(("checkpoint-", "shard-")) for name in kept), "it saved where it was"
    assert not (store / "failure.json").exists(), "no table shall call it failed"
    again = forks.run(*STAGES[stage])
    assert again.status == 0 and ("resumed" in again.text or stage == "sample"), again.text
    assert made(manifest) == undisturbed


@pytest.mark.parametrize("number", SIGNALS)
def test_a_job_that_waits_for_anothers_lock_stops_as_a_loop_does(clone: Path, number: signal.Signals) -> None:
    """Else a time limit that comes meanwhile would fail the job, instead of queueing it again."""
    assert vqbench(clone, "check-dataset", "photos-tiny", "--scale", "tiny").returncode == 0
    store = next((clone / "results/tiny/store/dataset/photos-tiny").iterdir())
    with FileLock(store / ".lock"):
        process = subprocess.Popen(
            [sys.executable, "-m", "vqbench.cli", "check-dataset", "photos-tiny", "--scale", "tiny"],
            cwd=clone, env=environment(clone, SLURM_JOB_ID="1"), stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stderr is not None
        said = process.stderr.readline()
        assert "another process right now; waiting" in said
        time.sleep(1)
        process.send_signal(number)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == os.EX_TEMPFAIL and f"stopped by {number.name} at its wait" in said, said
    assert "Traceback" not in said and not (store / "failure.json").exists()


def test_outside_of_a_loop_signals_do_what_they_always_do() -> None:
    before = {s: signal.getsignal(s) for s in SIGNALS}
    with Notice() as notice:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert notice.given and "stopped by SIGUSR1 at here" in str(notice.stopped("here"))
    assert {s: signal.getsignal(s) for s in SIGNALS} == before


@pytest.mark.parametrize("number", SIGNALS)
def test_a_loaders_processes_leave_the_end_to_their_reader(number: signal.Signals) -> None:
    code = (
        "import time; from vqbench.notice import ignore_in_worker as f; f(0); print('ready', flush=True); time.sleep(1)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.wait(timeout=30) == 0
    process.stdout.close()
