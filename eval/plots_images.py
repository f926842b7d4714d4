"""Pictures: figure kinds ``reconstructions`` and ``codebook`` (cq Fig. 4)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vqbench.errors import SpecError
from vqbench.eval.base import Batch
from vqbench.eval.figure_inputs import figure_runs
from vqbench.eval.figure_style import TEXT_WIDTH, bare, new_figure, place, say, tile
from vqbench.eval.protocols import SignalNoise
from vqbench.eval.psnr import Psnr
from vqbench.jobs import finished
from vqbench.papers import Bench, Figure

if TYPE_CHECKING:
    import numpy as np

COLUMNS = 8
LABELS, TITLE, MARGIN = 0.95, 0.25, 0.05  # inches: names of rows at the left, a block's title, the rim
UNIT = (TEXT_WIDTH - LABELS - MARGIN) / COLUMNS  # inches of a tile's side
CAPTION = 0.24  # height of the words below a tile, in tiles


class Reconstructions(NamedTuple):
    """Originals uint8 (n, H, W, 3) and, per tokenizer, what it made of them, in the same order."""

    originals: np.ndarray
    decoded: dict[str, np.ndarray]


def open_reconstructions(bench: Bench, figure: Figure, base: Path) -> Reconstructions:
    """Validation images, evenly spread over the split, and their reconstructions.

    Raises:
        SpecError: the tokenizers were trained on different data sets.
        ArtifactError, StaleSpec: an input is missing or out of date.
    """
    import numpy as np

    from vqbench.data import open_images

    runs = [run for _, run in figure_runs(bench, figure)]
    datasets = sorted({bench.tokenizers[run].dataset for run in runs})
    if len(datasets) != 1:
        raise SpecError(f"{figure.paper}.yaml: figure '{figure.id}' mixes data sets: {', '.join(datasets)}; show one")
    images = open_images(bench.datasets[datasets[0]], "validation", finished(bench, ("dataset", datasets[0]), base))
    chosen = spread(len(images), COLUMNS)
    decoded = {}
    for run in runs:
        stored = np.load(
            finished(bench, ("reconstruction", f"{run}/{datasets[0]}"), base).file("images.npy"), mmap_mode="r"
        )
        decoded[run] = np.stack([stored[i] for i in chosen])
    return Reconstructions(np.concatenate([images.batch(i, 1) for i in chosen]), decoded)


def spread(length: int, count: int) -> list[int]:
    """At most `count` indices below `length`, spread out, without a repeat.

    They drift by one each time: data sets that go through their classes in turn would show a single class otherwise.
    """
    count = min(length, count)
    return [i * length // count + i % max(1, length // count) for i in range(count)]


def plot_reconstructions(data: Reconstructions) -> Any:
    """Originals in the first row, one row a tokenizer below, with each image's PSNR in dB."""
    height = 1 + CAPTION / 4 + len(data.decoded) * (1 + CAPTION)
    figure = new_figure(height * UNIT + 2 * MARGIN, layout=None)
    axes = place(figure, LABELS, MARGIN, COLUMNS * UNIT, height * UNIT)
    tops = {"original": 0.0} | {run: 1 + CAPTION / 4 + (1 + CAPTION) * i for i, run in enumerate(data.decoded)}
    for column, image in enumerate(data.originals):
        tile(axes, image, column, 0.0)
        for run, images in data.decoded.items():
            tile(axes, images[column], column, tops[run])
            axes.text(
                column + 0.5, tops[run] + 1.0, psnr_text(image, images[column]), ha="center", va="top", fontsize=6
            )
    bare(axes, COLUMNS, height)
    axes.set_yticks([top + 0.5 for top in tops.values()], [wrapped(name) for name in tops])
    return figure


def psnr_text(original: np.ndarray, decoded: np.ndarray) -> str:
    """PSNR of two uint8 images in dB, two decimals; "exact" where they are equal."""
    import numpy as np

    metric = Psnr(SignalNoise(space="rgb", pooling="images", data_range=255, identical="exclude"))
    metric.update(Batch(np.zeros(1, np.int64), decoded[None], original[None]))
    return "exact" if metric.identical else f"{metric.compute()['psnr'].value:.2f} dB"


def wrapped(name: str, width: int = 15) -> str:
    """A run's id on lines of at most `width` characters, broken at its hyphens."""
    lines = [""]
    for part in name.replace("-", "-\n").split("\n"):
        lines = [*lines[:-1], lines[-1] + part] if len(lines[-1] + part) <= width else [*lines, part]
    return "\n".join(filter(None, lines))


class Codes(NamedTuple):
    """Code vectors as maps: float (n, h, w) with their ids; `maps` is None where a code is no map (raster layouts)."""

    title: str
    ids: list[int]
    maps: np.ndarray | None


def open_codes(bench: Bench, figure: Figure, base: Path) -> list[Codes]:
    """Code vectors of each tokenizer, evenly spread over its ids.

    Raises:
        ArtifactError, StaleSpec: a tokenizer is missing or out of date.
    """
    from vqbench.tokenizers.base import open_tokenizer

    found = []
    for _, run in figure_runs(bench, figure):
        spec = bench.tokenizers[run]
        if spec.tokens.layout != "channel":
            found.append(Codes(run, [], None))
            continue
        book = open_tokenizer(spec, finished(bench, ("tokenizer", run), base)).quantizer.codebook().detach()  # (K, h*w)
        ids = spread(len(book), 4 * COLUMNS)
        found.append(Codes(run, ids, book[ids].reshape(len(ids), spec.tokens.grid, spec.tokens.grid).float().numpy()))
    return found


def plot_codes(codes: list[Codes]) -> Any:
    """Heat maps h x w of code vectors, one colour range a tokenizer, symmetric about zero."""
    import numpy as np

    rows = [max(1, -(-len(code.ids) // COLUMNS)) * (1 + CAPTION) for code in codes]
    figure, top = new_figure(sum(rows) * UNIT + (TITLE + MARGIN) * len(codes), layout=None), 0.0
    for code, height in zip(codes, rows, strict=True):
        axes = place(figure, MARGIN, top + TITLE, COLUMNS * UNIT, height * UNIT)
        bar_top, bar_height = top + TITLE + 0.05, (height - CAPTION) * UNIT - 0.1
        top += height * UNIT + TITLE + MARGIN
        axes.set_title(code.title)
        if code.maps is None or not len(code.ids):
            say(axes, "the codes of a raster layout are no maps")
            continue
        limit = float(np.quantile(np.abs(code.maps), 0.995)) or 1.0
        for i, (name, heat) in enumerate(zip(code.ids, code.maps, strict=True)):
            column, top = i % COLUMNS, i // COLUMNS * (1 + CAPTION)
            shown = tile(axes, heat, column, top, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
            axes.text(column + 0.5, top + 1.0, f"code {name}", ha="center", va="top", fontsize=6)
        bare(axes, COLUMNS, height)
        bar = place(figure, MARGIN + COLUMNS * UNIT + 0.12, bar_top, 0.12, bar_height)
        figure.colorbar(shown, cax=bar, label="value of the code vector")
        bar.grid(False)
    return figure
