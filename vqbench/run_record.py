"""When, where and with what a step ran. No number depends on it, so it is kept beside the manifest and in no digest."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vqbench import distributed


def run_record(spec: Any, began: float) -> dict[str, Any]:
    """The record of a step that started at `began` (seconds since the epoch) and ends now."""
    names = ("torch", "torchvision", "torch-fidelity", "numpy", "scikit-image", "lpips", "pandas", "snakemake")
    return {
        "seconds": round(time.time() - began, 2),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "git_commit": _git_commit(), "host": platform.node(), "python": platform.python_version(),
        "platform": platform.platform(), "cpus": os.cpu_count(), "processes": distributed.world(), "device": _device(),
        "versions": {n: v for n in names if (v := _version(n))},
        "dataset_path": getattr(spec, "path", None),
    }  # fmt: skip


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _device() -> str:
    torch = sys.modules.get("torch")
    return (
        torch.cuda.get_device_name()
        if torch is not None and torch.cuda.is_available()
        else platform.processor() or "cpu"
    )
