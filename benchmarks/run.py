"""``make benchmark``: measure the engine against the libraries and write docs/performance.md.

    .venv/bin/python benchmarks/run.py --only ssim,frechet --runs 5

27 minutes on two idle cores of an Intel Xeon, an hour on an AMD EPYC's. `--only` prints its rows and leaves the page as it is;
with `--again` it puts them in place of the page's own, which then says so.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import yaml
from materials import write_files, write_images, write_weights
from rows import CASES, Plan, Row, plan_of

from vqbench.artifacts import write_text

ROOT = Path(__file__).resolve().parent.parent
PAGE, NOTES = ROOT / "docs" / "performance.md", Path(__file__).with_name("notes.yaml")
LIBRARIES = ("torch", "torch-fidelity", "scikit-image", "lpips", "scipy", "vector-quantize-pytorch", "pillow")


def main() -> None:
    """Measure and write."""
    args = _arguments()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="vqbench-benchmark-") as folder:
        plan = _prepare(args, Path(folder))
        rows = [row for name in args.only or CASES for row in CASES[name](plan)]
    page = _page(rows, plan, time.monotonic() - began)
    if args.again:
        write_text(PAGE, _again(PAGE.read_text(encoding="utf-8"), page, _command(plan, args.only)))
        print(f"{PAGE.relative_to(ROOT)}: {len(rows)} rows measured again")
    elif args.only or args.small:
        print(page)
    else:
        write_text(PAGE, page)
        print(f"{PAGE.relative_to(ROOT)}: {sum(row.reached for row in rows)} of {len(rows)} targets reached")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", type=lambda text: text.split(","), help=f"of {', '.join(CASES)}; prints, writes nothing"
    )
    parser.add_argument("--runs", type=int, default=3, help="runs of each side (default 3); ratios are of medians")
    parser.add_argument("--confirm", type=int, default=1000, help="images a side of one larger run; 0: none")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that every case runs; writes nothing")
    parser.add_argument("--again", action="store_true", help="with --only: replace those rows of the page")
    args = parser.parse_args()
    if args.again and (args.small or not args.only):
        parser.error("--again goes with --only, and not with --small")
    for name in args.only or ():
        if name not in CASES:
            parser.error(f"no case '{name}'; there are {', '.join(CASES)}")
    return args


def _prepare(args: argparse.Namespace, folder: Path) -> Plan:
    """The plan, with what its cases read written below `folder`."""
    plan, cases, size = (
        Plan(folder, runs=args.runs, confirm=args.confirm),
        set(args.only or CASES),
        64 if args.small else 256,
    )
    if args.small:
        plan = Plan(folder, images=12, confirm=0, files=16, runs=1, scale=64)
    places = [plan, *([plan_of(plan, plan.confirm)] if plan.confirm and "judged" in cases else [])]
    for place in places if cases & {"judged", "suite", "reading"} else ():
        write_images(place.folder, place.images, size)
        write_weights(place.folder)
    if "reading" in cases:
        write_files(folder, plan.files, size)
    return plan


def _page(rows: list[Row], plan: Plan, seconds: float) -> str:
    notes = yaml.safe_load(NOTES.read_text(encoding="utf-8"))
    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    lines = [
        "# Speed and memory, measured", "",
        f"Written by `{_command(plan)}` on {_processor()}, {plan.threads} threads, fp32, no GPU, in {seconds / 60:.0f} minutes; "
        f"Python {platform.python_version()}, {versions}. Both sides of a comparison run in turn; a ratio is that of the "
        f"medians of {plan.runs} runs (SSIM {5 * plan.runs}; SciPy's sqrtm and vector-quantize-pytorch run once, unwarmed), "
        "the range that of single runs. Judged rows: 256x256 PNG, random weights of Inception's shape on both sides, each "
        "side a process of its own, without imports.", "",
        "| work | against | measured | range | target | |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    lines += [
        f"| {row.work} | {row.against} | {row.value:.2f}{row.unit} | {row.spread} | "
        f"{'at most' if row.at_most else 'at least'} {row.target:g}{row.unit} | {'reached' if row.reached else '**short**'} |"
        for row in rows
    ]
    remarks = dict.fromkeys(f"- {row.work}, {row.against}: {row.remark}." for row in rows if row.remark)
    lines += ["", "## How close", *remarks]
    short = dict.fromkeys(row.case for row in rows if not row.reached)
    wanted = [case for case in notes if case in short or notes[case].get("always")]
    lines += ["", "## Notes", *(f"- **{case}**: {' '.join(notes[case]['text'].split())}" for case in wanted)]
    return "\n".join(lines) + "\n"


def _again(before: str, now: str, command: str) -> str:
    """The page with rows and remarks of `now` in place of its own for the same work."""
    fresh = {_subject(line): line for line in now.splitlines() if _subject(line)}
    missing = set(fresh) - {_subject(line) for line in before.splitlines()}
    if missing:
        raise SystemExit(f"the page has no row for: {'; '.join(sorted(missing))}; run make benchmark")
    lines = [fresh.get(_subject(line), line) for line in before.splitlines()]
    return "\n".join(lines).replace(" Both sides of", f" Again by itself: `{command}`. Both sides of", 1) + "\n"


def _subject(line: str) -> str:
    """Work and peer of a row, or of a remark; nothing of other lines."""
    if line.startswith("| ") and not line.startswith("| work |"):
        return "|".join(line.split("|")[1:3])
    return line.partition(": ")[0] if line.startswith("- ") and not line.startswith("- **") else ""


def _command(plan: Plan, only: list[str] | None = None) -> str:
    """What made the page: a shorter run than the default does not go by its name."""
    if only:
        return f"benchmarks/run.py --only {','.join(only)} --runs {plan.runs} --confirm {plan.confirm}"
    usual = Plan(plan.folder)
    if (plan.runs, plan.confirm, plan.images) == (usual.runs, usual.confirm, usual.images):
        return "make benchmark"
    return f"benchmarks/run.py --runs {plan.runs} --confirm {plan.confirm}"


def _processor() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{len(names)} cores of {names[0].partition(': ')[2].strip()}" if names else platform.processor()


if __name__ == "__main__":
    sys.exit(main())
