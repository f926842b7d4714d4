"""Every command of the README and the guide is run: vqbench as it stands, snakemake dry."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, copy_clone, run_in
from PIL import Image
from random_weights import write_inception

DOCS = ("README.md", "docs/guide.md", "docs/evaluation.md")
SCORING = ("evaluate", "statistics", "bridge")


def commands(name: str) -> list[str]:
    blocks = re.findall(r"^```\w*\n(.*?)^```", (ROOT / name).read_text(), re.M | re.S)
    lines = [line.split(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith(("vqbench ", "snakemake "))]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with the folders of images that docs/evaluation.md speaks of, and random Inception weights."""
    clone = copy_clone(tmp_path_factory.mktemp("docs") / "clone")
    rng = np.random.default_rng(0)
    for folder, size in (("samples", 64), ("train", 72), ("originals", 64), ("reconstructions", 64)):
        (clone / folder).mkdir()
        for i in range(12):
            image = rng.integers(0, 256, (size, size, 3)).astype(np.uint8)
            Image.fromarray(image).save(clone / folder / f"{i}.png")
    write_inception(clone / "inception.pth")
    return clone


# Each once, in the order of the pages: a later command may read what an earlier one wrote.
COMMANDS = list(dict.fromkeys(c for name in DOCS for c in commands(name)))


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 20


@pytest.mark.parametrize("command", COMMANDS)
def test_a_documented_command_runs(command: str, place: Path) -> None:
    words = shlex.split(command)
    if words[0] == "snakemake":
        words = [sys.executable, "-m", "snakemake", *([] if "-n" in words else ["-n"]), *words[1:]]
    else:
        if words[1] in SCORING and "--help" not in words:  # the published weights are not here
            words += ["--weights", "inception-v3=inception.pth"]
            words += ["--metrics", "psnr,ssim"] if "pairs.json" in words else []
        words = [sys.executable, "-m", "vqbench.cli", *words[1:]]
    done = run_in(place, *words)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-1500:]
