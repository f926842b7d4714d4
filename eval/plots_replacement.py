"""Figure kind ``nearest-replacement``: each token replaced by its M-th nearest code (VQGAN-LC, Fig. 5).

Nearest is as the tokenizer searches, by Euclidean distance or by cosine, from the token's own code, which is the first
(ours: the paper does not say from where).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vqbench.errors import SpecError
from vqbench.eval.base import Batch
from vqbench.eval.figure_inputs import figure_runs
from vqbench.eval.figure_style import MARKERS, bare, new_figure, place, tile
from vqbench.eval.plots_images import LABELS, MARGIN, spread, wrapped
from vqbench.eval.plots_usage import look
from vqbench.eval.protocols import read_protocol
from vqbench.eval.psnr import Psnr
from vqbench.jobs import finished
from vqbench.papers import Bench, Figure
from vqbench.papers import bench as bench_of

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from vqbench.tokenizers.base import Tokenizer

RANKS = (1, 50, 100, 1000)  # M, as printed
IMAGES = 64  # ours, behind a PSNR, evenly spread over the validation images; Sec. B: images of 100 random categories
SHOWN = 2
CODES_AT_ONCE, IMAGES_AT_ONCE = 256, 8
PLOT = 2.3  # inches


class Replaced(NamedTuple):
    """Originals uint8 (n, H, W, 3), and by tokenizer and M the PSNR in dB (on "rgb" or "y") and the first pictures."""

    space: str
    ranks: list[int]
    originals: np.ndarray
    psnr: dict[str, list[float]]
    pictures: dict[str, list[np.ndarray]]


def open_replaced(bench: Bench, figure: Figure, base: Path) -> Replaced:
    """Decode validation ids of each tokenizer with each token's M-th nearest code.

    Raises:
        SpecError: the tokenizers were trained on different data sets.
        ArtifactError, StaleSpec: an input is missing or out of date.
    """
    import numpy as np

    from vqbench.data import open_images
    from vqbench.tokenizers.base import open_tokenizer
    from vqbench.training import device

    runs = [run for _, run in figure_runs(bench, figure)]
    if len(datasets := sorted({bench.tokenizers[run].dataset for run in runs})) != 1:
        raise SpecError(f"{figure.paper}.yaml: figure '{figure.id}' mixes data sets: {', '.join(datasets)}; show one")
    images = open_images(bench.datasets[datasets[0]], "validation", finished(bench, ("dataset", datasets[0]), base))
    chosen = spread(len(images), IMAGES)
    originals = np.concatenate([images.batch(i, 1) for i in chosen])
    found = Replaced(read_protocol(bench.protocol).psnr.space, ranks_of(bench, runs), originals, {}, {})
    for run in runs:
        tokens = finished(bench, ("tokens", f"{run}/{datasets[0]}/validation"), base)
        ids = np.load(tokens.file("ids.npy"), mmap_mode="r")[chosen]
        model = open_tokenizer(bench.tokenizers[run], finished(bench, ("tokenizer", run), base), device())
        made = [decoded(model, one) for one in replaced(ids, model.quantizer.compared(), found.ranks)]
        found.psnr[run] = [decibel(bench, found.originals, one) for one in made]
        found.pictures[run] = [one[:SHOWN] for one in made]
    return found


def ranks_of(bench: Bench, runs: list[str]) -> list[int]:
    """The M of a figure: as printed, or scaled with the codebook that this scale made smallest, each more than the last."""
    printed = bench_of("paper").tokenizers
    sizes = {run: bench.tokenizers[run].tokens.num_codes for run in runs}
    ratio = min(size / (printed[run].tokens.num_codes if run in printed else size) for run, size in sizes.items())
    found: list[int] = []
    for rank in RANKS:
        found.append(max(round(rank * min(1.0, ratio)), found[-1] + 1 if found else 1))
    return [rank for rank in found if rank <= min(sizes.values())]


def replaced(ids: np.ndarray, codebook: Tensor, ranks: list[int]) -> list[np.ndarray]:
    """For each M, ids (n, N, Q) with each id's M-th nearest code of (K, d), as they are compared, in its place."""
    import numpy as np
    import torch

    codebook = codebook.double()
    codebook = codebook - codebook.mean(0)  # cdist multiplies: far from the origin neighbours would be told by rounding
    distinct, places = np.unique(ids, return_inverse=True)
    columns = [rank - 1 for rank in ranks]
    tables = []
    for own in torch.from_numpy(distinct.astype(np.int64)).split(CODES_AT_ONCE):
        distances = torch.cdist(codebook[own.to(codebook.device)], codebook)  # (u, K)
        distances[torch.arange(len(own)), own] = -1.0  # itself is first, also where another code is equal
        near = distances.topk(max(ranks), largest=False).indices  # (u, M), nearest first
        tables.append(near[:, columns].cpu().numpy())
    table = np.concatenate(tables)  # (distinct ids, ranks)
    return [table[places.reshape(ids.shape), column] for column in range(len(ranks))]


def decoded(model: Tokenizer, ids: np.ndarray) -> np.ndarray:
    """ids (n, N, Q) -> uint8 (n, H, W, 3)."""
    import numpy as np
    import torch

    from vqbench.data import to_uint8

    place = next(model.parameters()).device
    with torch.inference_mode():
        parts = torch.from_numpy(ids.astype(np.int64)).split(IMAGES_AT_ONCE)
        return np.concatenate([to_uint8(model.decode_ids(part.to(place))) for part in parts])


def decibel(bench: Bench, originals: np.ndarray, images: np.ndarray) -> float:
    """PSNR under the scale's protocol, over all pairs."""
    import numpy as np

    metric = Psnr(read_protocol(bench.protocol).psnr)
    metric.update(Batch(np.arange(len(images)), images, originals))
    return metric.compute()["psnr"].value


def plot_replaced(data: Replaced) -> Any:
    """Above, PSNR against M; below, a row a tokenizer: each picture and what is left of it."""
    columns, rows = SHOWN * (1 + len(data.ranks)) + 0.3, len(data.psnr)
    width = new_figure(1.0).get_size_inches()[0] - LABELS - MARGIN
    unit = width / columns
    figure = new_figure(PLOT + 0.75 + rows * unit + MARGIN, layout=None)
    axes = place(figure, LABELS, 0.3, width, PLOT - 0.4)
    for i, (run, values) in enumerate(data.psnr.items()):
        axes.plot(range(len(values)), values, marker=MARKERS[i % len(MARKERS)], label=run, **look(i))
    axes.set(
        ylabel=f"PSNR on {data.space.upper()} (dB), {len(data.originals)} images",
        xlabel="each token replaced by its M-th nearest code: M",
    )
    axes.set_xticks(range(len(data.ranks)), [str(rank) for rank in data.ranks])
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4)
    sheet = place(figure, LABELS, PLOT + 0.7, columns * unit, rows * unit)
    for row, pictures in enumerate(data.pictures.values()):
        for number in range(min(SHOWN, len(data.originals))):
            left = number * (1.3 + len(data.ranks))
            for column, picture in enumerate((data.originals[number], *(made[number] for made in pictures))):
                tile(sheet, picture, left + column, row)
                if not row:
                    words = "original" if not column else f"M = {data.ranks[column - 1]}"
                    sheet.text(left + column + 0.5, -0.08, words, ha="center", va="bottom", fontsize=6)
    bare(sheet, columns, rows)
    sheet.set_yticks([row + 0.5 for row in range(rows)], [wrapped(run) for run in data.pictures])
    return figure
