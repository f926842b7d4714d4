"""One step in several processes: two GPUs of a node by cluster.yaml, two nodes by hand; the same bytes as in one."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from clones import SLURM
from cluster import Cluster
from helpers import run_in, snakemake

pytestmark = pytest.mark.slurm
RUN = "results/tiny/tokenizers/cq-k1024"
MANIFEST = f"{RUN}/manifest.json"


@pytest.fixture
def undone(ran: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path) -> tuple[Path, bytes]:
    """A copy of the finished clone without one tokenizer, and the manifest that it had."""
    folder = shutil.copytree(ran[0], tmp_path / "clone", symlinks=True)
    before = (folder / MANIFEST).read_bytes()
    shutil.rmtree(folder / json.loads(before)["store"])
    (folder / MANIFEST).unlink()
    return folder, before


def test_two_gpus_of_a_node_share_a_job(undone: tuple[Path, bytes], cluster: Cluster) -> None:
    folder, before = undone
    with (folder / "cluster.yaml").open("a") as file:
        file.write("gpus: 2\n")
    done = snakemake(folder, *SLURM, MANIFEST, **cluster.env)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert json.loads((folder / RUN / "run.json").read_text())["processes"] == 2
    assert (folder / MANIFEST).read_bytes() == before  # two micro-batches: their sum has one order only


def test_two_nodes_share_a_job(undone: tuple[Path, bytes], cluster: Cluster) -> None:
    folder, before = undone
    words = [sys.executable, "-m", "vqbench.cli", "train-tokenizer", "cq-k1024", "--scale", "tiny", "--nodes", "2"]
    asked = ["--nodes=2", "--ntasks=2", "--partition=gpu", "--gpus-per-node=1", "--mem=3000", "--time=5", "--wait"]
    done = run_in(folder, "sbatch", *asked, f"--output={folder}/log", "--wrap", shlex.join(words), **cluster.env)
    assert done.returncode == 0, (folder / "log").read_text()[-3000:] + done.stderr
    assert json.loads((folder / RUN / "run.json").read_text())["processes"] == 2
    assert (folder / MANIFEST).read_bytes() == before
