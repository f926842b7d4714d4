"""Figure kind ``usage-and-rfid``: both against token dimension and codebook size (cq Fig. 1)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from vqbench.eval.cells import open_scores
from vqbench.eval.figure_inputs import figure_runs, score_of, usage_of
from vqbench.eval.figure_style import MARKERS, PALETTE, new_figure, say, size_ticks
from vqbench.eval.printed import printed_table, printed_usage
from vqbench.eval.protocols import metric_name
from vqbench.papers import Bench, Figure

METRICS = ("usage", "rfid")


@dataclass(frozen=True)
class Point:
    """One tokenizer: its series, sizes, and the measured and printed values of :data:`METRICS` that there are."""

    series: str
    code_dim: int
    num_codes: int
    measured: dict[str, float]
    printed: dict[str, float]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)


def open_points(bench: Bench, figure: Figure, base: Path) -> tuple[list[Point], dict[str, str]]:
    """All runs of the figure, and what the axis of each metric is called: whose usage it is, rFID's name under the protocol.

    Raises:
        ArtifactError, StaleSpec: scores are missing or out of date.
    """
    figure_runs(bench, figure)
    points, counted = [], "usage"
    for group, runs in figure.runs.items():
        for run in runs:
            spec = bench.tokenizers[run]
            key, counted = usage_of(bench, figure, run)
            found = {"usage": open_scores(bench, key, base).metric(counted)[1],
                     "rfid": open_scores(bench, score_of(bench, ("tokenizer", run)), base).metric("rfid")[1]}  # fmt: skip
            measured = {
                name: float(entry["value"]) for name, entry in found.items() if entry and entry["value"] is not None
            }
            intervals = {
                name: (float(entry["low"]), float(entry["high"]))
                for name, entry in found.items()
                if entry and name in measured and entry.get("low") is not None and entry.get("high") is not None
            }
            series = f"{spec.family}, {spec.tokens.layout}" if group == "tokenizers" else group
            printed = printed_values(bench, figure, run)
            points.append(Point(series, spec.tokens.code_dim, spec.tokens.num_codes, measured, printed, intervals))
    images = "training" if counted == "usage_train" else "validation"
    rfid = metric_name("rfid", bench.protocol).replace("rfid", "rFID ").rstrip()
    return points, {"usage": f"codebook usage (%),\n{images} images", "rfid": rfid}


def printed_values(bench: Bench, figure: Figure, run: str) -> dict[str, float]:
    """What the figure's tables print for a run, and for a usage that they leave out the paper's map of its codes; only at
    paper scale: for orientation, rFID may be of another protocol (the table's ``about`` says so)."""
    found: dict[str, float] = {}
    if bench.scale != "paper":
        return found
    wanted = {usage_of(bench, figure, run)[1]: "usage", "rfid": "rfid"}
    for table in (bench.table(f"{figure.paper}/{name}") for name in figure.tables):
        for row in (r for r in table.rows if bench.row_specs(r).tokenizer is bench.tokenizers[run]):
            for column, source in table.columns.items():
                text, metric = printed_table(table).value(row.label, column).rstrip("%"), source.get("metric")
                its_own = "on" not in source and ("tokenizer" in row.run or source.get("of") == "tokenizer")
                if metric in wanted and its_own and text.replace(".", "", 1).isdigit():
                    found[wanted[metric]] = float(text)
    mapped = _printed_in_map(bench, figure, run)
    return {"usage": mapped, **found} if mapped is not None else found


def _printed_in_map(bench: Bench, figure: Figure, run: str) -> float | None:
    """A run's usage as a ``code-map`` figure of the same paper prints it."""
    maps = [other for other in bench.figures.values() if (other.paper, other.kind) == (figure.paper, "code-map")]
    codes = bench.tokenizers[run].tokens.num_codes
    texts = [
        printed_usage(bench, one, series, codes) for one in maps for series, runs in one.runs.items() if run in runs
    ]
    return next((float(text.rstrip("%")) for text in texts if text), None)


class Column(NamedTuple):
    """Panels over one size, with the runs that differ in it alone."""

    size: str
    shown: list[Point]
    title: str
    xlabel: str


def plot_points(opened: tuple[list[Point], dict[str, str]]) -> Any:
    """Usage above, rFID below; against token dimension at the left, codebook size at the right, where runs differ in it."""
    points, labels = opened
    columns = _columns(points)
    figure = new_figure(height=4.2)
    axes = figure.subplots(2, len(columns), sharex="col", sharey="row", squeeze=False)
    for place, column in enumerate(columns):
        for row, metric in enumerate(METRICS):
            _panel(axes[row][place], column.shown, points, metric, column.size)
        axes[0][place].set_title(column.title)
        axes[1][place].set(xlabel=column.xlabel)
    axes[0][0].set(ylabel=labels["usage"], ylim=(0, 108))
    axes[1][0].set(ylabel=labels["rfid"], ylim=(0, None))
    handles = {
        label: line for panel in axes.flat for line, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4)
    return figure


def _columns(points: list[Point]) -> list[Column]:
    """The token dimension has a column where it differs, or where nothing else does."""
    common = Counter(p.num_codes for p in points).most_common(1)[0][0]
    alike, grown = [p for p in points if p.num_codes == common], _grown(points)
    dims = ", ".join(str(d) for d in sorted({p.code_dim for p in grown}))
    columns = []
    if not grown or len({p.code_dim for p in alike}) > 1:
        columns.append(Column("code_dim", alike, f"codebook size {common}", "token dimension"))
    if grown:
        columns.append(Column("num_codes", grown, f"token dimension {dims}", "codebook size K"))
    return columns


def _grown(points: list[Point]) -> list[Point]:
    """The runs of each series that differ in codebook size alone; a series with one size has no curve to show."""
    kept = []
    for series in dict.fromkeys(p.series for p in points):
        dims = Counter(p.code_dim for p in points if p.series == series)
        same = [p for p in points if p.series == series and p.code_dim == dims.most_common(1)[0][0]]
        kept += same if len({p.num_codes for p in same}) > 1 else []
    return kept


def _panel(axes: Any, shown: list[Point], every: list[Point], metric: str, size: str) -> None:
    order = list(dict.fromkeys(p.series for p in every))
    with_value = [p for p in shown if metric in p.measured]
    if not with_value:
        say(axes, "not measured")
        return
    for series in dict.fromkeys(p.series for p in with_value):
        colour, marker = PALETTE[order.index(series) % len(PALETTE)], MARKERS[order.index(series) % len(MARKERS)]
        line = sorted((getattr(p, size), p.measured[metric]) for p in with_value if p.series == series)
        axes.plot(*zip(*line, strict=True), color=colour, marker=marker, label=series, clip_on=False, zorder=3)
        bars = sorted((getattr(p, size), *p.intervals[metric]) for p in with_value if p.series == series
                      and metric in p.intervals)  # fmt: skip
        if bars:  # the 95% intervals
            axes.vlines(*zip(*bars, strict=True), color=colour, lw=0.8, alpha=0.7)
        cited = sorted(
            (getattr(p, size), p.printed[metric]) for p in shown if p.series == series and metric in p.printed
        )
        if cited:
            axes.plot(
                *zip(*cited, strict=True),
                color=colour,
                marker=marker,
                mfc="white",
                ls=":",
                clip_on=False,
                zorder=3,
                label=f"{series}, printed",
            )
    size_ticks(axes, sorted({getattr(p, size) for p in with_value}))
    axes.tick_params(labelbottom=True)
