"""What a scale replaced, as words: printed with every table that is not at paper scale."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vqbench.papers import Bench, Row
from vqbench.products import RowSpecs

TOKENIZER = ("dataset", "resolution", "downsample", "num_tokens", "code_dim")
TRAINING = ("steps", "batch_size")


def differences(paper: Bench, bench: Bench, row: Row) -> dict[str, tuple[str, str]]:
    """``{"tokenizer num_codes": ("16384", "256")}``: what the row's run has at paper scale and at this one."""
    if not row.run:
        return {}
    before, after = ({**_settings(b.row_specs(row)), **_crossed(b, row)} for b in (paper, bench))
    names = [*before, *(name for name in after if name not in before)]
    pairs = {name: (_text(before.get(name)), _text(after.get(name))) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _crossed(bench: Bench, row: Row) -> dict[str, Any]:
    """The same of what the row's columns ``with: NAME`` add, behind that name."""
    pairs = {name: _settings(bench.crossing_specs(pair)) for name, pair in row.crossings.items()}
    return {f"{name} {key}": value for name, settings in pairs.items() for key, value in settings.items()}


def _settings(specs: RowSpecs) -> dict[str, Any]:
    """The sizes that readers compare runs by. Threads, seeds and loss weights are in the manifests."""
    found: dict[str, Any] = {}
    if specs.tokenizer:
        every = specs.tokenizer.model_dump() | specs.tokenizer.tokens.model_dump() | specs.tokenizer.options
        keys = dict.fromkeys((*TOKENIZER, *specs.tokenizer.options))
        found |= {f"tokenizer {k}": every[k] for k in keys}
        found |= {f"tokenizer training {k}": getattr(specs.tokenizer.training, k) for k in TRAINING}
    if specs.generator:
        found |= {f"generator {k}": v for k, v in specs.generator.options.items()}
        found |= {f"generator training {k}": getattr(specs.generator.training, k) for k in TRAINING}
    if specs.classifier:
        found |= {f"classifier {k}": v for k, v in specs.classifier.network.model_dump().items()}
        found |= {f"classifier training {k}": getattr(specs.classifier.training, k) for k in TRAINING}
    if specs.samples:
        found |= {"samples": specs.samples.count} | {f"sampler {k}": v for k, v in specs.samples.sampler.items()}
    return found


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_text, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)


def row_note(paper: Bench, bench: Bench, row: Row) -> str:
    """One row's ``scale`` cell: ``demo: tokenizer num_codes 16384 -> 256; ...``, or just ``paper``."""
    if bench.scale == "paper":
        return "paper"
    changes = [f"{name} {old} -> {new}" for name, (old, new) in differences(paper, bench, row).items()]
    return f"{bench.scale}: {'; '.join(changes)}" if changes else bench.scale if row.run else ""


def header_note(paper: Bench, bench: Bench, rows: Iterable[Row]) -> str:
    """The line above a table: the scale, what it is for, and all that it replaced in any row; "" at paper scale."""
    if bench.scale == "paper":
        return ""
    merged: dict[str, dict[str, None]] = {}
    for row in rows:
        for name, (old, new) in differences(paper, bench, row).items():
            merged.setdefault(name, {}).setdefault(f"{old} -> {new}")
    replaced = "; ".join(f"{name} {', '.join(pairs)}" for name, pairs in merged.items())
    about = " ".join(bench.overlay.about.split()).removeprefix(f"{bench.scale}: ").rstrip(".")
    parts = [f"Scale '{bench.scale}'{': ' + about if about else ''}.", f"Replaced: {replaced}." if replaced else ""]
    return " ".join(filter(None, parts))
