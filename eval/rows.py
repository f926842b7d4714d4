"""Rows of features with their images' indices: as many as come, within a bound of memory.

Letters: B images of a batch, n images of a set, d feature length.
"""

from __future__ import annotations

import tempfile
import weakref
from typing import IO, Any

import numpy as np

from vqbench.errors import ArtifactError

SPILL = 256 << 20  # bytes of rows in memory; what is beyond goes to a temporary file
CHUNK = 4096  # rows moved at a time


class Rows:
    """Rows in the order in which they came, beyond :data:`SPILL` bytes in a temporary file that has no name on disk."""

    def __init__(self) -> None:
        self._indices: list[np.ndarray] = []
        self._parts: list[np.ndarray] = []
        self._bytes = 0  # of the parts in memory
        self._file: IO[bytes] | None = None
        self._written = 0  # rows in the file
        self._matrix: np.ndarray | None = None

    def __getstate__(self) -> dict[str, Any]:
        """For another process to merge: all rows, in memory."""
        rows = [np.array(self._arrived())] if self._indices else []
        return {**Rows().__dict__, "_indices": self._indices, "_parts": rows, "_bytes": sum(r.nbytes for r in rows)}

    def append(self, indices: np.ndarray, rows: np.ndarray) -> None:
        """Add rows (B, d) of images `indices` (B,); kept as float32."""
        if not len(indices):
            return
        self._matrix = None
        self._indices.append(np.array(indices, dtype=np.int64))
        self._parts.append(np.array(rows, dtype=np.float32, order="C"))
        self._bytes += self._parts[-1].nbytes
        if self._bytes > SPILL:
            self._spill()

    def _spill(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115
            weakref.finalize(self, self._file.close)  # what was mapped from it stays readable
        self._file.seek(0, 2)
        for part in self._parts:
            self._file.write(part.data)
            self._written += len(part)
        self._parts, self._bytes = [], 0

    def merge(self, other: Rows) -> None:
        """Add all that `other` holds."""
        if other._indices:
            order, rows = np.concatenate(other._indices), other._arrived()
            for start in range(0, len(order), CHUNK):
                self.append(order[start : start + CHUNK], rows[start : start + CHUNK])

    def _arrived(self) -> np.ndarray:
        """All rows in the order in which they came."""
        if self._file is None:
            self._parts = [np.concatenate(self._parts)]
            return self._parts[0]
        self._spill()
        self._file.flush()
        return np.memmap(self._file, np.float32, "r").reshape(self._written, -1)

    @property
    def indices(self) -> np.ndarray:
        """Sorted indices of the rows."""
        return np.sort(np.concatenate(self._indices)) if self._indices else np.zeros(0, np.int64)

    def matrix(self) -> np.ndarray:
        """All rows in the order of their indices, (n, d) float32, so that no result depends on how they came.

        Raises:
            ArtifactError: no row, or two for one image.
        """
        if not self._indices:
            raise ArtifactError("there are no features: no image was seen")
        if self._matrix is None:
            indices = np.concatenate(self._indices)
            order = np.argsort(indices, kind="stable")
            if (np.diff(indices[order]) == 0).any():
                raise ArtifactError("an image was counted twice; shards must not overlap")
            self._matrix = self._sorted(indices, order)
        return self._matrix

    def _sorted(self, indices: np.ndarray, order: np.ndarray) -> np.ndarray:
        found = self._arrived()
        if (np.diff(order) == 1).all():
            return found
        if self._file is None:  # the sorted rows take the place of those that came
            self._indices, self._parts = [indices[order]], [found[order]]
            return self._parts[0]
        with tempfile.TemporaryFile() as file:  # the map keeps the file open
            out = np.memmap(file, np.float32, "w+", shape=found.shape)
            for start in range(0, len(order), CHUNK):
                out[start : start + CHUNK] = found[order[start : start + CHUNK]]
        return out
