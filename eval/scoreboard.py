"""``scores.csv``: every run and every metric at a scale, long format, full precision; also what no paper prints."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vqbench.artifacts import write_text
from vqbench.eval.cells import Scores, open_scores
from vqbench.papers import Bench, Key

COLUMNS = (
    "run",
    "kind",
    "dataset",
    "metric",
    "value",
    "low",
    "high",
    "unit",
    "higher_is_better",
    "n",
    "interval",
    "protocol",
    "manifest",
    "accepted",
)


def scores_path(bench: Bench) -> str:
    """``results/scores.csv`` or ``results/<scale>/scores.csv``, relative to the clone."""
    return f"{bench.root}/scores.csv"


def write_scores(bench: Bench, base: Path, keys: Iterable[Key]) -> Path:
    """Write the scores of `keys` (tokenizer-scores, sample-scores, probe, controls), sorted, and return the path.

    Columns are :data:`COLUMNS`: ``value`` in full precision in ``unit``, ``low`` and ``high`` its 95% interval
    (``interval`` says how it was found), ``n`` the number of images behind it, ``protocol`` its name and the first digits
    of its digest, ``accepted`` what was kept under changed code.

    Raises:
        ArtifactError, StaleSpec: one of the scores is missing, damaged or out of date.
    """
    import pandas as pd

    lines = [line for key in sorted(set(keys)) for line in _lines(bench, open_scores(bench, key, base))]
    frame = pd.DataFrame(lines, columns=list(COLUMNS))
    path = base / scores_path(bench)
    write_text(path, frame.to_csv(index=False, lineterminator="\n"))
    return path


def _lines(bench: Bench, scores: Scores) -> list[dict[str, Any]]:
    common = {
        "run": scores.key[1].split("/")[0], "kind": scores.key[0], "dataset": dataset_of(bench, scores.key),
        "protocol": f"{scores.protocol.get('name', '')} {scores.protocol_digest[:8]}".strip(),
        "manifest": scores.manifest, "accepted": " ".join(scores.accepted),
    }  # fmt: skip
    facts = ("unit", "higher_is_better", "n", "interval")
    return [
        {
            "metric": name,
            **{k: _exact(entry[k]) for k in ("value", "low", "high")},
            **{k: entry[k] for k in facts},
            **common,
        }
        for name, entry in sorted(scores.metrics.items())
    ]


def _exact(value: float | None) -> str:
    """Shortest text that reads back as the same float; "" for a value that is not finite (PSNR of equal images)."""
    return "" if value is None else repr(float(value))


def dataset_of(bench: Bench, key: Key) -> str:
    """The data set that a score was taken on."""
    kind, name = key
    if kind == "sample-scores":
        return bench.generators[bench.samples[name].generator].dataset
    return name.split("/")[1] if "/" in name else bench.tokenizers[name].dataset
