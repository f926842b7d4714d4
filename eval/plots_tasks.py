"""Figure kind ``downstream``: tokenizers side by side on every task that learns from their tokens (VQGAN-LC, Fig. 1 b)."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

from vqbench.eval.cells import open_scores
from vqbench.eval.figure_inputs import figure_runs, score_of
from vqbench.eval.figure_style import PALETTE, new_figure, say
from vqbench.eval.printed import PrintedCell, printed_figure
from vqbench.papers import Bench, Figure, Key

COLUMNS = 3
# kind of run -> metric of its task, and what the metric is called
METRICS = {"tokenizer": ("rfid", "rFID"), "classifier": ("top1", "top-1 (%)"), "samples": ("fid", "FID")}
# kind of run -> the column of its number among those that the figure prints; "Generation-NAME" for a generator
PRINTED = {"tokenizer": "Reconstruction", "classifier": "Classification(top-1)"}
# families of generators as the papers write them; a new one stands as its file is called
NAMES = {"gpt": "GPT", "ldm": "LDM", "dit": "DiT", "sit": "SiT", "maskgit": "MaskGIT"}


class Bar(NamedTuple):
    """One number of one tokenizer: its series, the value, its 95% interval and what the paper prints (None: there is none)."""

    series: str
    value: float
    interval: tuple[float, float] | None
    printed: PrintedCell | None


def open_tasks(bench: Bench, figure: Figure, base: Path) -> dict[str, list[Bar]]:
    """Task -> a bar for each series that was scored on it.

    Raises:
        ArtifactError, StaleSpec: scores are missing or out of date.
    """
    tasks: dict[str, list[Bar]] = {}
    kinds = {run: kind for kind, run in figure_runs(bench, figure)}
    for series, runs in figure.runs.items():
        for run in runs:
            key = (kinds[run], run)
            metric, called = METRICS[key[0]]
            name, entry = open_scores(bench, score_of(bench, key), base).metric(metric)
            if entry is not None and entry["value"] is not None:
                title = f"{task_of(bench, key)}\n{name.replace(metric, f'{called} ').rstrip()}"
                printed = printed_value(bench, figure, series, key)
                tasks.setdefault(title, []).append(Bar(series, float(entry["value"]), _interval(entry), printed))
    return tasks


def printed_value(bench: Bench, figure: Figure, series: str, run: Key) -> PrintedCell | None:
    """The number in the paper's own figure; only at paper scale: for orientation, the paper's FID may be of
    another protocol than the scale's."""
    task = f"Generation-{_generator(bench, run)}" if run[0] == "samples" else PRINTED[run[0]]
    return printed_figure(figure).cells.get((series, task)) if bench.scale == "paper" else None


def _generator(bench: Bench, run: Key) -> str:
    family = bench.generators[bench.samples[run[1]].generator].family
    return NAMES.get(family, family)


def task_of(bench: Bench, run: Key) -> str:
    """What a run does with the tokens, for people."""
    if run[0] == "samples":
        return f"generation, {_generator(bench, run)}"
    return {"tokenizer": "reconstruction", "classifier": "classification"}[run[0]]


def _interval(entry: Mapping[str, Any]) -> tuple[float, float] | None:
    low, high = entry.get("low"), entry.get("high")
    return None if low is None or high is None else (float(low), float(high))


def plot_tasks(tasks: Mapping[str, list[Bar]]) -> Any:
    """A panel a task, a bar a tokenizer; the 95% interval as a line."""
    rows = max(1, ceil(len(tasks) / COLUMNS))
    figure = new_figure(height=1.7 * rows + 0.4)
    axes = figure.subplots(rows, COLUMNS, squeeze=False)
    series = list(dict.fromkeys(bar.series for bars in tasks.values() for bar in bars))
    for panel in axes.flat[len(tasks) :]:
        panel.set_axis_off()
    if not tasks:
        say(axes[0][0], "not measured")
    for panel, (title, bars) in zip(axes.flat, tasks.items(), strict=False):
        _bars(panel, bars, series)
        panel.set(title=title)
        panel.set_xticks(range(len(series)), series)
        panel.grid(axis="x", visible=False)
    return figure


def _bars(panel: Any, bars: list[Bar], series: list[str]) -> None:
    """Each with its interval, and its value above both; the printed number as a diamond, ``?`` if its reading is uncertain."""
    places = [series.index(bar.series) for bar in bars]
    tops = [max(bar.value, *(bar.interval or (0.0,))) for bar in bars]
    cited = [(place, bar.printed) for place, bar in zip(places, bars, strict=True) if bar.printed]
    for place, cell in cited:
        panel.plot(place + 0.22, float(cell.value), marker="D" if cell.certain else "$?$", color="#333333", mfc="white", ms=4.5,
                   zorder=4)  # fmt: skip
    panel.bar(places, [bar.value for bar in bars], width=0.7, color=[PALETTE[place] for place in places], zorder=2)
    for place, bar, top in zip(places, bars, tops, strict=True):
        if bar.interval:
            panel.vlines(place, *bar.interval, color="#333333", lw=0.9, zorder=3)
        panel.annotate(f"{bar.value:#.3g}".rstrip("."), (place, top), ha="center", va="bottom", fontsize=6.5,
                       xytext=(0, 2), textcoords="offset points")  # fmt: skip
    panel.set_ylim(0, 1.2 * max([*tops, *(float(cell.value) for _, cell in cited)]))
