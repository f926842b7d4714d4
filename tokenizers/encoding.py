"""Step ``tokens``: the ids of one split, and latents for linear probing, written once per tokenizer and data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from vqbench import distributed
from vqbench.artifacts import write_atomic, write_npy
from vqbench.data import Images, open_images, to_float
from vqbench.jobs import Job
from vqbench.progress import Progress
from vqbench.specs import EncodedSpec
from vqbench.tokenizers.base import Tokenizer, open_tokenizer
from vqbench.training import device

NAMES = ("ids", "features_before", "features_after")

# Latents (B, C, h, w) of a tokenizer -> the arrays that are kept of them, each with B rows
Kept = Callable[[Tokenizer, Tensor], tuple[Tensor, ...]]
# The same of images (B, 3, H, W)
Made = Callable[[Tensor], tuple[Tensor, ...]]


def run(job: Job) -> dict[str, Any]:
    """Write ``ids.npy`` int32 (n * views, N, Q), ``labels.npy`` int64, and float32 features before and after quantization.

    View v of image i is row ``v * n + i``; view 0 is the evaluation crop, view 1 its mirror image. Features are the
    latents' spatial means, (n * views, C), or with ``pooling: flat`` all of them, (n * views, C * h * w).
    """
    pooling = job.spec.pooling

    def kept(tokenizer: Tokenizer, latents: Tensor) -> tuple[Tensor, ...]:
        quantized = tokenizer.quantize(latents)
        return quantized.ids.int(), pooled(latents, pooling), pooled(quantized.latents, pooling)

    facts = encode(job, NAMES, kept)
    return facts and facts | {"codes": job.bench.tokenizers[job.spec.tokenizer].tokens.num_codes, "pooling": pooling}


def encode(job: Job, names: tuple[str, ...], kept: Kept) -> dict[str, Any]:
    """Write what is `kept` of all views of a split, as ``<name>.npy``, and their labels."""
    spec: EncodedSpec = job.spec
    torch.set_num_threads(spec.threads)
    dataset = job.bench.datasets[spec.dataset]
    images = open_images(dataset, spec.split, job.upstream("dataset", spec.dataset))
    tokenizer_spec = job.bench.tokenizers[spec.tokenizer]
    tokenizer = open_tokenizer(tokenizer_spec, job.upstream("tokenizer", spec.tokenizer), device())
    facts = write_split(job, names, images, lambda batch: kept(tokenizer, tokenizer.encode(batch)), views=spec.views)
    return facts and facts | {"views": spec.views}


def write_split(
    job: Job, names: tuple[str, ...], images: Images, make: Made, views: int = 1, rows: int = 1
) -> dict[str, Any]:
    """Write what `make` gives of all views of `images`, `rows` rows an image, as ``<name>.npy``, and their labels.

    In batches of ``job.spec.batch``, of which one is in memory. In several processes each does a share and the first
    writes; the others get no facts.
    """
    size = job.spec.batch
    places = [(view, start) for view in range(views) for start in range(0, len(images), size)]
    share = distributed.share(places)
    mine, count = _made(make, images, size, share, job.key[1]), _count(share, len(images), size)
    if distributed.rank():
        _write_together(_shared(job, distributed.rank()), names, count * rows, mine)
        distributed.gathered(None)
        return {}
    _write_together(job.store, names, len(images) * views * rows, _with_others(job, names, mine))
    write_npy(job.store / "labels.npy", np.tile(images.labels, views))
    return {"images": len(images)}


@torch.no_grad()
def _made(
    make: Made, images: Images, size: int, places: Sequence[tuple[int, int]], title: str
) -> Iterator[tuple[np.ndarray, ...]]:
    """Batches of the arrays, each of a view and from an image on."""
    progress = Progress(_count(places, len(images), size), title, "img")
    for view, start in places:
        pixels = images.batch(start, size)
        batch = to_float(pixels[:, :, ::-1] if view % 2 else pixels).to(device())
        yield tuple(t.cpu().numpy() for t in make(batch))
        progress.update(len(batch))


def _count(places: Sequence[tuple[int, int]], images: int, batch: int) -> int:
    """How many images those batches hold."""
    return sum(min(batch, images - start) for _, start in places)


def _with_others(
    job: Job, names: tuple[str, ...], mine: Iterator[tuple[np.ndarray, ...]]
) -> Iterator[tuple[np.ndarray, ...]]:
    """This process' batches, then those of the others in order, which wait in the job's state."""
    yield from mine
    distributed.gathered(None)  # all are written
    for number in range(1, distributed.world()):
        folder = _shared(job, number)
        yield from zip(*(_mapped(folder / f"{name}.npy") for name in names), strict=True)


def _shared(job: Job, number: int) -> Path:
    folder = job.state / f"share-{number}-of-{distributed.world()}"
    folder.mkdir(exist_ok=True)
    return folder


def _mapped(path: Path, rows: int = 1024) -> Iterator[np.ndarray]:
    found = np.load(path, mmap_mode="r")
    return (found[start : start + rows] for start in range(0, len(found), rows))


def pooled(latents: Tensor, pooling: str) -> Tensor:
    """(B, C, h, w) -> (B, C), the mean of all positions, or "flat" (B, C * h * w)."""
    return latents.flatten(1) if pooling == "flat" else latents.mean((2, 3))


def _write_together(
    folder: Path,
    names: tuple[str, ...],
    rows: int,
    parts: Iterator[tuple[np.ndarray, ...]],
    files: tuple[IO[bytes], ...] = (),
) -> None:
    """Stream the arrays into their files, one batch in memory at a time: flat latents of ImageNet are 10 GB."""
    if len(files) < len(names):
        path = folder / f"{names[len(files)]}.npy"
        write_atomic(path, lambda file: _write_together(folder, names, rows, parts, (*files, file)))
        return
    for number, arrays in enumerate(parts):
        for file, array in zip(files, arrays, strict=True):
            if number == 0:
                header = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False,
                          "shape": (rows, *array.shape[1:])}  # fmt: skip
                np.lib.format.write_array_header_1_0(file, header)
            file.write(np.ascontiguousarray(array).data)
