"""The order in which training reads rows that were written once: by position of the endless stream, whoever asks."""

from __future__ import annotations

import numpy as np

from vqbench.seeds import numpy_rng


class Shuffled:
    """Example g of the stream is row ``perm(epoch)[g mod count]``, each epoch in an order of its own."""

    def __init__(self, seed: int, count: int) -> None:
        self.seed, self.count = seed, count
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    def rows(self, start: int, count: int) -> np.ndarray:
        """Rows of examples ``start .. start + count``, (count,) int64."""
        return np.array([self._row(g) for g in range(start, start + count)], dtype=np.int64)

    def _row(self, position: int) -> int:
        epoch, place = divmod(position, self.count)
        if self._order[0] != epoch:
            self._order = (epoch, numpy_rng(self.seed, "epoch", epoch).permutation(self.count))
        return int(self._order[1][place])
