"""Each benchmark at a tiny size: it runs, both sides agree, and its rows are complete. Speed is not looked at."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from helpers import ROOT

QUICK = ("ssim", "frechet", "neighbours", "nearest", "reading", "planning")


def page(case: str) -> str:
    command = [sys.executable, "benchmarks/run.py", "--small", "--only", case]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=860)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def check(text: str) -> None:
    rows = re.findall(r"^\| .+ \| (-?[\d.]+)(?:x| MiB| GB| s) \|", text, re.M)
    assert rows and not re.search(r"\bnan\b", text)
    gaps = [float(gap) for gap in re.findall(r"apart by:? .*?([\d.]+e[-+]\d+)", text)]
    assert all(gap < 2e-4 for gap in gaps), text  # of FID; the rest is far below
    shares = re.findall(r"same codes: ([\d.]+)%", text)
    assert all(float(share) > 99.9 for share in shares)
    assert gaps or shares or "images/s" in text or "snakemake -n" in text


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


def test_rows_that_are_measured_again_take_the_place_of_the_page_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from run import PAGE, _again

    before = PAGE.read_text(encoding="utf-8")
    (row,) = [line for line in before.splitlines() if line.startswith("| the whole suite over 200 pairs |")]
    again = row.replace("| at least 2x |", "| at least 7x |")
    after = _again(before, f"{again}\n", "benchmarks/run.py --only suite")
    assert again in after and row not in after and "Again by itself: `benchmarks/run.py --only suite`." in after
    assert len(after.splitlines()) == len(before.splitlines())
    with pytest.raises(SystemExit, match="no row for"):
        _again(before, "| something else | a peer | 1.00x |", "")
