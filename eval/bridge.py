"""``vqbench bridge``: one set of images under every protocol; which choice moves which number by how much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from vqbench.errors import SpecError, UserError
from vqbench.eval.evaluate import Images, evaluate
from vqbench.eval.judges import with_judge
from vqbench.eval.protocols import FOLDER, Protocol, load_protocol
from vqbench.eval.set_metrics import BUILD, set_metrics

if TYPE_CHECKING:
    import pandas as pd

# What a protocol is called, says of itself, or uses only to bound memory moves no number.
SILENT = ("name", "summary", "source", "suffix", "batch", "metrics", "probe", "lpips.suffix")


def bridge(
    generated: Images,
    reference: Images,
    *,
    protocols: Sequence[str] | None = None,
    metrics: Sequence[str] | None = None,
    pairs: bool = False,
    judge: str | None = None,
    weights: Mapping[str, str | Path | nn.Module] | None = None,
) -> pd.DataFrame:
    """One row per protocol and metric.

    Columns: ``metric`` (its plain name), ``protocol``, ``value``, ``low``, ``high``, ``change`` (from the first protocol
    that gives this metric), ``percent``, ``choices`` (what this protocol does otherwise than that one, as far as it can
    reach the metric) and ``note`` (why there is no value).

    Args:
        protocols: names; by default all that are shipped, ``adm`` first. Others as in :func:`evaluate`.
    """
    import pandas as pd

    names = list(protocols or ["adm", *sorted(p.stem for p in FOLDER.glob("*.yaml") if p.stem not in ("adm", "demo"))])
    lines: list[dict[str, Any]] = []
    for name in names:
        protocol = with_judge(load_protocol(name), judge) if judge else load_protocol(name)
        lines += _score(generated, reference, protocol, metrics, pairs, weights)
    if all(line["note"] for line in lines):
        raise SpecError("no protocol could score these images: " + "; ".join({line["note"] for line in lines}))
    return pd.DataFrame(_compared(lines)).drop(columns="data").sort_values("metric", kind="stable", ignore_index=True)


def _score(
    generated: Images,
    reference: Images,
    protocol: Protocol,
    metrics: Sequence[str] | None,
    pairs: bool,
    weights: Mapping[str, str | Path | nn.Module] | None,
) -> list[dict[str, Any]]:
    data = _flat(protocol.model_dump(mode="json", by_alias=True))
    common = {"protocol": protocol.name, "value": None, "data": data}
    lacking = {name: why for name in metrics or () if (why := _undefined(name, protocol))}
    lines = [{"metric": name, "note": why, **common} for name, why in lacking.items()]
    defined = None if metrics is None else [name for name in metrics if name not in lacking]
    if defined == []:
        return lines
    try:
        report = evaluate(generated, reference, protocol=protocol, metrics=defined, pairs=pairs, weights=weights)
    except UserError as error:
        if "unknown metric" in str(error):
            raise
        return [*lines, {"metric": "", "note": str(error), **common}]
    return lines + [
        {"metric": name.partition("[")[0], "protocol": protocol.name, "value": entry["value"], "low": entry["low"],
         "high": entry["high"], "note": "" if entry["value"] is not None else "undefined", "data": data}
        for name, entry in report["metrics"].items()
    ]  # fmt: skip


def _undefined(name: str, protocol: Protocol) -> str:
    """Why the protocol has no such metric of sets; empty where it has, or where nobody knows the name."""
    try:
        set_metrics([name] if name in BUILD else [], protocol)
    except SpecError as error:
        return str(error).partition(";")[0]
    return ""


def _compared(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each line beside the first of its metric."""
    first: dict[str, dict[str, Any]] = {}
    for line in lines:
        if line["value"] is None:
            line |= {"change": None, "percent": None, "choices": ""}
            continue
        base = first.setdefault(line["metric"], line)
        change = line["value"] - base["value"]
        line |= {
            "change": change, "percent": 100 * change / abs(base["value"]) if base["value"] else None,
            "choices": "; ".join(_choices(line["metric"], base["data"], line["data"])),
        }  # fmt: skip
    return lines


# Blocks of a protocol that can reach a metric.
REACH = {
    "psnr": ("psnr", "images"), "ssim": ("ssim", "images"), "ms_ssim": ("ssim", "images"), "lpips": ("lpips", "images"),
    "is": ("judge", "images", "is"), "kid": ("judge", "images", "kid"),
    "fid_infinity": ("judge", "images", "fid_infinity"),
    **dict.fromkeys(("precision", "recall", "density", "coverage"), ("judge", "images", "precision_recall")),
}  # fmt: skip


def _choices(metric: str, base: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    blocks = REACH.get(metric, ("judge", "images"))
    keys = [k for k in dict.fromkeys([*base, *other]) if k.split(".")[0] in blocks and k not in SILENT]
    return [f"{k} {base.get(k)} -> {other.get(k)}" for k in keys if base.get(k) != other.get(k)]


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in data.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found
