"""What a job asks of a cluster: partition, GPU, memory, minutes. The user's part is one file, ``cluster.yaml``.

It lies at the clone's root, git ignores it, and nothing in it is hashed: a job sent to another partition is the same
job. No torch here: the Snakefile reads it.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Mapping
from functools import lru_cache
from math import ceil
from pathlib import Path
from typing import Any

from pydantic import Field

from vqbench.clone import CLONE, WORKFLOW, read_yaml
from vqbench.errors import UserError
from vqbench.graph import SHARED
from vqbench.papers import Bench, Key
from vqbench.specs import Spec, digest_of, parse

FILE = "cluster.yaml"
ASKED = ("gpu", "mem_mb", "runtime", "cpus_per_task", "slurm_partition", "slurm_account", "gpu_model", "slurm_extra")
# A job is given MARGIN times its estimate, and START minutes to start and to write: the estimate assumes a rate.
MARGIN, START = 2.0, 30
# Partitions, accounts and models reach the shell command that submits a job (a PBS profile's, word for word).
WORD = r"^([A-Za-z0-9_][A-Za-z0-9_.,@+-]*)?$"
# Kinds that keep their state and stop at a signal (vqbench/notice.py); the others start over, and are short.
SLICED = ("pretrained", "codebook", "tokenizer", "generator", "classifier", "samples")
# A tokenizer's images and their scores are one job: each alone is shorter than its wait in the queue.
GROUP = ("reconstruction", "tokenizer-scores")
# Not SIGUSR1, which ends a Snakemake or a shell between Slurm and the step: SIGURG does nothing to who does not wait for it.
WARNING = "URG"


class ClusterSpec(Spec):
    """One user's cluster. Empty: the cluster's default partition, the user's default account, any GPU."""

    gpu_partition: str = Field(default="", pattern=WORD)
    cpu_partition: str = Field(default="", pattern=WORD)
    account: str = Field(default="", pattern=WORD)
    gpu_model: str = Field(default="", pattern=WORD, description="as in --gpus=MODEL:1, e.g. a100")
    gpus: int = Field(
        default=1, ge=1, description="of one node that share a training, tokenizing, sampling or scoring job"
    )
    longest: int = Field(default=1440, gt=0, description="minutes of one slice; at most the partition's time limit")
    notice: int = Field(default=300, gt=0, description="seconds before the limit at which a job is told to stop")
    tflops: float = Field(default=150.0, gt=0, description="sustained TFLOP/s of a GPU in bf16")
    tflops_fp32: float = Field(default=15.0, gt=0, description="the same in fp32 without TF32")


@lru_cache(maxsize=1)
def cluster() -> ClusterSpec:
    """The clone's ``cluster.yaml``; all defaults where there is none.

    Raises:
        SpecError: an unknown key, or a value that cannot be.
    """
    path = CLONE / FILE
    return parse(ClusterSpec, read_yaml(path), FILE) if path.is_file() else ClusterSpec()


def asks(found: Bench, key: Key, attempt: int = 1) -> dict[str, int | str]:
    """What the job that makes `key` asks for, by Snakemake's names: :data:`ASKED`. Memory grows with each attempt.

    A scale's file says it for one GPU; a job that several share has that many times the memory and CPUs, and less time.
    """
    wanted, mine = found.overlay.resources[key[0]], cluster()
    gpus, runtime = wanted["gpu"] * _share(found, key), minutes(found, key)
    share = max(1, gpus)
    warn = min(mine.notice, 15 * runtime)  # a quarter of a short job at most: it must get somewhere
    return {
        "gpu": gpus,
        "mem_mb": wanted["mem_mb"] * attempt * share,
        "runtime": min(runtime, mine.longest),
        "cpus_per_task": found.overlay.threads * share,
        "slurm_partition": mine.gpu_partition if wanted["gpu"] else mine.cpu_partition,
        "slurm_account": mine.account,
        "gpu_model": mine.gpu_model if wanted["gpu"] else "",
        "slurm_extra": f"--signal={WARNING}@{warn}" if key[0] in SLICED else "",
    }


def minutes(found: Bench, key: Key) -> int:
    """What a step takes before `longest` cuts it into slices: its scale's constant, or ``plan``'s estimate."""
    wanted = found.overlay.resources[key[0]]
    gpus = max(1, wanted["gpu"] * _share(found, key))
    return _planned(found, key, gpus) if wanted["runtime"] == "plan" else int(wanted["runtime"])


def group_of(found: Bench, key: Key) -> str | None:
    """The group that Snakemake sends a step of :data:`GROUP` in; None where each goes alone.

    A group asks for the sum of its steps' minutes. More than `longest` no partition would take: Slurm would keep the
    job pending (PartitionTimeLimit), and Snakemake would wait for ever.
    """
    together = sum(minutes(found, (kind, key[1])) for kind in GROUP)
    return "evaluation" if together <= cluster().longest else None


def small(mem_mb: int = 1000, runtime: int = 10) -> dict[str, int | str]:
    """What a job that only writes tables or draws asks for: no GPU, nothing that a scale decides."""
    mine = cluster()
    return {"mem_mb": mem_mb, "runtime": min(runtime, mine.longest), "cpus_per_task": 1, "slurm_partition": mine.cpu_partition,
            "slurm_account": mine.account}  # fmt: skip


def _share(found: Bench, key: Key) -> int:
    """The user's number of GPUs, where the step can be shared; of a training at most its micro-batches a step."""
    if cluster().gpus == 1 or key[0] not in SHARED:
        return 1
    training = getattr(found.step(key).spec, "training", None)
    return min(cluster().gpus, training.batch_size // training.micro_batch) if training else cluster().gpus


def _planned(found: Bench, key: Key, gpus: int) -> int:
    """Minutes on so many GPUs for a step whose scale says ``runtime: plan``: its estimate times MARGIN, and START."""
    mine = cluster()
    hours = hours_of(found, key, _flops(found, key), mine.tflops, mine.tflops_fp32)
    return ceil(60 * MARGIN * hours / gpus) + START


def hours_of(found: Bench, key: Key, flops: float, tflops: float, tflops_fp32: float) -> float:
    """GPU-hours of so many operations at the sustained rate of the step's precision."""
    half = getattr(getattr(found.step(key).spec, "training", None), "precision", "fp32") == "bf16"
    return flops / ((tflops if half else tflops_fp32) * 1e12) / 3600


def estimates_path(found: Bench) -> Path:
    """Where ``vqbench estimate`` keeps the operations of every step of a scale."""
    return CLONE / found.root / "estimates.json"


def _flops(found: Bench, key: Key) -> float:
    """The operations of a step. Counting takes torch and seconds, so another process does it, for all of a scale's steps whose
    count is not known."""
    name = "/".join(key)
    if known_flops(found, key) is None:
        command = [sys.executable, "-m", "vqbench.cli", "estimate", "--scale", found.scale]
        done = subprocess.run(command, cwd=CLONE, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"the run time of {name} cannot be estimated: {done.stderr.strip()}")
        _recorded.cache_clear()
    return float(_recorded(found)[name]["flops"])


def known_flops(found: Bench, key: Key) -> float | None:
    """What was counted for a step; None where it was not, or for other specs."""
    entry = _recorded(found).get("/".join(key), {})
    return float(entry["flops"]) if entry.get("spec") == counted_digest(found, key) else None


@lru_cache(maxsize=2048)  # a job is asked for each resource
def counted_digest(found: Bench, key: Key) -> str:
    """Of all specs that a step's operations are counted from: its own, and those of the networks and images that it names."""
    spec = found.step(key).spec
    named: dict[str, Mapping[str, Spec]] = {"generator": found.generators, "tokenizer": found.tokenizers,
                                            "dataset": found.datasets, "network": found.pretrained}  # fmt: skip
    behind = [specs[name] for field, specs in named.items() if isinstance(name := getattr(spec, field, None), str)]
    return digest_of([each.model_dump(mode="json") for each in (spec, *behind)])


def shipped_path(found: Bench) -> Path:
    """The same for the runs that come with vqbench, so that a first dry run counts nothing."""
    return WORKFLOW / "estimates" / f"{found.scale}.json"


@lru_cache(maxsize=4)
def _recorded(found: Bench) -> dict[str, Any]:
    known: dict[str, Any] = {}
    for path in (shipped_path(found), estimates_path(found)):
        with contextlib.suppress(OSError, ValueError):  # absent or cut: counted again
            known |= json.loads(path.read_text())
    return known
