"""Figure kind ``losses``: every term of every run's training log, and where the discriminator comes in."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqbench.eval.figure_inputs import figure_runs
from vqbench.eval.figure_style import DASHES, PALETTE, new_figure, say
from vqbench.jobs import finished
from vqbench.papers import Bench, Figure, Key

if TYPE_CHECKING:
    import pandas as pd

NOT_TERMS = ("step", "lr")


@dataclass(frozen=True)
class Log:
    """One run's ``losses.csv`` (columns step, lr, one per term; NaN while a term is off)."""

    run: str
    frame: pd.DataFrame
    discriminator_start: int | None

    @property
    def terms(self) -> list[str]:
        """Terms that were on at some step."""
        return [c for c in self.frame.columns if c not in NOT_TERMS and self.frame[c].notna().any()]


def open_logs(bench: Bench, figure: Figure, base: Path) -> list[Log]:
    """The training logs of the figure's runs.

    Raises:
        ArtifactError, StaleSpec: a run is missing or out of date.
    """
    import pandas as pd

    logs = []
    for kind, run in figure_runs(bench, figure):
        frame = pd.read_csv(finished(bench, (kind, run), base).file("losses.csv"))
        logs.append(Log(run, frame, _start_of(bench, (kind, run))))
    return logs


def _start_of(bench: Bench, key: Key) -> int | None:
    adversary = bench.tokenizers[key[1]].training.discriminator if key[0] == "tokenizer" else None
    return adversary.start_step if adversary else None


def plot_logs(logs: list[Log]) -> Any:
    """Two panels beside each other, one a run; terms that take both signs have a linear panel of their own.

    A term has one colour and dash throughout. Curves are running means over the pale raw values.
    """
    parts = [
        (log, terms) for log in logs for terms in (_signed(log, False), _signed(log, True) or None) if terms is not None
    ]
    rows = ceil(len(parts) / 2)
    figure = new_figure(height=2.0 * rows + 0.6)
    panels = list(figure.subplots(rows, 2, squeeze=False).flat)
    every = list(dict.fromkeys(term for log in logs for term in log.terms))
    look = {t: (PALETTE[i % len(PALETTE)], DASHES[i // len(PALETTE) % len(DASHES)]) for i, t in enumerate(every)}
    for axes, (log, terms) in zip(panels, parts, strict=False):
        _panel(axes, log, terms, look)
    for spare in panels[len(parts) :]:
        spare.remove()
    handles = {
        label: line for panel in figure.axes for line, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5)
    return figure


def _signed(log: Log, signed: bool) -> list[str]:
    return [term for term in log.terms if bool((log.frame[term] < 0).any()) == signed]


def _panel(axes: Any, log: Log, terms: list[str], look: dict[str, tuple[str, str]]) -> None:
    linear = any((log.frame[term] < 0).any() for term in terms)
    axes.set_title(f"{log.run}: terms of both signs" if linear else log.run)
    if not terms:
        say(axes, "not measured")
        return
    steps, window = log.frame["step"], max(1, len(log.frame) // 60)
    for term in terms:
        # Zero has no place on a logarithmic axis; a term that is off (NaN) is not drawn either.
        values = log.frame[term] if linear else log.frame[term].where(log.frame[term] > 0)
        smooth = values.rolling(window, min_periods=1).mean().where(values.notna())
        axes.plot(steps, values, color=look[term][0], lw=0.5, alpha=0.25)
        axes.plot(steps, smooth, color=look[term][0], ls=look[term][1], label=term)
    start = log.discriminator_start
    if start is not None and start <= steps.max():
        axes.axvline(start, color="#777777", lw=0.9, ls=(0, (4, 3)), label="discriminator starts")
    axes.set(xlabel="step", ylabel="loss term", xlim=(0, max(1, steps.max())))
    if linear:
        axes.axhline(0, color="#777777", lw=0.5)
    else:
        _log_axis(axes, log.frame[terms].where(log.frame[terms] > 0))


def _log_axis(axes: Any, values: pd.DataFrame) -> None:
    """Plain numbers on a logarithmic axis; where it spans hardly a decade, at 2, 3 and 5 times the powers too."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    low, high = float(values.min().min()), float(values.max().max())
    axes.yaxis.set_major_formatter(plain)
    if high < 20 * low:
        axes.yaxis.set_minor_locator(LogLocator(subs=(2, 3, 5)))
        axes.yaxis.set_minor_formatter(plain)
    else:
        axes.yaxis.set_minor_formatter(NullFormatter())
