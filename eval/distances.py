"""Squared distances between two sets of features: approximately in float32 with a bound of the error, exactly in float64.

Letters: n, m images of two sets, d feature length, A x B a block of pairs, P pairs. "Half": half a squared distance.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

ROWS, COLUMNS = 1024, 4096  # of a block: wide enough for the product's full speed, 16 MB
UNIT = 2.0**-24  # rounding unit of float32


class Block(NamedTuple):
    """A block of pairs with its halves, approximately.

    Attributes:
        rows, columns: which images of the two sets.
        halves: (A, B) float32.
        mask: (A, B) bool, to write in.
        error: bounds of their errors by row (A,) and by column (B,), float64.
    """

    sets: tuple[np.ndarray, np.ndarray]
    rows: slice
    columns: slice
    halves: Tensor
    mask: Tensor
    error: tuple[np.ndarray, np.ndarray]

    def within(self, limit: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pairs whose half is at most that of their row (`side` 0, limit (A,)) or column (1, (B,)).

        Returns:
            places in the block (P,) by row and by column, and the halves (P,) float32.
        """
        bound = torch.from_numpy(limit.astype(np.float32)).to(self.halves.device)
        mask = torch.le(self.halves, bound if side else bound[:, None], out=self.mask).flatten()
        on_cpu = mask.device.type == "cpu"  # NumPy finds the few true ones several times faster than torch does
        flat = np.flatnonzero(mask.numpy()) if on_cpu else mask.nonzero()[:, 0].cpu().numpy()
        value = self.halves.flatten()[torch.from_numpy(flat).to(self.halves.device)].cpu().numpy()
        return *np.divmod(flat, self.halves.shape[1]), value

    def inside(self, radius: np.ndarray, side: int, closed: bool) -> tuple[np.ndarray, np.ndarray]:
        """Pairs inside the balls of their rows' or columns' images, decided exactly: images (P,) of both sets.

        Args:
            radius: squared radii of all images of that side, float64.
        """
        half, slack = radius[self.columns if side else self.rows] / 2, self.error[side]
        *places, value = self.within(half + slack, side)
        ball = places[side]
        first, second = places[0] + self.rows.start, places[1] + self.columns.start
        found = value < half[ball] - slack[ball]
        unsure = np.flatnonzero(~found)
        exact = exact_squared(*self.sets, first[unsure], second[unsure])
        limit = radius[(first, second)[side][unsure]]
        found[unsure] = exact <= limit if closed else exact < limit
        return first[found], second[found]


class Blocks:
    """Halves between two sets, block by block. Both are centred first: |a|^2 + |b|^2 - 2ab would cancel otherwise.

    Args:
        upper: of a set with itself, each unordered pair once: blocks of the diagonal, and those to their right.
    """

    def __init__(self, a: np.ndarray, b: np.ndarray, device: torch.device, upper: bool = False) -> None:
        self.sets, self.device, self.upper = (a, b), device, upper
        self.centre = _mean(b)
        mine = self._norms(b)  # half the squared norms, float64
        self.norms = mine if a is b else self._norms(a), mine
        # A product of d float32 terms errs by at most d units of |a||b|; centring, norms and sums by a few more.
        self.relative = (a.shape[1] + 32) * UNIT
        # Written again and again: blocks allocated anew would scatter over the heap and keep it from shrinking.
        self.step = ROWS if upper else 2 * ROWS  # on the diagonal, half of a block is for nothing
        height, width = min(self.step, len(a)), min(COLUMNS, len(b))
        self.left = np.empty((height, a.shape[1]), np.float32)
        self.right = np.empty((width, b.shape[1]), np.float32)
        self.halves = torch.empty(height * width, device=device)
        self.mask = torch.empty(height * width, dtype=torch.bool, device=device)

    def _norms(self, rows: np.ndarray) -> np.ndarray:
        parts = (_half_norms(rows[i : i + ROWS] - self.centre) for i in range(0, len(rows), ROWS))
        return np.concatenate(list(parts))

    def __iter__(self) -> Iterator[Block]:
        """Blocks; the halves of one are overwritten by the next."""
        n, m = map(len, self.sets)
        for i in range(0, n, self.step):
            rows = slice(i, min(i + self.step, n))
            left = self._tensor(np.subtract(self.sets[0][rows], self.centre, out=self.left[: rows.stop - i]))
            if self.upper:
                yield self._block(rows, rows, left)
            for j in range(rows.stop if self.upper else 0, m, COLUMNS):
                yield self._block(rows, slice(j, min(j + COLUMNS, m)), left)

    def _block(self, rows: slice, columns: slice, left: Tensor) -> Block:
        right = np.subtract(self.centre, self.sets[1][columns], out=self.right[: columns.stop - columns.start])
        norms = self.norms[0][rows], self.norms[1][columns]
        halves, mask = (x[: len(left) * len(right)].view(len(left), len(right)) for x in (self.halves, self.mask))
        torch.mm(left, self._tensor(right).T, out=halves)
        halves.add_(self._tensor(norms[0])[:, None]).add_(self._tensor(norms[1]))
        error = self.relative * (norms[0] + norms[1].max()), self.relative * (norms[1] + norms[0].max())
        return Block(self.sets, rows, columns, halves, mask, error)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array.astype(np.float32, copy=False)).to(self.device)


def exact_squared(a: np.ndarray, b: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Squared distances of pairs ``a[first], b[second]`` in float64, (P,)."""
    out = np.empty(len(first))
    step = max(1, (1 << 17) // max(1, a.shape[1]))  # a megabyte of differences stays in the cache
    for start in range(0, len(first), step):
        part = slice(start, start + step)
        gap = np.subtract(a[first[part]], b[second[part]], dtype=np.float64)
        out[part] = np.einsum("ij,ij->i", gap, gap)
    return out


def _half_norms(rows: np.ndarray) -> np.ndarray:
    return np.asarray(np.einsum("ij,ij->i", rows, rows, dtype=np.float64)) / 2


def _mean(rows: np.ndarray) -> np.ndarray:
    """(d,) float32: subtracted from both sets, so that its own rounding moves no distance."""
    total = np.zeros(rows.shape[1])
    for start in range(0, len(rows), ROWS):
        total += rows[start : start + ROWS].sum(0, dtype=np.float64)
    return np.asarray(total / len(rows), dtype=np.float32)


@contextmanager
def full_precision() -> Iterator[None]:
    """Products in whole float32: the bound of the error holds for no other."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
