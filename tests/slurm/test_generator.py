"""A generator, its samples and their scores through sbatch: the same bytes as on one machine."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from clones import SLURM
from cluster import Cluster
from helpers import snakemake

pytestmark = pytest.mark.slurm
RUN = "cq-b-k16384-s10"
TARGET = f"results/tiny/scores/samples/{RUN}/manifest.json"
MADE = (TARGET, f"results/tiny/samples/{RUN}/manifest.json", "results/tiny/generators/cq-b-k16384/manifest.json")


def test_samples_through_slurm_equal_those_made_here(
    ran: tuple[Path, subprocess.CompletedProcess[str]], cluster: Cluster, tmp_path: Path
) -> None:
    there, here = (shutil.copytree(ran[0], tmp_path / name, symlinks=True) for name in ("there", "here"))
    with (there / "cluster.yaml").open("a") as file:
        file.write("gpus: 2\n")  # two processes a job; one here
    done = snakemake(there, *SLURM, TARGET, **cluster.env)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    rules = set(re.findall(r"/slurm_logs/(?:rule_)?(\w+)/", done.stdout + done.stderr))
    assert {"train_generator", "sample", "score_samples"} <= rules
    assert json.loads((there / f"results/tiny/samples/{RUN}/run.json").read_text())["processes"] == 2
    done = snakemake(here, TARGET, "--config", "scale=tiny")
    assert done.returncode == 0, done.stderr[-3000:]
    for name in MADE:
        assert (there / name).read_bytes() == (here / name).read_bytes(), name
