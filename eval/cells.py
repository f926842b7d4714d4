"""The cells of a table: measured metrics, facts of a run at this scale, and the state of what a row is read from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vqbench.artifacts import read_json
from vqbench.attempts import death_of
from vqbench.errors import ArtifactError, StaleSpec
from vqbench.eval.facts import fact_text, interval_text, value_text
from vqbench.eval.protocols import metric_name
from vqbench.jobs import finished
from vqbench.papers import Bench, Key, Row, Table
from vqbench.specs import digest_of

REFUSED = "refused"  # the cell of a pair of tokenizer and generator that cannot be


@dataclass(frozen=True)
class Scores:
    """One finished ``scores.json``.

    Attributes:
        metrics: ``{name: {"value", "low", "high", "interval", "unit", "higher_is_better", "n"}}``.
        manifest: path of its manifest, relative to the clone.
        accepted: keys, itself or upstream, that were kept under changed code by ``vqbench accept``.
        warnings: what makes its numbers wrong or not comparable, one sentence each.
    """

    key: Key
    metrics: Mapping[str, Mapping[str, Any]]
    protocol: Mapping[str, Any]
    protocol_digest: str
    manifest: str
    accepted: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    def metric(self, base: str) -> tuple[str, Mapping[str, Any] | None]:
        """The metric's real name under the protocol (``fid[demo-judge]``) and its entry, None if it was not scored."""
        name = metric_name(base, dict(self.protocol))
        return name, self.metrics.get(name, self.metrics.get(base))


def open_scores(bench: Bench, key: Key, base: Path) -> Scores:
    """Read the scores of a finished evaluation step.

    Raises:
        ArtifactError: missing or damaged.
        StaleSpec: made from another spec or code than the one asked for now.
    """
    done = finished(bench, key, base)
    data = read_json(done.file("scores.json"))
    protocol = data["protocol"]
    digest = data.get("protocol_digest") or digest_of(protocol)
    warnings = tuple(data.get("warnings", ()))  # scores that were accepted may be older than these
    return Scores(key, data["metrics"], protocol, digest, bench.manifest(key), tuple(bench.kept([key])), warnings)


def state_of(bench: Bench, key: Key, base: Path) -> tuple[str, Scores | None]:
    """``("measured", scores)``, or why there are none: ``missing``, ``stale`` or ``failed: <reason>``."""
    there = (base / bench.manifest(key)).is_file()
    try:
        return "measured", open_scores(bench, key, base)
    except StaleSpec:
        return failure_of(bench, key, base) or "stale", None
    except ArtifactError as error:
        damaged = f"failed: {error}".replace(f"{base}/", "") if there else "missing"
        return failure_of(bench, key, base) or damaged, None


def failure_of(bench: Bench, key: Key, base: Path) -> str:
    """``failed: <step>: <reason>`` for the first step `key` needs that failed or died; "" where none did."""
    for need in bench.with_upstream([key]):
        store = base / bench.root / "store" / need[0] / need[1] / bench.digest(need)[:16]
        reason = read_json(path)["reason"] if (path := store / "failure.json").is_file() else death_of(store)
        if reason:
            return f"failed: {'/'.join(need)}: {reason}"
    return ""


@dataclass
class MeasuredRow:
    """What this scale has for one row of a table.

    Attributes:
        status: reported_only | measured | not yet: reason | failed: reason | missing | stale.
        cells: column -> text; a column without an entry was not measured.
        intervals: column -> 95% interval of the cell, where it has one.
        counts: column -> number of images behind the cell.
        scores: column -> the scores that a metric's cell was read from.
        wanting: score keys that are not finished, with their state.
    """

    row: Row
    status: str
    cells: dict[str, str] = field(default_factory=dict)
    intervals: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    scores: dict[str, Scores] = field(default_factory=dict)
    wanting: dict[Key, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def warnings(self) -> list[str]:
        """Those of all its scores, each once."""
        return list(dict.fromkeys(warning for scores in self.scores.values() for warning in scores.warnings))


def measure_row(bench: Bench, table: Table, row: Row, printed: Mapping[str, list[str]], base: Path) -> MeasuredRow:
    """Read all measured cells of a row; `printed` holds the strings of each printed column."""
    found = MeasuredRow(row, row.status)
    if not row.run:
        return found
    states = {key: state_of(bench, key, base) for key in bench.row_keys(table, row)}
    _add_crossings(found, bench, table)
    found.wanting = {key: state for key, (state, scores) in states.items() if scores is None}
    found.status = next(iter(sorted(found.wanting.values(), key=_worst_first)), "measured")
    specs = bench.row_specs(row)
    for column, source in table.columns.items():
        if "fact" in source:
            found.cells[column] = fact_text(specs, source["fact"], f"table '{table.id}', column '{column}'")
        elif "metric" in source:
            key = bench.column_key(row, source)
            scores = states[key][1] if key else None
            _add_metric(found, column, source, scores, printed.get(column, []))
    return found


def _add_crossings(found: MeasuredRow, bench: Bench, table: Table) -> None:
    """Say of a row's pairs which cannot be, and which are short runs: those compare with no paper's."""
    short: dict[str, list[str]] = {}
    for column, source in table.columns.items():
        pair = found.row.crossings.get(source.get("with", ""))
        if pair and pair.refused:
            found.cells[column] = REFUSED
            found.notes.append(f"{column}: {REFUSED}: {pair.refused}")
        elif pair and pair.share < 1 and (generator := bench.crossing_specs(pair).generator):
            steps = f"short runs of {generator.training.steps} training steps ({pair.share:.0%} of the recipe's)"
            short.setdefault(steps, []).append(column)
    found.notes += [f"{steps}: {', '.join(columns)}" for steps, columns in short.items()]


def _worst_first(state: str) -> int:
    return ("failed", "stale", "missing").index(state.split(":")[0])


def _add_metric(
    found: MeasuredRow, column: str, source: Mapping[str, Any], scores: Scores | None, printed: list[str]
) -> None:
    if scores is None:
        return
    base = source["metric"]
    name, entry = scores.metric(base)
    if entry is None:  # perhaps for a misspelt name: say what there is
        found.notes.append(f"{column}: {name} was not scored, but {', '.join(sorted(scores.metrics))}")
        return
    if entry["value"] is None:
        found.notes.append(f"{column}: {name} has no finite value")
        return
    if "times" in source:  # as the paper prints it
        numbers = {k: entry[k] * source["times"] for k in ("value", "low", "high") if entry.get(k) is not None}
        entry = {**entry, **numbers}
    found.cells[column] = value_text(base, entry, printed)
    found.intervals[column] = interval_text(base, entry, printed)
    found.counts[column], found.scores[column] = int(entry["n"]), scores
