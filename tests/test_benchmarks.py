"""Each benchmark at a tiny size: it runs, both sides agree, and its rows are complete. Speed is not looked at."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from helpers import ROOT

QUICK = ("ssim", "frechet", "neighbours", "nearest", "reading")


def page(case: str) -> str:
    command = [sys.executable, "benchmarks/run.py", "--small", "--only", case]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=560)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def check(text: str) -> None:
    rows = re.findall(r"^\| .+ \| (-?[\d.]+)(?:x| MiB| GB) \|", text, re.M)
    assert rows and not re.search(r"\bnan\b", text)
    gaps = [float(gap) for gap in re.findall(r"apart by:? .*?([\d.]+e[-+]\d+)", text)]
    assert all(gap < 2e-4 for gap in gaps), text  # of FID; the rest is far below
    shares = re.findall(r"same codes: ([\d.]+)%", text)
    assert all(float(share) > 99.9 for share in shares)
    assert gaps or shares or "images/s" in text


@pytest.mark.parametrize("case", QUICK)
def test_a_case_runs_and_its_sides_agree(case: str) -> None:
    check(page(case))


@pytest.mark.full
@pytest.mark.parametrize("case", ["judged", "suite"])
def test_a_case_with_the_whole_judge(case: str) -> None:
    check(page(case))


def test_an_unknown_case_is_named() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/run.py", "--only", "speed"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and "no case 'speed'" in done.stderr
