"""Every command of docs/cluster.md, in its order, on the cluster; what would submit the demo is only planned."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
from clones import clone_for
from cluster import Cluster
from helpers import ROOT, run_in

pytestmark = pytest.mark.slurm
# Fences marked sh are tried elsewhere (test_several.py), at another size.
FENCES = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / "docs" / "cluster.md").read_text(), re.M | re.S)
BLOCKS = [text for language, text in FENCES if not language]
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clone_for(tmp_path_factory.mktemp("docs") / "clone")


def test_there_are_commands() -> None:
    assert {shlex.split(c)[0] for c in COMMANDS} == {"cp", "sinfo", "vqbench", "snakemake", "squeue", "scontrol"}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_documented_command_runs(command: str, place: Path, cluster: Cluster) -> None:
    words = shlex.split(command)
    if words[0] == "snakemake":
        extra = [] if {"-n", "--unlock"} & set(words) else ["-n"]  # tests/slurm/test_table.py submits a table for real
        words = [sys.executable, "-m", "snakemake", *words[1:], *extra]
    elif words[0] == "vqbench":
        words = [sys.executable, "-m", "vqbench.cli", *words[1:]]
    done = run_in(place, *words, **cluster.env)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-1500:]
