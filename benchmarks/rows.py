"""The rows of docs/performance.md: what is measured, against what, and the target.

Every comparison runs both sides in turn, so that a slow minute of the machine meets both. Ratios are of medians.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent


@dataclass
class Plan:
    """How much is run: `folder` holds the materials."""

    folder: Path
    images: int = 200
    confirm: int = 1000  # images a side, once; 0: not at all
    files: int = 10_000
    runs: int = 3
    scale: int = 1  # divides the sizes of kernels
    threads: int = 2
    log: Callable[[str], None] = field(default=lambda text: print(text, file=sys.stderr, flush=True))


class Row(NamedTuple):
    """One line of the page: `value` is compared with `target`, at least or at most it."""

    case: str
    work: str
    against: str
    value: float
    spread: str
    target: float
    at_most: bool = False
    unit: str = "x"
    remark: str = ""

    @property
    def reached(self) -> bool:
        """Whether the target is met."""
        return self.value <= self.target if self.at_most else self.value >= self.target


def python(plan: Plan, *words: str | int) -> dict[str, Any]:
    """Run one of our scripts in a process of its own and read its JSON."""
    env = {k: v for k, v in os.environ.items() if k not in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")}  # they slow SciPy
    env |= {"OMP_NUM_THREADS": str(plan.threads), "TORCH_HOME": str(plan.folder), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, *map(str, words)], cwd=HERE, env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"benchmark {' '.join(map(str, words))} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    plan.log(f"{' '.join(map(str, words[1:]))}: {found.get('seconds')}")
    return found


def sides(plan: Plan, names: tuple[str, ...], size: int, runs: int) -> dict[str, list[dict[str, Any]]]:
    """Each of those sides `runs` times, in turn."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(runs):
        for name in names:
            found[name].append(python(plan, HERE / "sides.py", name, plan.folder, size))
    return found


def kernel(plan: Plan, case: str, runs: int | None = None) -> dict[str, Any]:
    """One comparison within a process."""
    return python(plan, HERE / "kernels.py", case, runs or plan.runs, plan.scale)


def ratio(slow: list[float], fast: list[float]) -> tuple[float, str]:
    """Ratio of medians, and the range of the ratios of single runs; a slow side may have run once only."""
    pairs = [a / b for a, b in zip(slow, fast, strict=False)]
    spread = f"{min(pairs):.2f} to {max(pairs):.2f}" if len(pairs) > 1 else "once"
    return statistics.median(slow) / statistics.median(fast), spread


def seconds(found: list[dict[str, Any]]) -> list[float]:
    """The seconds of several runs of a side."""
    return [run["seconds"] for run in found]


def agreement(ours: dict[str, float], theirs: dict[str, float]) -> str:
    """How far two sides' values lie apart, relative."""
    gaps = [f"{k} {abs(v - theirs[k]) / max(abs(theirs[k]), 1e-12):.1e}" for k, v in ours.items() if k in theirs]
    return "values apart by: " + ", ".join(gaps)


def judged(plan: Plan) -> Iterator[Row]:
    """FID + IS + P/R, and the judge's limit."""
    found = sides(plan, ("sets-engine", "sets-library", "bare-forward"), plan.images, plan.runs)
    yield from _judged(found, f"FID + IS + P/R, {plan.images} + {plan.images}")
    engine, bare = (seconds(found[name]) for name in ("sets-engine", "bare-forward"))
    rate = 2 * plan.images // 8 * 8 / statistics.median(bare)
    yield Row("judged", "FID + IS + P/R beside the bare forward", "folded channels-last Inception alone",
              *ratio(engine, bare), 1.15, True, remark=f"bare: {rate:.1f} images/s")  # fmt: skip
    if plan.confirm:
        # The larger sets replace the smaller ones in folders of their own.
        large = sides(plan_of(plan, plan.confirm), ("sets-engine", "sets-library"), plan.confirm, 1)
        yield from _judged(large, f"FID + IS + P/R, {plan.confirm} + {plan.confirm}, once")


def plan_of(plan: Plan, count: int) -> Plan:
    """The same plan over the folder of `count` images a side."""
    return Plan(**{**plan.__dict__, "folder": plan.folder / str(count), "images": count})


def _judged(found: dict[str, list[dict[str, Any]]], work: str) -> Iterator[Row]:
    ours, theirs = found["sets-engine"], found["sets-library"]
    yield Row("judged", work, "torch-fidelity, images/s", *ratio(seconds(theirs), seconds(ours)), 2.0,
              remark=agreement(ours[0]["values"], theirs[0]["values"]))  # fmt: skip
    peaks = [max(run["peak_mb"] for run in side) for side in (ours, theirs)]
    yield Row("judged", f"{work}: peak memory", "torch-fidelity's, whole process", peaks[0] / peaks[1],
              f"{peaks[0]:.0f} of {peaks[1]:.0f} MiB", 0.4, True)  # fmt: skip


def suite(plan: Plan) -> Iterator[Row]:
    """The whole suite over pairs."""
    found = sides(plan, ("suite-engine", "suite-libraries"), plan.images, plan.runs)
    ours, theirs = found["suite-engine"], found["suite-libraries"]
    yield Row("suite", f"the whole suite over {plan.images} pairs", "torch-fidelity + scikit-image + lpips in turn",
              *ratio(seconds(theirs), seconds(ours)), 2.0,
              remark=agreement(ours[0]["values"], theirs[0]["values"]))  # fmt: skip


def ssim(plan: Plan) -> Iterator[Row]:
    """SSIM per pair."""
    for window in ("uniform", "gaussian"):
        for threads in (1, 2):
            found = kernel(plan, f"ssim-{window}-{threads}", 5 * plan.runs)  # a tenth of a second each
            times = found["seconds"]
            yield Row("ssim", f"SSIM, {window} window", f"scikit-image, {threads} thread{'s' * (threads > 1)} each",
                      *ratio(times["scikit-image"], times["engine"]), 2.0,
                      remark=f"apart by {found['difference']['scikit-image']:.1e}")  # fmt: skip


def frechet(plan: Plan) -> Iterator[Row]:
    """Frechet distance."""
    for case, given in (("moments", "mu and sigma"), *((str(n), f"features of {n:,} + {n:,}") for n in (1000, 5000))):
        found = kernel(plan, f"frechet-{case}")
        times, work = found["seconds"], f"Frechet distance, d = {2048 // plan.scale}, from {given}"
        for peer, target in (("sqrtm", 10.0), ("torch-fidelity", 2.5)):
            yield Row("frechet", work, f"{'SciPy ' * (peer == 'sqrtm')}{peer}", *ratio(times[peer], times["engine"]),
                      target, remark=f"apart by {found['difference'][peer]:.1e}")  # fmt: skip


def neighbours(plan: Plan) -> Iterator[Row]:
    """Precision and recall of features."""
    count = 10_000 // plan.scale
    found = sides(plan, ("neighbours-engine", "neighbours-library"), count, plan.runs)
    ours, theirs = found["neighbours-engine"], found["neighbours-library"]
    yield Row("neighbours", f"P/R, {count} x {count} x 2048", "torch-fidelity",
              *ratio(seconds(theirs), seconds(ours)), 1.3,
              remark=agreement(ours[0]["values"], theirs[0]["values"]))  # fmt: skip
    more = [statistics.median(run["peak_mb"] - run["before_mb"] for run in side) for side in (ours, theirs)]
    yield Row("neighbours", f"P/R, {count} x {count}: peak memory beyond the features", "torch-fidelity's",
              more[0] / more[1], f"{more[0]:.0f} of {more[1]:.0f} MiB", 0.25, True)  # fmt: skip
    large = 50_000 // plan.scale
    (once,) = sides(plan, ("neighbours-engine",), large, 1)["neighbours-engine"]
    yield Row("neighbours", f"P/R, {large} x {large} x 2048: peak memory of the process", "3 GB",
              once["peak_mb"] * 2**20 / 1e9, f"{once['seconds']:.0f} s", 3.0, True, " GB")  # fmt: skip


def nearest(plan: Plan) -> Iterator[Row]:
    """Nearest code."""
    for codes, vectors in ((16384, 65536), (131072, 8192)):
        for dim, limit, slow in ((256, 1.1, 5.0), (8, 2.5, 1.5)):
            found = kernel(plan, f"nearest-{codes}-{dim}")
            times, work = found["seconds"], f"nearest of {codes:,} codes, {vectors:,} vectors, d = {dim}"
            yield Row("nearest", work, "the bare product", *ratio(times["engine"], times["product"]), limit, True)
            for peer, target in (("cdist", 1.5), ("vector-quantize-pytorch", slow)):
                yield Row("nearest", work, "chunked torch.cdist + argmin" if peer == "cdist" else peer,
                          *ratio(times[peer], times["engine"]), target,
                          remark=f"same codes: {found['agreement'][peer]:.4%}")  # fmt: skip
            yield Row("nearest", f"{work}: extra memory", "100 MB", found["extra_mb"], "", 100, True, " MiB")


def reading(plan: Plan) -> Iterator[Row]:
    """Reading and decoding, against the judge's limit."""
    rate = (
        2 * plan.images // 8 * 8 / python(plan, HERE / "sides.py", "bare-forward", plan.folder, plan.images)["seconds"]
    )
    for kind in ("png", "jpeg"):
        found = sides(plan, (f"read-{kind}",), plan.files, plan.runs)[f"read-{kind}"]
        speed = [run["values"]["images"] / run["seconds"] for run in found]
        yield Row("reading", f"reading and decoding {plan.files:,} {kind.upper()} of 256x256", "the judge's images/s",
                  statistics.median(speed) / rate, f"{min(speed):.0f} to {max(speed):.0f} images/s", 1.0)  # fmt: skip


def planning(plan: Plan) -> Iterator[Row]:
    """Waiting before the first job: medians of seconds, one thread as `make` sets it."""
    found = python(plan, HERE / "planning.py", plan.runs)
    times = found["seconds"]
    read = statistics.median(times["snakefile"]) - statistics.median(times["empty"])
    yield Row("planning", "reading the Snakefile", "1 s", read, "beside an empty one", 1.0, True, " s")
    cases = [("papers", f"snakemake -n of all {found['tables']} tables at paper scale"),
             ("again", f"a second run of the finished demo, {found['there']} tables")]  # fmt: skip
    for name, work in cases:
        if took := times[name]:
            spread = f"{min(took):.1f} to {max(took):.1f} s"
            yield Row("planning", work, "10 s", statistics.median(took), spread, 10.0, True, " s")


CASES: dict[str, Callable[[Plan], Iterator[Row]]] = {
    "judged": judged, "suite": suite, "ssim": ssim, "frechet": frechet, "neighbours": neighbours,
    "nearest": nearest, "reading": reading, "planning": planning,
}  # fmt: skip
