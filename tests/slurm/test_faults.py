"""One training run on the cluster, disturbed four times, ends with the bytes of one that nobody disturbed.

Snakemake has no retry to spend (``--retries 0``): who is stopped by a signal, a time limit or a dead node goes on by
itself; only a job that its user cancels waits for the next call.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from clones import SLURM
from cluster import Cluster
from helpers import environment

pytestmark = pytest.mark.slurm
STEPS = 1500  # two minutes: longer than a slice, whose notice comes after one (see the runtime below)
TARGET = "results/tiny/tokenizers/cq-k1024/manifest.json"
LOG = "results/tiny/logs/tokenizers/cq-k1024.log"
OUTPUTS = ("model.safetensors", "losses.csv", "finished.json")


def long_training(ran: Path, folder: Path) -> Path:
    """A copy of a clone whose one tokenizer is to be trained for STEPS steps, in slices of two minutes."""
    shutil.copytree(ran, folder, symlinks=True)
    (folder / LOG).unlink()
    path = folder / "workflow" / "scales" / "tiny.yaml"
    scale = yaml.safe_load(path.read_text())
    scale["tokenizers"]["training"] |= {"steps": STEPS, "checkpoint_every": STEPS}  # only a notice saves in between
    scale["resources"]["tokenizer"]["runtime"] = 2
    path.write_text(yaml.safe_dump(scale, sort_keys=False))
    return folder


def until(what: str, ready: Callable[[], object], seconds: float = 150) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, f"waited {seconds} s for: {what}"
        time.sleep(0.3)


class Watched:
    """`snakemake --profile slurm` in the background, and the job that it submitted."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        self.log = folder / "snakemake.log"
        command = [sys.executable, "-m", "snakemake", *SLURM, "--retries", "0", TARGET]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, stdout=log, stderr=log, env=environment(folder, **cluster.env)
            )
        until("a job", lambda: self.process.poll() is not None or "SLURM jobid" in self.log.read_text())
        self.job = re.findall(r"SLURM jobid (\d+)", self.log.read_text())[0]

    def told(self, name: str) -> str:
        return re.findall(rf"\b{name}=(\S+)", self.cluster.output("scontrol", "show", "job", self.job))[0]

    def trains(self, restarts: int) -> None:
        """Wait until the job is in its loop (again), by its log, which each start begins anew."""
        until(f"training after {restarts} restarts", lambda: self.told("Restarts") == str(restarts)
              and self.told("JobState") == "RUNNING" and self._shows_a_bar())  # fmt: skip

    def _shows_a_bar(self) -> bool:
        log = self.folder / LOG
        text = log.read_text() if log.is_file() else ""
        return "step/s" in text and "stopped by" not in text

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:  # the test failed: a Snakemake whose cluster is gone would wait for ever
            self.process.kill()
            self.process.wait()

    def ends(self) -> int:
        return self.process.wait(timeout=600)


def saved(folder: Path) -> list[int]:
    found = folder.glob("results/tiny/store/tokenizer/cq-k1024/*/state/checkpoint-*.json")
    return sorted(int(p.stem.split("-")[1]) for p in found)


def made(folder: Path) -> dict[str, bytes]:
    """What the long training wrote: the newest store, with its checkpoint-free outputs and its manifest."""
    stores = folder.glob("results/tiny/store/tokenizer/cq-k1024/*/finished.json")
    store = max(stores, key=lambda p: p.stat().st_mtime).parent
    return {name: (store / name).read_bytes() for name in OUTPUTS} | {"manifest": (folder / TARGET).read_bytes()}


@pytest.fixture
def calm(ran: tuple[Path, object], tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """The same training by hand, undisturbed, meanwhile."""
    folder = long_training(ran[0], tmp_path / "calm")
    command = [sys.executable, "-m", "vqbench.cli", "train-tokenizer", "cq-k1024", "--scale", "tiny"]
    with (folder / "calm.log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=environment(folder))
    yield folder, process
    process.kill()
    process.wait()


def stopped_on_its_way(cluster: Cluster, folder: Path, job: Watched) -> None:
    """One job: preemption's signal, then the end of a slice, then the death of its node's daemon."""
    before = saved(folder)[-1]
    job.trains(0)
    cluster.output("scancel", "--signal=TERM", job.job)
    until("it to be queued again", lambda: job.told("Restarts") == "1")
    assert (signalled := saved(folder)[-1]) > before

    job.trains(1)
    until("the end of a slice", lambda: job.told("Restarts") == "2")
    assert saved(folder)[-1] > signalled

    # Slurm queues the job again; what the node still does ends first, and is what counts
    job.trains(2)
    node = job.told("NodeList")
    cluster.stop(f"slurmd.{node}", signal.SIGKILL)
    try:
        assert job.ends() == 0, job.log.read_text()[-3000:]
    finally:  # the other tests need both nodes
        cluster.start_node(int(node.removeprefix("node")))


@pytest.mark.long
@pytest.mark.timeout(1500)  # seven minutes alone, with the table that the fixture makes
def test_a_run_that_is_cancelled_signalled_sliced_and_loses_its_node(
    cluster: Cluster, ran: tuple[Path, object], calm: tuple[Path, subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    folder = long_training(ran[0], tmp_path / "disturbed")

    # its user cancels it: no job comes back by itself, and nothing is lost
    with Watched(cluster, folder) as first:
        first.trains(0)
        cluster.output("scancel", first.job)
        assert first.ends() == 1
    assert cluster.finished()[first.job]["JobState"] == "CANCELLED" and first.told("Restarts") == "0"
    assert saved(folder)[-1] > 0

    # the next call goes on
    with Watched(cluster, folder) as job:
        stopped_on_its_way(cluster, folder, job)
        assert int(job.told("Restarts")) >= 3, "a slower machine needs further slices"
        assert job.told("JobState") == "COMPLETED"

    assert calm[1].wait(timeout=120) == 0, (calm[0] / "calm.log").read_text()[-2000:]
    assert made(folder) == made(calm[0])
    until(
        "the node to come back", lambda: cluster.output("sinfo", "-hN", "-p", "cpu", "-o", "%T").split() == ["idle"] * 2
    )
    assert not cluster.output("squeue", "-h"), "nothing is left in the queue"
