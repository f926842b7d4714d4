"""A paper's figures as PDF, with a PNG beside each: one kind of figure is one way to open data and one to plot them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vqbench.eval import (
    plots_codes,
    plots_images,
    plots_losses,
    plots_replacement,
    plots_samples,
    plots_scores,
    plots_tasks,
    plots_usage,
)
from vqbench.eval.figure_inputs import figure_runs
from vqbench.eval.figure_style import STYLE, save_figure
from vqbench.papers import Bench, Figure

# kind -> (what opens its data from finished steps, what plots them)
KINDS: dict[str, tuple[Callable[[Bench, Figure, Path], Any], Callable[[Any], Any]]] = {
    "usage-and-rfid": (plots_scores.open_points, plots_scores.plot_points),
    "downstream": (plots_tasks.open_tasks, plots_tasks.plot_tasks),
    "reconstructions": (plots_images.open_reconstructions, plots_images.plot_reconstructions),
    "samples": (plots_samples.open_samples, plots_samples.plot_samples),
    "codebook": (plots_images.open_codes, plots_images.plot_codes),
    "losses": (plots_losses.open_logs, plots_losses.plot_logs),
    "usage-over-epochs": (plots_usage.open_curves, plots_usage.plot_curves),
    "code-frequency": (plots_usage.open_frequencies, plots_usage.plot_frequencies),
    "code-map": (plots_codes.open_maps, plots_codes.plot_maps),
    "nearest-replacement": (plots_replacement.open_replaced, plots_replacement.plot_replaced),
}


def draw(bench: Bench, figure: Figure, base: Path) -> None:
    """Write a figure's PDF at ``bench.figure_path(figure)`` below `base`, and the PNG beside it.

    The same results give the same bytes; nothing is written unless all inputs are finished.

    Raises:
        SpecError: unknown kind of figure, or a run that it cannot show.
        ArtifactError, StaleSpec: an input is missing, damaged or out of date.
    """
    from matplotlib import rc_context

    figure_runs(bench, figure)
    opens, plots = KINDS[figure.kind]
    opened = opens(bench, figure, base)
    with rc_context(STYLE):
        save_figure(plots(opened), base / bench.figure_path(figure))
