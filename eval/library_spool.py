"""Decoded images in files: libraries go over a set more than once, and take images by their place.

Letters: n generated, m reference images, B images of a batch, H W pixels.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np

from vqbench.errors import DataError
from vqbench.eval.sources import Source, pairs


class Spool:
    """Images of one set in a file of uint8 (n, H, W, 3), mapped into memory.

    Attributes:
        images: (n, H, W, 3); empty before the first batch.

    Raises:
        DataError: images of several sizes, or no room for them.
    """

    def __init__(self, path: Path, count: int) -> None:
        self.path, self.count = path, count
        self.images = np.zeros((0, 0, 0, 3), np.uint8)

    def put(self, indices: np.ndarray, images: np.ndarray) -> None:
        """Add images (B, H, W, 3) at their places (B,)."""
        if not len(self.images):
            self.images = self._file((self.count, *images.shape[1:]))
        if images.shape[1:] != self.images.shape[1:]:
            raise DataError(
                f"the libraries take sets of one size, there are {self.images.shape[1:3]} and {images.shape[1:3]}; "
                "crop them, or take --engine vqbench"
            )
        self.images[indices] = images

    def _file(self, shape: tuple[int, ...]) -> np.ndarray:
        need, free = math.prod(shape), shutil.disk_usage(self.path.parent).free
        if need > free:  # a map into a full disk ends the process without a word
            raise DataError(
                f"{need >> 20} MiB of decoded images do not fit into {self.path.parent} ({free >> 20} MiB free); "
                "set TMPDIR to a larger disk, or take --engine vqbench"
            )
        return np.lib.format.open_memmap(self.path, "w+", np.uint8, shape)


def spool(
    generated: Source, reference: Source | None, paired: bool, batch: int, folder: Path
) -> tuple[np.ndarray, np.ndarray | None]:
    """Both sets, (n, H, W, 3) and (m, H, W, 3) uint8; pairs are at the same places."""
    mine = Spool(folder / "generated.npy", len(generated))
    if reference is None:
        _fill(mine, generated, batch)
        return mine.images, None
    theirs = Spool(folder / "reference.npy", len(reference))
    if paired:
        for indices, images, before in pairs(generated, reference, batch):
            mine.put(indices, images)
            theirs.put(indices, before)
    else:
        _fill(mine, generated, batch)
        _fill(theirs, reference, batch)
    return mine.images, theirs.images


def _fill(into: Spool, source: Source, batch: int) -> None:
    for indices, images in source.batches(batch):
        into.put(indices, images)
