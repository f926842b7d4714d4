"""A table through sbatch: the same bytes as on one machine, each job where it belongs, nothing submitted in vain."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from clones import ON_GPU, SLURM, TABLE, clone_for
from cluster import Cluster
from helpers import copy_clone, run_in, snakemake, vqbench

from vqbench.cluster import GROUP
from vqbench.graph import KINDS

pytestmark = pytest.mark.slurm
DEMO = "results/demo/table6b.csv"
Ran = tuple[Path, subprocess.CompletedProcess[str]]

GPU_RULES = {"train_tokenizer", "tokenize", "reference", "group_evaluation_reconstruct_score_tokenizer"}
CPU_RULES = {"check_dataset", "pretrained", "table"}


def submitted(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """Slurm's job id -> the rule or group that Snakemake submitted under it."""
    found = re.findall(r"SLURM jobid (\d+) \(log: \S*/slurm_logs/(?:rule_)?([^/]+)/", done.stdout + done.stderr)
    return dict(found)


def test_two_clusters_stand_side_by_side(cluster: Cluster, tmp_path: Path) -> None:
    other = Cluster(tmp_path / "other", nodes=3).up()
    try:
        assert len(other.output("sinfo", "-hN", "-p", "gpu").splitlines()) == 3
        assert len(cluster.output("sinfo", "-hN", "-p", "gpu").splitlines()) == 2
    finally:
        other.down()
    assert not list((tmp_path / "other" / "run").glob("*.pid"))
    assert cluster.output("sinfo", "-h"), "the first one still answers"


def test_a_table_through_slurm_equals_one_made_here(ran: Ran, tmp_path: Path) -> None:
    folder = clone_for(tmp_path / "clone")
    done = snakemake(folder, TABLE, "--config", "scale=tiny")
    assert done.returncode == 0, done.stderr[-3000:]
    assert (ran[0] / TABLE).read_bytes() == (folder / TABLE).read_bytes()
    with (ran[0] / TABLE).open() as file:
        assert {row["status"] for row in csv.DictReader(file)} == {"measured"}
    assert not (ran[0] / "results" / "table6b.csv").exists(), "the path decides the scale, not the profile"


def test_each_job_ran_where_it_belongs(ran: Ran, cluster: Cluster) -> None:
    jobs, records = submitted(ran[1]), cluster.finished()
    assert set(jobs.values()) == GPU_RULES | CPU_RULES
    for job, rule in jobs.items():
        assert records[job]["JobState"] == "COMPLETED", rule
        assert records[job]["Partition"] == ("gpu" if rule in GPU_RULES else "cpu"), rule
        asked = cluster.output("scontrol", "show", "job", job)
        assert ("gres:gpu:fake:1" in asked) == (rule in GPU_RULES), asked
        assert "NumNodes=1" in asked and "Requeue=1" in asked
        assert "mem=1000M" in asked if rule == "table" else "mem=3000M" in asked
    assert {records[j]["NodeList"] for j in jobs} == {"node1", "node2"}


def test_a_tokenizers_images_and_scores_are_one_job(ran: Ran) -> None:
    jobs = list(submitted(ran[1]).values())
    assert jobs.count("group_evaluation_reconstruct_score_tokenizer") == 4
    assert "tokenizer-scores" in ON_GPU and len(jobs) == 16


def test_steps_that_are_too_long_together_go_one_by_one(ran: Ran, cluster: Cluster, tmp_path: Path) -> None:
    """Two minutes each in a partition of two minutes: as one job of four Slurm would keep them pending for ever."""
    folder = shutil.copytree(ran[0], tmp_path / "clone", symlinks=True)
    path = folder / "workflow" / "scales" / "tiny.yaml"
    scale = yaml.safe_load(path.read_text())
    for kind in GROUP:
        scale["resources"][kind]["runtime"] = 2
    path.write_text(yaml.safe_dump(scale, sort_keys=False))
    (folder / "cluster.yaml").write_text("gpu_partition: short\ncpu_partition: cpu\ngpu_model: fake\nlongest: 2\n")
    manifests = [folder / f"results/tiny/{KINDS[kind][0]}/cq-k1024/photos-tiny/manifest.json" for kind in GROUP]
    before = [m.read_bytes() for m in manifests]
    for manifest in manifests:
        shutil.rmtree(folder / json.loads(manifest.read_bytes())["store"])
        manifest.unlink()
    done = snakemake(folder, *SLURM, str(manifests[-1].relative_to(folder)), **cluster.env)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    jobs = submitted(done)
    assert sorted(jobs.values()) == ["reconstruct", "score_tokenizer"]
    assert all("TimeLimit=00:02:00" in cluster.output("scontrol", "show", "job", job) for job in jobs)
    assert [m.read_bytes() for m in manifests] == before


def test_doctor_accepts_this_cluster(ran: Ran, cluster: Cluster) -> None:
    done = vqbench(ran[0], "doctor", TABLE, "--profile", "slurm", **cluster.env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "partition gpu" in done.stdout and "LACK" not in done.stdout


@pytest.mark.parametrize(
    ("line", "finding"),
    [
        ("gpu_partition: gpuu", "there is no partition 'gpuu'; did you mean 'gpu'?"),
        ("cpu_partition: nowhere", "there is no partition 'nowhere'; known: cpu, gpu, short"),
        ("gpu_model: h100", "no node of partition gpu has a GPU of model 'h100'; it has fake"),
        ("gpu_partition: short", "partition short ends jobs after 2 minutes"),
        ("cpu_partitoin: cpu", "did you mean 'cpu_partition'?"),
    ],
)
def test_doctor_names_what_the_cluster_lacks(line: str, finding: str, cluster: Cluster, tmp_path: Path) -> None:
    clone = clone_for(tmp_path / "clone")
    settings = clone / "cluster.yaml"
    name = line.split(":")[0]
    kept = [one for one in settings.read_text().splitlines() if not one.startswith(name)]
    settings.write_text("\n".join([*kept, line, ""]))
    done = vqbench(clone, "doctor", TABLE, "--profile", "slurm", **cluster.env)
    assert done.returncode != 0 and finding in done.stdout + done.stderr, done.stdout + done.stderr
    assert "cluster.yaml" in done.stdout + done.stderr and "Traceback" not in done.stderr


def test_doctor_without_slurm_says_where_to_go(clone: Path) -> None:
    done = vqbench(clone, "doctor", TABLE, "--profile", "slurm", PATH="/nowhere")
    assert done.returncode == 1 and "LACK  slurm: no sbatch here" in done.stdout


def test_a_second_call_submits_nothing(ran: Ran, cluster: Cluster) -> None:
    done = snakemake(ran[0], *SLURM, TABLE, **cluster.env)
    assert done.returncode == 0 and not submitted(done)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_demos_table_through_slurm_equals_the_demos(cluster: Cluster, tmp_path: Path) -> None:
    """The user's own command at the demo's real size: four tokenizers of 560 steps, as ``make demo`` trains them."""
    made = []
    for name, options in (("slurm", SLURM), ("here", ("--profile", "demo"))):
        folder = copy_clone(tmp_path / name)
        (folder / "cluster.yaml").write_text("gpu_partition: gpu\ncpu_partition: cpu\ngpu_model: fake\n")
        done = run_in(folder, sys.executable, "-m", "snakemake", *options, DEMO, timeout=1700, **cluster.env)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        made.append((folder / DEMO).read_bytes())
        assert ("SLURM jobid" in done.stdout + done.stderr) == (name == "slurm")
    assert made[0] == made[1] and made[0].count(b"measured") >= 4
