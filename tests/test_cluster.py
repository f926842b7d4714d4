"""What jobs ask of a cluster, by dry run at paper scale, and the one file that is the user's."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from helpers import copy_clone, edit, snakemake, vqbench

from vqbench.papers import bench
from vqbench.slurm import _minutes, _partitions

MINE = "gpu_partition: a100-long\ncpu_partition: serial\naccount: p123\ngpu_model: a100\nlongest: 600\nnotice: 120\ntflops: 300\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_clone(tmp_path_factory.mktemp("cluster") / "clone")


GROUPED = re.compile(
    r"Group job evaluation.*?rule reconstruct:.*?runtime=(\d+).*?rule score_tokenizer:.*?runtime=(\d+)", re.S
)


def asked(folder: Path, *targets: str, profile: str = "slurm") -> dict[str, list[dict[str, str]]]:
    """Rule -> what each of its jobs asks for, as a dry run prints it."""
    done = snakemake(folder, "-n", "--profile", profile, *targets)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, list[dict[str, str]]] = {}
    for name, line in re.findall(r"^rule (\w+):.*?^ +resources: (.*?)$", done.stdout + done.stderr, re.M | re.S):
        found.setdefault(name, []).append(dict(w.split("=", 1) for w in line.split(", ") if "=" in w))
    return found


def test_gpu_rules_ask_for_the_users_gpus_and_the_others_do_not(place: Path) -> None:
    (place / "cluster.yaml").write_text(MINE)
    jobs = asked(place, "results/table2.csv")
    for name, some in jobs.items():
        on_gpu = name not in {"check_dataset", "pretrained", "table"}
        for job in some:
            assert job["slurm_partition"] == ("a100-long" if on_gpu else "serial"), name
            assert (job.get("gpu", "0"), job.get("gpu_model", "")) == (("1", "a100") if on_gpu else ("0", "")), name
            assert job["nodes"] == "1" and job["slurm_account"] == "p123" and int(job["runtime"]) <= 600
    for name in ("train_tokenizer", "train_generator", "sample"):
        assert {j["slurm_extra"] for j in jobs[name]} == {"--signal=URG@120"}
    assert {j["slurm_extra"] for j in jobs["score_samples"]} == {""}, "what keeps no state is not told to stop"


def test_a_group_is_sent_only_where_its_sum_fits(place: Path) -> None:
    """Snakemake sums the minutes of a group's steps; Slurm never starts a job that is longer than its partition allows."""
    (place / "cluster.yaml").write_text("account: p123\n")
    done = snakemake(place, "-n", "--profile", "slurm", "results/table6b.csv")
    sums = [int(a) + int(b) for a, b in GROUPED.findall(done.stdout + done.stderr)]
    assert len(sums) == 4 and done.returncode == 0, done.stderr[-3000:]
    for longest in (max(sums), min(sums) - 1):
        (place / "cluster.yaml").write_text(f"longest: {longest}\n")
        done = snakemake(place, "-n", "--profile", "slurm", "results/table6b.csv")
        assert len(GROUPED.findall(done.stdout + done.stderr)) == (4 if longest == max(sums) else 0)
        alone = re.findall(
            r"^rule (?:reconstruct|score_tokenizer):.*?runtime=(\d+)", done.stdout + done.stderr, re.M | re.S
        )
        assert len(alone) == (0 if longest == max(sums) else 8) and all(int(m) <= longest for m in alone)


def test_tables_fit_a_short_partition_too(place: Path) -> None:
    (place / "cluster.yaml").write_text("longest: 2\n")
    assert {j["runtime"] for j in asked(place, "results/demo/table6b.csv")["table"]} == {"2"}


DRY, READ = 10, 1  # seconds on 2 cores: the bounds of issue 4 (measured: 2.4 for 8 tables, and 0.2)


def cpu_seconds(folder: Path, *words: str) -> float:
    """What a command computes: the clock on the wall would measure who else uses the machine."""
    before = os.times()
    done = snakemake(folder, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def test_a_dry_run_of_all_tables_at_paper_scale_takes_seconds(place: Path) -> None:
    (place / "cluster.yaml").write_text("longest: 1440\n")
    tables = [bench("paper").table_path(table) for table in bench("paper").tables.values()]
    assert len(tables) >= 5
    assert cpu_seconds(place, "-n", "--quiet", "--profile", "slurm", *tables) < DRY


def test_reading_the_snakefile_takes_less_than_a_second(place: Path) -> None:
    """--list-rules reads it and nothing more; Snakemake's own start, which an empty Snakefile has too, is not counted."""
    (place / "empty.smk").write_text("")
    ours, empty = (min(cpu_seconds(place, *words) for _ in range(2)) for words in (
        ("--list-rules",), ("--snakefile", "empty.smk", "--list-rules")))  # fmt: skip
    assert ours - empty < READ


def test_run_times_follow_the_plan(place: Path) -> None:
    """Twice the estimate and half an hour, at the user's rate; a faster GPU asks for less."""
    (place / "cluster.yaml").write_text("longest: 1000000\ntflops_fp32: 15\n")
    slow = [int(j["runtime"]) for j in asked(place, "results/table2.csv")["sample"]]
    assert not (place / "results" / "estimates.json").exists(), "what is shipped is counted already"
    recorded = json.loads((place / "workflow" / "estimates" / "paper.json").read_text())
    flops = [v["flops"] for k, v in recorded.items() if k.startswith("samples/")]
    assert all(any(abs(m - 30 - 2 * f / 15e12 / 60) <= 1 for f in flops) for m in slow), (slow, flops)
    (place / "cluster.yaml").write_text("longest: 1000000\ntflops_fp32: 30\n")
    fast = [int(j["runtime"]) for j in asked(place, "results/table2.csv")["sample"]]
    assert all(abs((f - 30) * 2 - (s - 30)) <= 2 for f, s in zip(sorted(fast), sorted(slow), strict=True))


def test_the_shipped_estimates_are_those_of_the_specs(place: Path, tmp_path: Path) -> None:
    done = vqbench(place, "estimate", "--scale", "paper", "--out", str(tmp_path / "now.json"))
    assert done.returncode == 0, done.stderr
    mend = "vqbench estimate --scale paper --out workflow/estimates/paper.json"
    assert json.loads((tmp_path / "now.json").read_text()) == json.loads(
        (place / "workflow" / "estimates" / "paper.json").read_text()
    ), f"a spec changed: {mend}"


def test_what_an_edit_reaches_is_counted_and_nothing_else(clone: Path) -> None:
    """A generator's size reaches its sample sets, whose own specs only name it, and the matrix, which then has a short run."""
    shipped = clone / "workflow" / "estimates" / "paper.json"
    known = json.loads(shipped.read_text())
    for entry in known.values():
        entry["flops"] = 1.0  # no count gives that
    shipped.write_text(json.dumps(known))
    edit(clone / "workflow" / "papers" / "cq.yaml", "cq-b-k16384: {family: maskgit, tokenizer: cq-k16384, layers: 24",
         "cq-b-k16384: {family: maskgit, tokenizer: cq-k16384, layers: 23")  # fmt: skip
    asked(clone, "cq-b-k16384-s10")
    now = json.loads((clone / "results" / "estimates.json").read_text())
    assert now.keys() >= known.keys()
    assert {name for name, entry in now.items() if entry["flops"] != 1.0} == {
        "generator/cq-b-k16384", "samples/cq-b-k16384-s10", "samples/cq-b-k16384-s64", "generator/maskgit-cq-k16384-short",
        "samples/maskgit-cq-k16384-short-matrix",
    }  # fmt: skip


def test_gpus_that_share_a_job_get_its_memory_each_and_its_time_together(place: Path) -> None:
    """As many as the user has, but not more than a training has micro-batches a step."""
    (place / "cluster.yaml").write_text("longest: 1000000\n")
    one = asked(place, "results/table2.csv")
    (place / "cluster.yaml").write_text("longest: 1000000\ngpus: 4\n")
    four = asked(place, "results/table2.csv")
    for name in ("train_tokenizer", "train_generator", "sample", "tokenize", "score_samples"):
        for a, b in zip(*(sorted(j[name], key=lambda j: int(j["runtime"])) for j in (one, four)), strict=True):
            assert (b["gpu"], int(b["mem_mb"]), int(b["cpus_per_task"])) == (
                "4", 4 * int(a["mem_mb"]), 4 * int(a["cpus_per_task"])
            ), name  # fmt: skip
            if name != "score_samples":
                assert abs((int(a["runtime"]) - 30) / 4 - (int(b["runtime"]) - 30)) <= 1, name
    assert {j["gpu"] for j in four["reference"]} == {"1"}, "a step that is not shared"


def test_a_mistake_in_cluster_yaml_is_named(place: Path) -> None:
    (place / "cluster.yaml").write_text("gpu_partitoin: gpu\n")
    done = snakemake(place, "-n", "--profile", "slurm", "results/table2.csv")
    assert done.returncode != 0 and "cluster.yaml" in done.stderr and "did you mean 'gpu_partition'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_example_is_valid_and_pbs_reads_the_same_file(place: Path) -> None:
    example = place / "workflow" / "profiles" / "slurm" / "cluster.example.yaml"
    (place / "cluster.yaml").write_text(example.read_text())
    jobs = asked(place, "results/demo/table6b.csv", profile="workflow/profiles/pbs")
    assert {j["slurm_partition"] for some in jobs.values() for j in some} == {"cpu"}, "the demo needs no GPU"
    assert all({"gpu", "mem_mb", "runtime", "cpus_per_task"} <= j.keys() for some in jobs.values() for j in some)


# Writes down its arguments and runs the script, which is the last one.
QSUB = """#!/bin/sh
for last; do :; done
printf '%s\\n' "$@" > {folder}/argv
sh "$last" > {folder}/job.log 2>&1 &
echo 7.server
"""


@pytest.mark.parametrize(
    ("mine", "asks"),
    [
        ("cpu_partition: serial\naccount: p123\n", ["-q", "serial", "-A", "p123"]),
        ("account: p123\n", ["-A", "p123"]),
        ("longest: 60\n", []),
    ],
)
def test_qsub_is_given_queue_and_account_or_neither(clone: Path, mine: str, asks: list[str]) -> None:
    """An empty queue would take the next option for its name."""
    (clone / "cluster.yaml").write_text(mine)
    fakes = clone.parent / "fakes"
    fakes.mkdir()
    (fakes / "qsub").write_text(QSUB.format(folder=fakes))
    (fakes / "qsub").chmod(0o755)
    target = "results/tiny/datasets/photos-tiny/manifest.json"
    words = ("--profile", "workflow/profiles/pbs", "--latency-wait", "5", target)
    done = snakemake(clone, *words, PATH=f"{fakes}:{os.environ['PATH']}")
    assert done.returncode == 0 and (clone / target).is_file(), done.stderr + (fakes / "job.log").read_text()
    *given, script = (fakes / "argv").read_text().splitlines()
    assert given == ["-N", "vqbench", *asks, "-j", "oe", "-o", ".snakemake/pbs_logs/",
                     "-l", "select=1:ncpus=1:ngpus=0:mem=1000mb", "-l", "walltime=600"]  # fmt: skip
    assert Path(script).name.endswith(".sh")


def test_what_sinfo_prints() -> None:
    text = "cpu*|1-12:00:00|(null)\ngpu|30:00|gpu:a100:4(S:0-1)\ngpu|30:00|gpu:v100:2,tmp:1\nold|infinite|gpu:2\n"
    partitions, default = _partitions(text)
    assert default == "cpu" and partitions["cpu"].minutes == 2160 and not partitions["cpu"].gpus
    assert partitions["gpu"].minutes == 30 and partitions["gpu"].gpus == {"a100", "v100"}
    assert partitions["old"].minutes is None and partitions["old"].gpus == {""}
    assert [_minutes(t) for t in ("2:00", "0:30", "7-00:00:00", "n/a")] == [2, 0, 10080, None]
