"""Snakemake itself killed, started twice, without its metadata, and overtaken by an edit."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import warm
from helpers import edit, environment, snakemake

TINY = ("--config", "scale=tiny")
TARGET = "results/tiny/tokenizers/cq-k16384/manifest.json"


def started(folder: Path, *args: str, python: str) -> subprocess.Popen[str]:
    """``snakemake ...`` in a clone, which goes on beside the test."""
    command = [python, "-m", "snakemake", "--cores", "2", *args, *TINY]
    return subprocess.Popen(command, cwd=folder, env=environment(folder), text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip


def until(what: str, happened: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.05)


def at_work(folder: Path) -> list[str]:
    """Command lines of the processes whose working directory is the clone."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink() == folder:
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:  # another user's, or gone
            continue
    return found


def test_killed_and_called_again(clone: Path) -> None:
    scale = clone / "workflow" / "scales" / "tiny.yaml"
    edit(scale, "steps: 3\n", "steps: 150\n")
    edit(scale, "checkpoint_every: 2\n", "checkpoint_every: 5\n")
    state = clone / "results/tiny/store/tokenizer/cq-k16384"
    first = started(clone, TARGET, python=sys.executable)
    until("a checkpoint", lambda: list(state.glob("*/state/checkpoint-000000005.json")) or first.poll() is not None)
    second = snakemake(clone, TARGET, *TINY)
    assert second.returncode != 0 and "cannot be locked" in second.stderr and "Traceback" not in second.stderr
    assert first.poll() is None, first.communicate()[0]
    first.kill()
    first.communicate()
    until("the job to end with its Snakemake", lambda: not at_work(clone), 30)
    log = (clone / "results/tiny/logs/tokenizers/cq-k16384.log").read_text()
    assert "Snakemake was killed; stopping" in log and "stopped by SIGTERM at step" in log

    third = snakemake(clone, TARGET, *TINY)
    assert third.returncode != 0 and "--unlock" in third.stderr
    assert snakemake(clone, "--unlock", TARGET, *TINY).returncode == 0
    last = snakemake(clone, "--rerun-incomplete", TARGET, *TINY)
    text = last.stdout + last.stderr
    assert last.returncode == 0 and "resumed cq-k16384 at step" in text, text[-3000:]

    shutil.rmtree(clone / ".snakemake")
    done = snakemake(clone, "-n", TARGET, *TINY)
    assert "Nothing to be done" in done.stdout + done.stderr, "the manifests alone say that all is done"


def test_edited_code_stops_the_waiting_jobs_that_read_it(clone: Path) -> None:
    """A family's file stops its own tokenizer, a plot's file the figure; what reads neither is made."""
    edit(clone / "workflow" / "pretrained.yaml", "steps: 5\n", "steps: 60\n")
    reached, spared, figure = (
        "results/tiny/tokenizers/llamagen-d8/manifest.json", TARGET, "results/tiny/cq/figures/fig4.pdf"
    )  # fmt: skip
    running = started(clone, "--keep-going", "--show-failed-logs", reached, spared, figure, python=warm.python())
    until("the first job", lambda: (clone / "results/tiny/store/pretrained").exists() or running.poll() is not None)
    assert running.poll() is None, running.communicate()[0]
    for path in ("tokenizers/vq.py", "eval/plots_images.py"):
        with (clone / path).open("a") as file:
            file.write("\nEDITED = 1\n")
    text = running.communicate(timeout=300)[0]
    assert running.returncode != 0 and "Traceback" not in text
    assert "tokenizer/llamagen-d8 changed between submission and start" in text and "tokenizers.vq" in text, text[
        -3000:
    ]
    assert "figure cq/fig4 changed between submission and start" in text, text[-9000:]
    assert (clone / spared).is_file() and not (clone / reached).exists() and not (clone / figure).exists()
    again = snakemake(clone, reached, spared, figure, *TINY)
    assert again.returncode == 0 and jobs(again) == ["figure", "train_tokenizer"], again.stderr[-3000:]


def jobs(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Rules of the jobs that a call ran, or would run."""
    return sorted(set(re.findall(r"^(?:local)?rule (\w+):", done.stdout + done.stderr, re.M)))


def test_without_snakemakes_record_the_manifests_are_compared(clone: Path) -> None:
    figure = "results/tiny/cq/figures/fig4.pdf"
    assert snakemake(clone, figure, *TINY).returncode == 0
    shutil.rmtree(clone / ".snakemake")
    assert jobs(snakemake(clone, "-n", figure, *TINY)) == []
    for path, old, new, reached in (
        ("workflow/scales/tiny.yaml", "16384: 24", "16384: 25", ["figure", "train_tokenizer"]),
        ("eval/plots_images.py", "\n\n\ndef open_codes(", "\n\nEDITED = 1\n\n\ndef open_codes(", ["figure"]),
        ("workflow/datasets.yaml", "validation: 48", "validation: 47",
         ["check_dataset", "figure", "pretrained", "train_tokenizer"]),
    ):  # fmt: skip
        edit(clone / path, old, new)
        assert jobs(snakemake(clone, "-n", figure, *TINY)) == reached, path
        done = snakemake(clone, figure, *TINY)
        assert done.returncode == 0 and jobs(done) == reached, (path, jobs(done), done.stderr[-2000:])
        shutil.rmtree(clone / ".snakemake")
        assert jobs(snakemake(clone, "-n", figure, *TINY)) == [], path


def test_an_edit_stops_the_waiting_job_that_it_reaches_and_no_other(clone: Path) -> None:
    edit(clone / "workflow" / "pretrained.yaml", "steps: 5\n", "steps: 60\n")
    reached, spared = (f"results/tiny/tokenizers/{name}/manifest.json" for name in ("cq-k1024", "cq-k16384"))
    running = started(clone, "--keep-going", "--show-failed-logs", reached, spared, python=warm.python())
    until("the first job", lambda: (clone / "results/tiny/store/pretrained").exists() or running.poll() is not None)
    assert running.poll() is None, running.communicate()[0]
    edit(clone / "workflow" / "scales" / "tiny.yaml", "1024: 16\n", "1024: 17\n")
    text = running.communicate(timeout=300)[0]
    what = "tokenizer/cq-k1024 changed between submission and start: its spec (options.num_codes: 16, now 17, "
    assert running.returncode != 0 and what in text, text[-3000:]
    assert (clone / spared).is_file() and not (clone / reached).exists()
    again = snakemake(clone, reached, spared, *TINY)
    assert again.returncode == 0, again.stderr[-3000:]
    assert len(re.findall(r"^(?:local)?rule train_tokenizer:", again.stdout + again.stderr, re.M)) == 1
    assert (clone / reached).is_file()
