"""The verbs that score images without the DAG: evaluate, statistics, bridge."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vqbench.artifacts import check_writable, write_json, write_text
from vqbench.errors import SpecError

AddVerb = Callable[..., argparse.ArgumentParser]
RANGES = {"0,1": (0.0, 1.0), "-1,1": (-1.0, 1.0)}


def add(verbs: Any, verb: AddVerb) -> None:
    """Add them to the parser; `verb` makes one."""
    scoring = verb(
        verbs, "evaluate", _evaluate, "Score images against a reference, or reconstructions against their originals.",
        "evaluate --generated samples/ --reference statistics.npz --out scores.json",
    )  # fmt: skip
    scoring.add_argument("--generated", required=True, metavar="A", help="folder, .npz (arr_0 uint8 NHWC) or .npy")
    scoring.add_argument("--reference", metavar="B", help="the same kinds, or saved statistics (.npz)")
    scoring.add_argument("--out", type=Path, required=True, metavar="JSON")
    scoring.add_argument("--protocol", default="adm", help="see docs/evaluation.md (default: adm)")
    scoring.add_argument("--engine", choices=["vqbench", "reference"], default="vqbench",
                         help="reference: torch-fidelity, clean-fid, lpips, scikit-image as they are")  # fmt: skip
    scoring.add_argument("--ids", type=Path, metavar="NPY", help="ids (n, N, Q) of the images, for usage, unique_ratio")
    scoring.add_argument("--num-codes", type=int, metavar="K", help="size of the ids' codebook")
    scoring.add_argument("--captions", type=Path, metavar="TXT", help="one text a line, for clip_score")
    scoring.add_argument("--scales", metavar="1,2,3", help="sides of the ids' scales: usage scale by scale, too")
    stats = verb(
        verbs, "statistics", _statistics, "Write reusable statistics of a reference.",
        "statistics --reference imagenet/val --resolution 256 --out imagenet256.npz",
    )  # fmt: skip
    stats.add_argument("--reference", required=True, metavar="B", help="folder, .npz or .npy")
    stats.add_argument("--out", type=Path, required=True, metavar="NPZ")
    stats.add_argument("--protocol", default="adm")
    stats.add_argument("--resolution", type=int, metavar="R", help="crop to R x R by the protocol's rule")
    stats.add_argument(
        "--images", action="store_true", help="add the images of precision and recall (arr_0), as ADM's evaluator needs"
    )
    bridge = verb(
        verbs, "bridge", _bridge, "Score one set under all protocols: which choice moves which number by how much.",
        "bridge --generated samples/ --reference imagenet/val --out bridge.csv",
    )  # fmt: skip
    bridge.add_argument("--generated", required=True, metavar="A")
    bridge.add_argument("--reference", required=True, metavar="B")
    bridge.add_argument("--out", type=Path, required=True, metavar="CSV", help="the table; .md is written beside it")
    bridge.add_argument("--protocols", help="names between commas (default: all but demo)")
    for parser in (scoring, stats, bridge):
        parser.add_argument("--value-range", choices=list(RANGES), help="of float arrays (write --value-range=-1,1)")
        parser.add_argument("--device", help="cpu, cuda ... (default: the GPU where there is one)")
    for parser in (scoring, bridge):
        parser.add_argument("--pairs", action="store_true", help="B holds the originals of A, by file name or order")
        parser.add_argument("--metrics", help="names between commas (default: the protocol's)")
    for parser in (scoring, stats, bridge):
        parser.add_argument("--judge", help="network in place of the protocol's own, e.g. dinov2-vitl14")
        parser.add_argument("--weights", action="append", default=[], metavar="KIND=FILE",
                            help="weights of a network, e.g. inception-v3=inception.pth (default: torch's hub cache)")  # fmt: skip


def _evaluate(args: argparse.Namespace) -> None:
    from vqbench.eval.evaluate import evaluate

    check_writable(args.out)  # before an hour of scoring
    report = evaluate(
        args.generated, args.reference, protocol=args.protocol, metrics=_names(args.metrics), pairs=args.pairs,
        judge=args.judge, weights=_weights(args.weights), engine=args.engine, num_codes=args.num_codes,
        ids=_ids(args.ids) if args.ids else None,
        captions=_captions(args.captions) if args.captions else None,
        scales=_scales(args.scales), device=args.device, value_range=RANGES.get(args.value_range),
    )  # fmt: skip
    write_json(args.out, report)
    print("\n".join(_lines(report)))
    _warn(report["warnings"])


def _warn(warnings: list[str]) -> None:
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)


def _lines(report: dict[str, Any]) -> list[str]:
    lines = []
    for name, entry in report["metrics"].items():
        value = (
            "undefined" if entry["value"] is None else f"{entry['value']:.6g}{entry['unit'] and ' ' + entry['unit']}"
        )
        interval = "" if entry["low"] is None else f" [{entry['low']:.6g}, {entry['high']:.6g}]"
        lines.append(f"{name:<24} {value}{interval}  n={entry['n']}")
    protocol = f"{report['protocol']['name']} {report['protocol_digest'][:8]}"
    return [*lines, f"protocol {protocol}, {report['images_per_second']} images/s"]


def _statistics(args: argparse.Namespace) -> None:
    from vqbench.eval.make_statistics import statistics

    header = statistics(
        args.reference, args.out, protocol=args.protocol, judge=args.judge, weights=_weights(args.weights),
        resolution=args.resolution, value_range=RANGES.get(args.value_range), images=args.images, device=args.device,
    )  # fmt: skip
    print(json.dumps(header))


def _bridge(args: argparse.Namespace) -> None:
    from vqbench.eval.bridge import bridge

    if args.out.suffix.lower() == ".md":
        raise SpecError(
            f"--out {args.out}: name the CSV, e.g. {args.out.with_suffix('.csv')}; its .md is written beside it"
        )
    check_writable(args.out)
    table = bridge(
        args.generated, args.reference, protocols=_names(args.protocols), metrics=_names(args.metrics),
        pairs=args.pairs, judge=args.judge, weights=_weights(args.weights), device=args.device,
        value_range=RANGES.get(args.value_range),
    )  # fmt: skip
    warnings = table.attrs["warnings"]
    text = table.drop(columns="protocol_digest").to_markdown(index=False, floatfmt=".6g")
    write_text(args.out, table.to_csv(index=False, lineterminator="\n"))
    write_text(args.out.with_suffix(".md"), "\n".join([text, "", *(f"- {warning}" for warning in warnings)]) + "\n")
    print(text)
    _warn(warnings)


def _names(text: str | None) -> list[str] | None:
    return [name.strip() for name in text.split(",") if name.strip()] if text else None


def _scales(text: str | None) -> tuple[int, ...]:
    try:
        found = tuple(int(side) for side in text.split(",")) if text else ()
    except ValueError:
        found = (0,)
    if any(side < 1 for side in found):
        raise SpecError(f"--scales {text}: expected sides between commas, coarsest first, e.g. 1,2,3,4")
    return found


def _weights(given: list[str]) -> dict[str, Path]:
    found = {}
    for text in given:
        kind, equals, path = text.partition("=")
        if not equals:
            raise SpecError(f"--weights {text}: expected KIND=FILE, e.g. inception-v3=inception.pth")
        found[kind] = Path(path)
    return found


def _captions(path: Path) -> list[str]:
    try:
        return _there(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise SpecError(f"{path} is no UTF-8 text ({error}); save the captions as UTF-8, one a line") from None


def _ids(path: Path) -> Any:
    import numpy as np

    from vqbench.eval.archive import UNREADABLE

    try:
        return np.load(_there(path), mmap_mode="r", allow_pickle=False)
    except UNREADABLE as error:
        raise SpecError(f"{path} is no .npy file of ids ({error}); save them with numpy.save") from None


def _there(path: Path) -> Path:
    if not path.is_file():
        raise SpecError(f"{path} does not exist")
    return path
