"""How every figure looks and is written: 6.5 inches of text width, colours for colour-blind readers too."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any, Literal

from vqbench.artifacts import write_atomic

TEXT_WIDTH = 6.5  # inches
DPI = 220
# Okabe & Ito's palette without its yellow, which vanishes in print.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", ":", "-.")

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans", "font.size": 8, "axes.titlesize": 8.5, "axes.labelsize": 8,
    "xtick.labelsize": 7, "ytick.labelsize": 7, "legend.fontsize": 7, "figure.titlesize": 9,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#dddddd",
    "grid.linewidth": 0.5, "axes.linewidth": 0.6, "lines.linewidth": 1.2, "lines.markersize": 4.5,
    "legend.frameon": False, "pdf.fonttype": 42, "svg.hashsalt": "vqbench", "savefig.facecolor": "white",
    "text.usetex": False, "axes.formatter.useoffset": False, "path.simplify": True,
}  # fmt: skip


def new_figure(height: float, layout: Literal["constrained"] | None = "constrained") -> Any:
    """An empty matplotlib figure as wide as the text and `height` inches high, without pyplot's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(TEXT_WIDTH, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, path: Path) -> None:
    """Write `path` (.pdf) and the .png beside it, each whole or not at all; the same figure gives the same bytes.

    Raises:
        ArtifactError: the disk is full or the folder is not writable.
    """

    def png(file: IO[bytes]) -> None:
        figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})

    def pdf(file: IO[bytes]) -> None:
        figure.savefig(file, format="pdf", dpi=DPI, metadata={"CreationDate": None})

    write_atomic(path.with_suffix(".png"), png)
    write_atomic(path.with_suffix(".pdf"), pdf)


def say(axes: Any, text: str) -> None:
    """Words in place of data that are not there: a panel is never empty."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color="#555555", style="italic")


def place(figure: Any, left: float, top: float, width: float, height: float) -> Any:
    """An axes at an exact place, in inches from the figure's upper left corner: tiles then have one size everywhere."""
    whole_width, whole_height = figure.get_size_inches()
    bottom = whole_height - top - height
    return figure.add_axes((left / whole_width, bottom / whole_height, width / whole_width, height / whole_height))


def bare(axes: Any, columns: float, rows: float) -> None:
    """An axes whose units are tiles, (0, 0) at its upper left: ticks only where labels are set later."""
    axes.set(xlim=(0, columns), ylim=(rows, 0), aspect="equal", xticks=[], yticks=[])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0)


def tile(axes: Any, image: Any, column: float, row: float, **how: Any) -> Any:
    """Show an image in the unit square at (`column`, `row`); call :func:`bare` after the last one."""
    gap = 0.025
    extent = (column + gap, column + 1 - gap, row + 1 - gap, row + gap)
    return axes.imshow(image, extent=extent, **how)


def size_ticks(axes: Any, sizes: list[int]) -> None:
    """A base-2 logarithmic x axis with a tick at each size; powers of two from 1024 on as 2^n, so that they fit."""
    axes.set_xscale("log", base=2)
    powers = min(sizes) >= 1024 and all(s & (s - 1) == 0 for s in sizes)
    labels = [f"$2^{{{s.bit_length() - 1}}}$" if powers else str(s) for s in sizes]
    axes.set_xticks(sizes, labels)
    axes.set_xticks([], minor=True)
    # A single size would give an axis of zero width.
    axes.set_xlim(min(sizes) / 1.5, max(sizes) * 1.5)
