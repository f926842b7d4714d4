"""Clones that are sent to the throw-away cluster."""

from __future__ import annotations

from pathlib import Path

import yaml
from helpers import copy_clone

TABLE = "results/tiny/table6b.csv"
SLURM = ("--profile", "slurm", "--jobs", "6", "--slurm-init-seconds-before-status-checks", "2")
ON_GPU = {
    "features",
    "tokenizer",
    "tokens",
    "latents",
    "reconstruction",
    "generator",
    "samples",
    "reference",
    "tokenizer-scores",
    "sample-scores",
}


def clone_for(folder: Path) -> Path:
    """A clone whose tiny scale asks for GPUs where paper scale does, and whose cluster.yaml names the cluster's parts."""
    copy_clone(folder)
    path = folder / "workflow" / "scales" / "tiny.yaml"
    scale = yaml.safe_load(path.read_text())
    scale["resources"] = {k: {"gpu": int(k in ON_GPU), "mem_mb": 3000, "runtime": 10} for k in scale["resources"]}
    path.write_text(yaml.safe_dump(scale, sort_keys=False))
    (folder / "cluster.yaml").write_text("gpu_partition: gpu\ncpu_partition: cpu\ngpu_model: fake\n")
    return folder
