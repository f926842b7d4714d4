"""Figure kind ``samples``: sheets of generated images, by class (cq Fig. 3, VQGAN-LC Figs. 6-10) or without (Fig. 11)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vqbench.eval.archive import Archive, read_array
from vqbench.eval.figure_inputs import figure_runs
from vqbench.eval.figure_style import bare, new_figure, place, tile
from vqbench.eval.plots_images import COLUMNS, LABELS, MARGIN, TITLE, UNIT, spread
from vqbench.jobs import finished
from vqbench.papers import Bench, Figure
from vqbench.specs import DatasetSpec

if TYPE_CHECKING:
    import numpy as np

ROWS = 10  # of all sheets of a figure together
READ = 64  # images of an archive that are read at a time


class SampleSheet(NamedTuple):
    """One sample set: rows of images uint8 (n, H, W, 3), each with its class' name, or "" where there is one class alone."""

    title: str
    rows: list[tuple[str, np.ndarray]]


def open_samples(bench: Bench, figure: Figure, base: Path) -> list[SampleSheet]:
    """The first samples of a few classes of each set; more sets leave room for fewer classes. Of an unconditional set the
    first samples there are.

    Raises:
        ArtifactError, StaleSpec: a sample set is missing or out of date.
    """
    runs = [run for _, run in figure_runs(bench, figure)]
    rows, sheets = max(2, ROWS // len(runs)), []
    for run in runs:
        dataset = bench.datasets[bench.generators[bench.samples[run].generator].dataset]
        path = finished(bench, ("samples", run), base).file("samples.npz")
        chosen = chosen_rows(read_array(path, "arr_1"), dataset, rows, figure.classes)
        images = picked(path, sorted({i for _, places in chosen for i in places}))
        sheets.append(SampleSheet(run, [(name, images_at(images, places)) for name, places in chosen]))
    return sheets


def chosen_rows(
    labels: np.ndarray, dataset: DatasetSpec, rows: int, shown: Mapping[int, str]
) -> list[tuple[str, list[int]]]:
    """Name and samples' places of each row: of the classes `shown`, unless this scale's data set has not all of them; else
    classes spread over those there are."""
    import numpy as np

    if dataset.classes == 1:
        return [("", list(range(i, min(i + COLUMNS, len(labels))))) for i in range(0, len(labels), COLUMNS)][:rows]
    present = np.unique(labels)
    if shown and set(shown) <= set(present.tolist()):
        names = {label: f"{name} {label}" for label, name in shown.items()}
    else:
        some = [int(present[place_]) for place_ in spread(len(present), rows)]
        names = {label: dataset.images[label] if dataset.images else f"class {label}" for label in some}
    return [(name, np.flatnonzero(labels == label)[:COLUMNS].tolist()) for label, name in names.items()]


def picked(path: Path, places: list[int]) -> dict[int, np.ndarray]:
    """The images at those places, read as a stream no further than the last: 50,000 of 256x256 are 9.8 GB."""
    found: dict[int, np.ndarray] = {}
    for number, images in enumerate(Archive(path, "arr_0").batches(READ)):
        start = number * READ
        found |= {i: images[i - start] for i in places if start <= i < start + READ}
        if start + READ > places[-1]:
            break
    return found


def images_at(images: dict[int, np.ndarray], places: list[int]) -> np.ndarray:
    """(n, H, W, 3)."""
    import numpy as np

    return np.stack([images[i] for i in places])


def plot_samples(sheets: list[SampleSheet]) -> Any:
    """One block a sample set: a row a class, a column a sample."""
    heights = [len(sheet.rows) * UNIT for sheet in sheets]
    figure, top = new_figure(sum(heights) + (TITLE + MARGIN) * len(sheets), layout=None), 0.0
    for sheet, height in zip(sheets, heights, strict=True):
        axes = place(figure, LABELS, top + TITLE, COLUMNS * UNIT, height)
        top += height + TITLE + MARGIN
        for row, (_, images) in enumerate(sheet.rows):
            for column, image in enumerate(images):
                tile(axes, image, column, row)
        bare(axes, COLUMNS, len(sheet.rows))
        axes.set_yticks(
            [row + 0.5 for row in range(len(sheet.rows))],
            [n.replace("_", "\n").replace(" ", "\n") for n, _ in sheet.rows],
        )
        axes.set_title(sheet.title)
    return figure
