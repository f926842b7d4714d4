"""Every command of the README and the guide is run: vqbench as it stands, snakemake dry."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
from helpers import ROOT, copy_clone, run_in


def commands(name: str) -> list[str]:
    blocks = re.findall(r"^```\w*\n(.*?)^```", (ROOT / name).read_text(), re.M | re.S)
    lines = [line.split(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith(("vqbench ", "snakemake "))]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_clone(tmp_path_factory.mktemp("docs") / "clone")


COMMANDS = sorted({c for name in ("README.md", "docs/guide.md") for c in commands(name)})


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 20


@pytest.mark.parametrize("command", COMMANDS)
def test_a_documented_command_runs(command: str, place: Path) -> None:
    words = shlex.split(command)
    if words[0] == "snakemake":
        words = [sys.executable, "-m", "snakemake", *([] if "-n" in words else ["-n"]), *words[1:]]
    else:
        words = [sys.executable, "-m", "vqbench.cli", *words[1:]]
    done = run_in(place, *words)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-1500:]
