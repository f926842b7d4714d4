"""A job that asks for too little memory: Slurm kills it, its second attempt asks for twice as much, then a row says so."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from clones import SLURM, TABLE
from cluster import Cluster
from helpers import snakemake

pytestmark = pytest.mark.slurm
RUN = "cq-k1024"
MANIFEST = f"results/tiny/tokenizers/{RUN}/manifest.json"


def undone_with(ran: Path, folder: Path, mem_mb: int) -> tuple[Path, bytes]:
    """A copy of the finished clone without one tokenizer, whose training is to get that much memory; its manifest."""
    shutil.copytree(ran, folder, symlinks=True)
    edited(folder / "workflow/scales/tiny.yaml", ("resources", "tokenizer"), {"mem_mb": mem_mb})
    before = (folder / MANIFEST).read_bytes()
    shutil.rmtree(folder / json.loads(before)["store"])
    (folder / MANIFEST).unlink()
    return folder, before


def edited(path: Path, way: tuple[str, ...], change: dict[str, object]) -> None:
    """Update a mapping of a YAML file."""
    data = yaml.safe_load(path.read_text())
    node = data
    for key in way:
        node = node[key]
    node.update(change)
    path.write_text(yaml.safe_dump(data, sort_keys=False))


def jobs_of(done: subprocess.CompletedProcess[str], cluster: Cluster) -> list[tuple[str, int]]:
    """(state, MB asked for) of each job that trained, in the order of submission."""
    found = re.findall(r"SLURM jobid (\d+) \(log: \S*/slurm_logs/rule_train_tokenizer/", done.stdout + done.stderr)
    asked = [cluster.output("scontrol", "show", "job", job) for job in found]
    return [(re.findall(r"JobState=(\S+)", a)[0], int(re.findall(r"mem=(\d+)M", a)[0])) for a in asked]


def test_the_second_attempt_gets_twice_the_memory(ran: tuple[Path, object], cluster: Cluster, tmp_path: Path) -> None:
    folder, before = undone_with(ran[0], tmp_path / "clone", 450)
    done = snakemake(folder, *SLURM, MANIFEST, **cluster.env)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    (first, little), (second, more) = jobs_of(done, cluster)
    assert (second, little, more) == ("COMPLETED", 450, 900) and first != "COMPLETED"
    assert (folder / MANIFEST).read_bytes() == before


def test_a_job_too_large_for_both_attempts_is_a_row(ran: tuple[Path, object], cluster: Cluster, tmp_path: Path) -> None:
    folder, _ = undone_with(ran[0], tmp_path / "clone", 900)
    edited(folder / "workflow/scales/tiny.yaml", ("tokenizers", "training"), {"batch_size": 2048, "micro_batch": 2048})
    edited(folder / "workflow/papers/cq.yaml", ("tables", "6b"), {"rows": {"Ours/codebook=1024": {"tokenizer": RUN}}})
    done = snakemake(folder, *SLURM, TABLE, **cluster.env)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert [mb for _, mb in jobs_of(done, cluster)] == [900, 1800], jobs_of(done, cluster)
    with (folder / TABLE).with_suffix(".partial.csv").open() as file:
        rows = {row["row"]: row["status"] for row in csv.DictReader(file)}
    assert rows["Ours/codebook=1024"] == f"failed: tokenizer/{RUN}: out of memory", rows
