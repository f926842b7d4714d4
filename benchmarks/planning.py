"""How long a user waits before the first job: reading the Snakefile, planning the papers' tables, a demo that is finished.

    .venv/bin/python benchmarks/planning.py 3

Prints seconds of `snakemake` processes, imports and all, but for the Snakefile: beside it an empty one is read, in turn.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from vqbench.papers import Bench, bench

ROOT = Path(__file__).resolve().parent.parent
NOTHING = "Nothing to be done"


def seconds(*words: str, folder: Path = ROOT, says: str = "") -> float:
    """Seconds of ``snakemake WORDS``, which must succeed and say `says`."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "snakemake", *words], cwd=folder, capture_output=True, text=True)
    if done.returncode or says not in done.stdout + done.stderr:
        raise SystemExit(f"snakemake {' '.join(words)} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return time.perf_counter() - began


def tables(found: Bench) -> list[str]:
    """All declared tables as targets."""
    return [found.table_path(table) for table in found.tables.values()]


def finished(found: Bench) -> list[str]:
    """Those tables of a scale that this clone holds, finished and current or not."""
    return [path for path in tables(found) if (ROOT / path).is_file()]


def measure(runs: int) -> dict[str, object]:
    """All of it; ``again`` is None where this clone holds no demo."""
    wanted, there = tables(bench("paper")), finished(bench("demo"))
    found: dict[str, list[float]] = {"snakefile": [], "empty": [], "papers": [], "again": []}
    with tempfile.TemporaryDirectory() as empty:
        Path(empty, "Snakefile").touch()
        for _ in range(runs):
            found["snakefile"].append(seconds("--list-rules"))
            found["empty"].append(seconds("--list-rules", folder=Path(empty)))
            found["papers"].append(seconds(*wanted, "--profile", "slurm", "-n", "--quiet", "all"))
            if there:
                found["again"].append(seconds(*there, "--profile", "demo", says=NOTHING))
    return {"seconds": found, "tables": len(wanted), "there": len(there)}


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]))))
