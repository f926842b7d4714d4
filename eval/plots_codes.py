"""Where codes lie: figure kind ``code-map``, a t-SNE of active and inactive codes (VQGAN-LC, Fig. 4)."""

from __future__ import annotations

from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vqbench.eval.figure_inputs import figure_runs
from vqbench.eval.figure_style import new_figure
from vqbench.eval.plots_images import spread
from vqbench.eval.plots_usage import boxed, counts_of, training_usage
from vqbench.eval.printed import printed_usage
from vqbench.jobs import finished
from vqbench.papers import Bench, Figure

if TYPE_CHECKING:
    import numpy as np

# Codes that are embedded: t-SNE of 100,000 takes hours, and as dots they would cover each other.
MOST = 4000
PERPLEXITY = 30.0
COLOURS = {"active": "#009E73", "inactive": "#0072B2"}  # green and blue, as in the paper
COLUMNS = 3


class Map(NamedTuple):
    """One tokenizer: places (n, 2) of its codes, which of them are active (n,), the share of all K that are, K, and the
    share that the paper's figure prints, with its sign."""

    run: str
    places: np.ndarray
    active: np.ndarray
    share: float
    codes: int
    printed: str = ""


def open_maps(bench: Bench, figure: Figure, base: Path) -> list[Map]:
    """The code vectors as they are looked up, in two dimensions. Active: it occurs in the training images' ids.

    Raises:
        ArtifactError, StaleSpec: an input is missing or out of date.
    """
    from vqbench.tokenizers.base import open_tokenizer

    found = []
    series = {run: name for name, runs in figure.runs.items() for run in runs}
    for _, run in figure_runs(bench, figure):
        model = open_tokenizer(bench.tokenizers[run], finished(bench, ("tokenizer", run), base))
        book, active = model.quantizer.codebook().float().numpy(), counts_of(training_usage(bench, run, base)) > 0
        chosen = spread(len(book), MOST)
        printed = printed_usage(bench, figure, series[run], len(book))
        found.append(Map(run, embedded(book[chosen]), active[chosen], float(active.mean()), len(book), printed))
    return found


def embedded(vectors: np.ndarray) -> np.ndarray:
    """t-SNE of vectors (n, d) to (n, 2), seeded; on one thread, so that the number of cores changes nothing."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    perplexity = min(PERPLEXITY, (len(vectors) - 1) / 3)
    with threadpool_limits(limits=1):
        found: np.ndarray = TSNE(perplexity=perplexity, init="random", random_state=0, n_jobs=1).fit_transform(vectors)
    return found


def plot_maps(maps: list[Map]) -> Any:
    """A panel a tokenizer; active codes lie over inactive ones."""
    rows, columns = ceil(len(maps) / COLUMNS), min(COLUMNS, len(maps))
    figure = new_figure(height=0.4 + 2.2 * rows)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, one in zip(panels, maps, strict=False):
        for name, which in (("inactive", ~one.active), ("active", one.active)):
            axes.scatter(*one.places[which].T, s=3, lw=0, color=COLOURS[name], label=name, rasterized=True)
        shown = "" if len(one.places) == one.codes else f", {len(one.places)} shown"
        share = f"{100 * one.share:.1f}%{one.printed and f' (printed {one.printed})'} of {one.codes} active"
        axes.set(title=f"{one.run}\n{share}{shown}", xticks=[], yticks=[])
        boxed(axes)
    for spare in panels[len(maps) :]:
        spare.remove()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, markerscale=3)
    return figure
