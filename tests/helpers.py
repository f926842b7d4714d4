"""Shared by tests: a temporary clone of the project, a small scale for it, and commands run in it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import warm
import yaml

ROOT = Path(__file__).resolve().parent.parent
TINY = Path(__file__).parent / "tiny.yaml"


def copy_clone(target: Path) -> Path:
    """What git would check out now, uncommitted files included, links kept as links; with the scale ``tiny`` added."""
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in names:
        source, copy = ROOT / name, target / name
        if not (source.is_symlink() or source.is_file()):
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            copy.symlink_to(source.readlink())
        else:
            shutil.copy2(source, copy)
    tiny = yaml.safe_load(TINY.read_text())
    datasets = target / "workflow" / "datasets.yaml"
    datasets.write_text(datasets.read_text() + yaml.safe_dump(tiny.pop("new_datasets"), sort_keys=False))
    pretrained = target / "workflow" / "pretrained.yaml"
    pretrained.write_text(pretrained.read_text() + yaml.safe_dump(tiny.pop("new_pretrained"), sort_keys=False))
    (target / "workflow" / "scales" / "tiny.yaml").write_text(yaml.safe_dump(tiny, sort_keys=False))
    return target


def run_in(folder: Path, *command: str, timeout: float = 860, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a clone, whose own vqbench is the one that is imported."""
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env=environment(folder, **env), timeout=timeout
    )


def environment(folder: Path, **env: str) -> dict[str, str]:
    """The variables of a command in a clone."""
    found = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default", **env}
    found.pop("PYTEST_CURRENT_TEST", None)
    return found


def vqbench(folder: Path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """``vqbench ...`` in a clone."""
    return run_in(folder, warm.python(), "-m", "vqbench.cli", *args, **env)


def snakemake(folder: Path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """``snakemake ...`` in a clone, on two cores."""
    return run_in(folder, warm.python(), "-m", "snakemake", "--cores", "2", *args, **env)


def edit(path: Path, old: str, new: str, count: int = -1) -> None:
    """Replace a text in a file, everywhere or the first `count` times."""
    text = path.read_text()
    assert old in text, f"{path} does not hold {old!r}"
    path.write_text(text.replace(old, new, count))
