"""``vqbench bridge``: one set of images under every protocol; which choice moves which number by how much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vqbench.errors import SpecError, UserError
from vqbench.eval.evaluate import score
from vqbench.eval.extras import Extras
from vqbench.eval.judges import with_judge
from vqbench.eval.protocols import FOLDER, Protocol, load_protocol
from vqbench.eval.request import Images, Request, make_request, needs_files
from vqbench.eval.set_metrics import BUILD, set_metrics
from vqbench.specs import digest_of

if TYPE_CHECKING:
    import pandas as pd

# What a protocol is called, says of itself, or uses only to bound memory moves no number.
SILENT = (
    "name",
    "summary",
    "source",
    "suffix",
    "batch",
    "metrics",
    "probe",
    "lpips.suffix",
    "psnr.suffix",
    "ssim.suffix",
)
COLUMNS = ["metric", "protocol", "value", "low", "high", "change", "percent", "choices", "n", "unit", "higher_is_better",
           "note", "protocol_digest"]  # fmt: skip


def bridge(
    generated: Images,
    reference: Images,
    *,
    protocols: Sequence[str] | None = None,
    metrics: Sequence[str] | None = None,
    pairs: bool = False,
    judge: str | None = None,
    weights: Mapping[str, str | Path | nn.Module] | None = None,
    value_range: tuple[float, float] | None = None,
    device: str | torch.device | None = None,
) -> pd.DataFrame:
    """One row per protocol and metric; what every protocol warns of is in ``attrs["warnings"]``, "protocol: warning".

    Columns: ``metric`` (its plain name), ``protocol``, ``value``, ``low``, ``high``, ``change`` (from the first protocol
    that gives this metric), ``percent``, ``choices`` (what this protocol does otherwise than that one, as far as it can
    reach the metric), ``n``, ``unit``, ``higher_is_better``, ``note`` (why there is no value) and ``protocol_digest``.

    Args:
        protocols: names; by default all that are shipped, ``adm`` first. Others as in :func:`evaluate`.
    """
    import pandas as pd

    names = list(protocols or ["adm", *sorted(p.stem for p in FOLDER.glob("*.yaml") if p.stem not in ("adm", "demo"))])
    lines: list[dict[str, Any]] = []
    warnings: list[str] = []
    for name in names:
        protocol = with_judge(load_protocol(name), judge) if judge else load_protocol(name)
        options = {"pairs": pairs, "weights": weights, "value_range": value_range, "device": device}
        scored = _Scored(protocol, generated, reference, options)
        lines += scored.lines(metrics)
        warnings += [f"{protocol.name}: {warning}" for warning in scored.warnings]
    if all(line["note"] for line in lines):
        raise SpecError("no protocol could score these images: " + "; ".join({line["note"] for line in lines}))
    table = pd.DataFrame(_compared(lines), columns=COLUMNS).sort_values("metric", kind="stable", ignore_index=True)
    table.attrs["warnings"] = warnings
    return table


class _Scored:
    """One protocol's lines. What cannot be had costs its own line alone."""

    def __init__(self, protocol: Protocol, generated: Images, reference: Images, options: Mapping[str, Any]) -> None:
        self.protocol, self.generated, self.reference, self.options = protocol, generated, reference, options
        data = protocol.model_dump(mode="json", by_alias=True)
        self.common = {"protocol": protocol.name, "protocol_digest": digest_of(data), "data": _flat(data)}
        self.warnings: list[str] = []

    def lines(self, metrics: Sequence[str] | None) -> list[dict[str, Any]]:
        lacking = {name: why for name in metrics or () if (why := self._undefined(name))}
        lines = [self._without(name, why) for name, why in lacking.items()]
        names = self._request(metrics and [name for name in metrics if name not in lacking]).names
        names = [name for name in names if name not in lacking]
        return lines + (self._try(names) if names else [])

    def _request(self, names: Sequence[str] | None) -> Request:
        return make_request(self.protocol, names, judge=None, referenced=True, **self.options)

    def _try(self, names: list[str]) -> list[dict[str, Any]]:
        """All in one pass; where that fails, each alone, so that one network's missing weights cost its metrics only."""
        request = self._request(names)
        request.explicit = False  # what cannot be had becomes a note
        try:
            report = score(request, self.generated, self.reference, Extras([], None, None))
        except UserError as error:
            if len(names) == 1:
                return [self._without(names[0], str(error))]
            return [line for name in names for line in self._try([name])]
        found = {name.partition("[")[0]: entry for name, entry in report["metrics"].items()}
        left = [warning for warning in report["warnings"] if "left out" in warning]
        self.warnings += [w for w in report["warnings"] if w not in (*left, *self.warnings)]
        acted = _acted(report)
        lines = [{"metric": name, "note": "" if entry["value"] is not None else "undefined", **self.common, "acted": acted,
                  **{k: entry[k] for k in ("value", "low", "high", "n", "unit", "higher_is_better")}}
                 for name, entry in found.items()]  # fmt: skip
        return lines + [self._without(name, "; ".join(left)) for name in names if name not in found]

    def _without(self, metric: str, why: str) -> dict[str, Any]:
        return {"metric": metric, "value": None, "note": why, **self.common}

    def _undefined(self, name: str) -> str:
        """Why the protocol has no such metric of these sets; empty where it has, or where nobody knows the name."""
        try:
            set_metrics([name] if name in BUILD else [], self.protocol)
        except SpecError as error:
            return str(error).partition(";")[0]
        return needs_files(name, self.protocol) if self.options["pairs"] else ""


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
            "choices": "; ".join(_choices(line["metric"], base, line)),
        }  # fmt: skip
    return lines


# What can reach a metric: single choices, and whole blocks (ending in a dot).
SEEN = ("images.crop", "images.rounding", "judge.network", "judge.resize", "judge.size", "judge.gain")
POOLED = (*SEEN, "judge.features")
PIXELS = ("images.crop", "images.rounding")
PAPERS_WINDOW = (
    "ssim.window",
    "ssim.size",
    "ssim.sigma",
    "ssim.covariance",
)  # MS-SSIM keeps its own unless it is Gaussian
REACH: dict[str, tuple[str, ...]] = {
    "psnr": (*PIXELS, "psnr."), "ssim": (*PIXELS, "ssim."), "lpips": (*PIXELS, "lpips."), "lpips_alex": PIXELS,
    "ms_ssim": (*PIXELS, "ssim.data_range", "ssim.channels", *PAPERS_WINDOW),
    "fid": POOLED, "rfid": POOLED, "sfid": (*SEEN, "judge.spatial"), "is": (*SEEN, "judge.logits", "is."),
    "kid": (*POOLED, "kid."), "fid_infinity": (*POOLED, "fid_infinity."),
    **dict.fromkeys(("precision", "recall", "density", "coverage"), (*POOLED, "precision_recall.")),
}  # fmt: skip


def _choices(metric: str, base: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """What line `other` does otherwise than line `base`, of what can reach the metric and acted on these images."""
    mine, theirs = (_judged(metric, line["data"]) for line in (base, other))
    keys = [k for k in dict.fromkeys([*mine, *theirs]) if mine.get(k) != theirs.get(k) and k not in SILENT]
    acted = base["acted"] | other["acted"]
    return [
        f"{k} {mine.get(k)} -> {theirs.get(k)}"
        for k in keys
        if any(k == key or (key.endswith(".") and k.startswith(key)) for key in REACH[metric])
        and (k not in PIXELS or k in acted)
    ]


def _judged(metric: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """The choices, where precision and recall have a judge of their own with that one in the judge's place."""
    own = "precision_recall.judge."
    rest = {k: v for k, v in data.items() if not k.startswith(own.rstrip("."))}
    if not REACH[metric][-1].startswith("precision_recall"):
        return rest
    return rest | {f"judge.{k.removeprefix(own)}": v for k, v in data.items() if k.startswith(own)}


def _acted(report: Mapping[str, Any]) -> frozenset[str]:
    """Rules for images that did something to these: others cannot have moved a number."""
    sides = [side for side in (report["generated"], report["reference"]) if side]
    rules = [rule for side in sides for rule in side.get("converted") or side.get("meta", {}).get("converted", ())]
    acts = {"images.crop": ("cropped", "enlarged"), "images.rounding": ("floats",)}
    return frozenset(key for key, starts in acts.items() if any(rule.startswith(starts) for rule in rules))


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in data.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found
