"""Codes that are used: figure kinds ``usage-over-epochs`` and ``code-frequency`` (VQGAN-LC, Fig. 3, left and right)."""

from __future__ import annotations

from math import ceil, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vqbench.eval.figure_inputs import figure_runs
from vqbench.eval.figure_style import DASHES, MARKERS, PALETTE, new_figure, say
from vqbench.jobs import finished
from vqbench.papers import Bench, Figure

if TYPE_CHECKING:
    import numpy as np

    from vqbench.eval.usage import Usage

PART = 4096  # images whose ids are counted at a time
PIXELS = 4  # maps of pixels in a row


class Curve(NamedTuple):
    """One tokenizer: epochs, the share of its codes (0 to 1) that each hit, and what an epoch is."""

    run: str
    epochs: list[int]
    shares: list[float]
    unit: str


def open_curves(bench: Bench, figure: Figure, base: Path) -> list[Curve]:
    """``usage.csv`` of each tokenizer.

    Raises:
        ArtifactError, StaleSpec: a tokenizer is missing or out of date.
    """
    import pandas as pd

    curves = []
    for _, run in figure_runs(bench, figure):
        frame = pd.read_csv(finished(bench, ("tokenizer", run), base).file("usage.csv"))
        steps = bench.tokenizers[run].training.usage_every
        unit = f"training, in units of {steps} steps" if steps else "training epoch"
        curves.append(Curve(run, frame["epoch"].tolist(), frame["share"].tolist(), unit))
    return curves


def plot_curves(curves: list[Curve]) -> Any:
    """Utilization against epochs, a line a tokenizer."""
    figure = new_figure(height=2.8)
    axes = figure.subplots()
    if not any(curve.epochs for curve in curves):
        say(axes, "no epoch was trained to its end")
        return figure
    for i, curve in enumerate(curves):
        axes.plot(curve.epochs, [100 * share for share in curve.shares], label=curve.run, clip_on=False, zorder=3, **look(i),
                  marker=MARKERS[i % len(MARKERS)])  # fmt: skip
    units = " or ".join(dict.fromkeys(curve.unit for curve in curves))
    last = max(curve.epochs[-1] for curve in curves if curve.epochs)
    axes.set(xlabel=units, ylabel="codes used (%)", ylim=(0, 103), xlim=(1, max(2, last)))
    axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def look(number: int) -> dict[str, str]:
    """Colour and dash of the tokenizer at that place."""
    return {"color": PALETTE[number % len(PALETTE)], "ls": DASHES[number // len(PALETTE) % len(DASHES)]}


class Frequencies(NamedTuple):
    """One tokenizer: how often each code occurs in the training images (K,), the usage_train in % that they make, and each
    code's share of the epochs (K,) in [0, 1]."""

    run: str
    counts: np.ndarray
    usage: float
    epochs: np.ndarray


def open_frequencies(bench: Bench, figure: Figure, base: Path) -> list[Frequencies]:
    """Counts of the training images' ids, and what training counted by code; all slots together.

    Raises:
        ArtifactError, StaleSpec: an input is missing or out of date.
    """
    import numpy as np
    import pandas as pd

    found = []
    for _, run in figure_runs(bench, figure):
        tokenizer = finished(bench, ("tokenizer", run), base)
        periods = max(1, len(pd.read_csv(tokenizer.file("usage.csv"))))
        hits = np.load(tokenizer.file("code_epochs.npy"))  # (Q, K)
        usage = training_usage(bench, run, base)
        share = usage.compute()["usage_train"].value
        found.append(Frequencies(run, counts_of(usage), share, hits.mean(0) / periods))
    return found


def training_usage(bench: Bench, run: str, base: Path) -> Usage:
    """Usage of the ids of all training images; mirror images left out.

    Raises:
        ArtifactError, StaleSpec: the tokens are missing or out of date.
    """
    import numpy as np

    from vqbench.eval.base import Batch
    from vqbench.eval.usage import Usage

    tokens = finished(bench, ("tokens", f"{run}/{bench.tokenizers[run].dataset}/train"), base)
    ids = np.load(tokens.file("ids.npy"), mmap_mode="r")[: tokens.facts["images"]]
    found = Usage(bench.tokenizers[run].tokens.num_codes, "train")
    for start in range(0, len(ids), PART):
        part = np.asarray(ids[start : start + PART])
        found.update(Batch(np.arange(start, start + len(part)), ids=part))
    return found


def counts_of(usage: Usage) -> np.ndarray:
    """How often each of the K codes occurs, all slots and scales together, (K,) int64."""
    found: np.ndarray = usage.counts.sum((0, 1, 2))
    return found


def plot_frequencies(found: list[Frequencies]) -> Any:
    """Above, the frequencies in falling order, 1 that of a code of an evenly used codebook; a line ends where no further
    code is used. Below, a pixel a code, by its id: in which share of the epochs it was used."""
    rows = ceil(len(found) / PIXELS)
    figure = new_figure(height=2.5 + 1.9 * rows)
    above, below = figure.subfigures(2, 1, height_ratios=(2.5, 1.9 * rows))
    axes = above.subplots()
    for i, one in enumerate(found):
        used = sorted_frequencies(one.counts)
        ranks = [100 * (rank + 1) / len(one.counts) for rank in range(len(used))]
        axes.plot(ranks, used, label=f"{one.run} ({one.usage:.1f}% used)", **look(i))
    axes.axhline(1, color="#777777", lw=0.6)
    axes.set(
        yscale="log", xlim=(0, 100), xlabel="codes in falling order (% of the codebook)", ylabel="frequency / uniform"
    )
    axes.legend(loc="upper right")
    panels = list(below.subplots(rows, min(PIXELS, len(found)), squeeze=False).flat)
    for axes, one in zip(panels, found, strict=False):
        shown = axes.imshow(pixels(one.epochs), cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
        axes.set(title=one.run, xticks=[], yticks=[])
        boxed(axes)
    for spare in panels[len(found) :]:
        spare.set_axis_off()
    below.colorbar(shown, ax=panels, label="share of epochs", shrink=0.8)
    return figure


def boxed(axes: Any) -> None:
    """A panel whose axes mean nothing: a frame, no grid."""
    axes.grid(False)
    axes.spines[:].set_visible(True)


def sorted_frequencies(counts: np.ndarray) -> np.ndarray:
    """Frequencies of the used codes over that of an even codebook, falling."""
    import numpy as np

    found: np.ndarray = np.sort(counts[counts > 0])[::-1] * len(counts) / counts.sum()
    return found


def pixels(values: np.ndarray) -> np.ndarray:
    """(K,) as a square by rows, NaN where it has more places than codes."""
    import numpy as np

    side = ceil(sqrt(len(values)))
    return np.pad(values.astype(float), (0, side * side - len(values)), constant_values=np.nan).reshape(side, side)
