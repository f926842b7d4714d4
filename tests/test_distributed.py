"""Several processes give what one gives: really started, joined over gloo, and killed."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import warm
import yaml
from helpers import ROOT, copy_clone, environment, run_in, snakemake, vqbench

from vqbench.distributed import share

SCRIPT = Path(__file__).with_name("several.py")
GATHERING = SCRIPT.with_name("gathering.py")
TINY = ("--config", "scale=tiny")
Calm = Callable[[int, str], dict[str, Any]]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with the scale ``tiny``."""
    return copy_clone(tmp_path_factory.mktemp("several") / "clone")


def together(
    clone: Path, processes: int, *words: object, script: Path = SCRIPT, **env: str
) -> subprocess.CompletedProcess[str]:
    agent = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return run_in(clone, warm.python(), "-m", *agent, str(script), *map(str, words), **env)


@pytest.fixture(scope="module")
def calm(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Calm:
    """What so many undisturbed processes learned of a run: trained once."""
    return functools.cache(lambda processes, run: learned(tiny, processes, run, tmp_path_factory.mktemp("calm")))


def learned(clone: Path, processes: int, run: str, folder: Path, **env: str) -> dict[str, Any]:
    done = together(clone, processes, run, folder, **env)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = torch.load(folder / "found.pt", weights_only=True)
    return found


def assert_close(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Loss curves, weights and moving averages to 1e-9."""
    assert len(one["rows"]) == len(other["rows"]) == 50
    for a, b in zip(one["rows"], other["rows"], strict=True):
        assert a.keys() == b.keys()
        for name, value in a.items():
            assert b[name] == pytest.approx(value, rel=1e-9, abs=1e-12), (a["step"], name)
    for part in ("weights", "extras"):
        torch.testing.assert_close(other[part], one[part], rtol=1e-9, atol=1e-9)
    assert other["usage"] == one["usage"]


# StyleGAN2's discriminator with minibatch deviation, LeCam and EMA; PatchGAN's batch norm and the adaptive weight; a codebook
# of moving averages, which is among the weights; generators of ids (masked, with its EMA of weights) and of latents.
@pytest.mark.parametrize(
    ("run", "processes"),
    [
        ("cq-k16384", 2),
        ("cq-k16384", 3),
        ("vqgan-k1024", 2),
        ("ema-k1024", 2),
        ("cq-b-k16384", 3),
        ("dit-lc-k100000", 2),
    ],
)
def test_the_loss_curve_is_that_of_one_process(calm: Calm, run: str, processes: int) -> None:
    one, more = calm(1, run), calm(processes, run)
    assert_close(one, more)
    if not run.startswith(("cq-b", "dit")):
        assert len(one["usage"].splitlines()) == 6, "codes hit in 5 epochs of 9 steps"
    assert ("quantizer.counts" in one["weights"]) == run.startswith("ema"), "moving averages are compared, too"


def test_moving_averages_are_bit_identical_on_two_processes(calm: Calm) -> None:
    """Of the same vectors. Over a training, encoders differ in the last bit, so codebooks do: see above."""
    one, two = calm(1, "averages"), calm(2, "averages")
    assert one["counts"].sum() > 0 and one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_recomputed_activations_change_nothing(calm: Calm, tiny: Path, tmp_path: Path) -> None:
    plain = calm(1, "vqgan-k1024")
    again = learned(tiny, 1, "vqgan-k1024", tmp_path / "again", SWITCHES="recompute")
    assert plain["rows"] == again["rows"]
    torch.testing.assert_close(again["weights"], plain["weights"], rtol=0, atol=0)


def test_a_killed_worker_ends_all_and_the_next_call_goes_on(calm: Calm, tiny: Path, tmp_path: Path) -> None:
    undisturbed = calm(2, "cq-k16384")
    folder = tmp_path / "killed"
    first = together(tiny, 2, "cq-k16384", folder, KILL="1:33")
    assert first.returncode != 0 and not (folder / "found.pt").exists()
    assert_ended(tiny)
    again = learned(tiny, 2, "cq-k16384", folder)
    assert again["rows"] == undisturbed["rows"] and again["usage"] == undisturbed["usage"]
    torch.testing.assert_close(again["weights"], undisturbed["weights"], rtol=0, atol=0)


def test_tokens_samples_and_scores_are_gathered_exactly(tmp_path: Path) -> None:
    """The steps of a small DAG again in 2 and 3 processes: the same bytes."""
    clone = copy_clone(tmp_path / "clone")
    done = snakemake(clone, "results/tiny/table6b.csv", "cq-b-k16384-s10", *TINY, "--show-failed-logs")
    assert done.returncode == 0, done.stderr[-4000:]
    steps = [
        ("tokens/cq-k16384/photos-tiny/train", ["tokenize", "cq-k16384", "--split", "train"], 2),
        ("samples/cq-b-k16384-s10", ["sample", "cq-b-k16384-s10"], 2),
        ("samples/cq-b-k16384-s10", ["sample", "cq-b-k16384-s10"], 3),
        ("tokenizer-scores/cq-k16384/photos-tiny", ["score", "cq-k16384"], 2),
        ("sample-scores/cq-b-k16384-s10", ["score", "cq-b-k16384-s10"], 3),
    ]
    for name, words, processes in steps:
        kind, _, rest = name.partition("/")
        known = {path: json.loads(path.read_text()) for path in (clone / "results" / "tiny").rglob("manifest.json")}
        (path,) = [p for p, m in known.items() if (m["kind"], m["name"]) == (kind, rest)]
        before = known[path]
        shutil.rmtree(clone / before["store"])
        path.unlink()
        done = vqbench(clone, *words, "--scale", "tiny", "--processes", str(processes))
        assert done.returncode == 0, done.stderr[-3000:]
        after = json.loads(path.read_text())
        assert after["outputs"] == before["outputs"] and after["facts"] == before["facts"], name
        if "scores" in kind:
            warnings = json.loads((clone / after["store"] / "scores.json").read_text())["warnings"]
            assert any("fid of 40 generated images" in warning for warning in warnings) == (kind == "sample-scores")
        assert json.loads(path.with_name("run.json").read_text())["processes"] == processes


def test_the_first_process_alone_holds_what_all_saw(tmp_path: Path) -> None:
    found = {}
    for processes in (1, 2, 3):
        (folder := tmp_path / str(processes)).mkdir()
        done = together(ROOT, processes, folder, script=GATHERING)
        assert done.returncode == 0, done.stderr[-3000:]
        found[processes] = (folder / "found.json").read_bytes()
        held = [json.loads((folder / f"{number}.json").read_text()) for number in range(processes)]
        own = [
            4 * len(share(range(16), number, processes)) for number in range(processes)
        ]  # the last batch has one image
        assert [each["images"] for each in held] == [61, *own[1:-1], *([own[-1] - 3] if processes > 1 else [])]
        assert [each["given"] for each in held] == [list(range(1, processes)), *[[]] * (processes - 1)]
    assert found[1] == found[2] == found[3], "the same bytes"
    assert json.loads(found[1])["copies"] == 11


def test_what_goes_wrong_in_one_process_is_said_without_a_traceback(clone: Path) -> None:
    done = snakemake(clone, "results/tiny/datasets/photos-tiny/manifest.json", *TINY)
    done = vqbench(clone, "reference", "photos-tiny", "--scale", "tiny", "--processes", "2")
    assert done.returncode == 2 and "runs in one process" in done.stderr
    done = vqbench(clone, "train-tokenizer", "cq-k16384", "--scale", "tiny", "--processes", "2")  # no data set yet
    assert done.returncode == 1 and "Traceback" not in done.stderr and "manifest.json" in done.stderr
    done = vqbench(clone, "train-tokenizer", "cq-k16384", "--scale", "tiny", "--processes", "1", "--nodes", "2")
    assert done.returncode == 2 and "Slurm" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(("count", "among"), [(8, 1), (8, 3), (2, 5), (0, 2)])
def test_shares_cover_everything_once_and_evenly(count: int, among: int) -> None:
    parts = [share(range(count), number, among) for number in range(among)]
    assert [i for part in parts for i in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert max(map(len, parts)) == math.ceil(count / among)


def started(clone: Path, log: Path) -> subprocess.Popen[bytes]:
    """A training in two processes, in its loop."""
    command = [
        sys.executable,
        "-m",
        "vqbench.cli",
        "train-tokenizer",
        "cq-k16384",
        "--scale",
        "tiny",
        "--processes",
        "2",
    ]
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=clone, stdout=file, stderr=file, env=environment(clone))
    deadline = time.monotonic() + 90
    while "step/s" not in log.read_text():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    return process


def workers(clone: Path) -> list[psutil.Process]:
    """Processes that work in that clone."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cwd() == str(clone):
                found.append(process)
    return found


def assert_ended(clone: Path) -> None:
    """Within seconds none of them is left."""
    deadline = time.monotonic() + 30
    while workers(clone):
        assert time.monotonic() < deadline, "processes outlived their agent"
        time.sleep(0.2)


def test_a_notice_and_a_killed_agent_lose_nothing(clone: Path, tmp_path: Path) -> None:
    path = clone / "workflow" / "scales" / "tiny.yaml"
    scale = yaml.safe_load(path.read_text())
    # Only a notice saves in between. The agent passes it on within seconds: 40 steps of a fast core can be over by then.
    scale["tokenizers"]["training"] |= {"steps": 120, "checkpoint_every": 120}
    path.write_text(yaml.safe_dump(scale, sort_keys=False))
    needed = [f"results/tiny/{p}/manifest.json" for p in ("datasets/photos-tiny", "pretrained/tiny-classifier")]
    assert snakemake(clone, *needed, *TINY).returncode == 0
    log = tmp_path / "log"

    told = started(clone, log)
    told.send_signal(signal.SIGTERM)
    assert told.wait(60) == os.EX_TEMPFAIL, log.read_text()
    assert "stopped by SIGTERM" in log.read_text() and "Traceback" not in log.read_text()
    assert list((clone / "results").rglob("checkpoint-*.json"))

    killed = started(clone, log)
    killed.kill()
    killed.wait()
    assert_ended(clone)

    manifest = clone / "results" / "tiny" / "tokenizers" / "cq-k16384" / "manifest.json"
    disturbed = vqbench(clone, "train-tokenizer", "cq-k16384", "--scale", "tiny", "--processes", "2")
    assert disturbed.returncode == 0 and "resumed" in disturbed.stdout, disturbed.stderr
    before = manifest.read_bytes()
    shutil.rmtree(clone / json.loads(before)["store"])
    assert vqbench(clone, "train-tokenizer", "cq-k16384", "--scale", "tiny", "--processes", "2").returncode == 0
    assert manifest.read_bytes() == before
