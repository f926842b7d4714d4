"""k-nearest-neighbour balls around features, exactly: the counts are those of brute force in float64.

Products of float32 blocks rule out all pairs but few; those whose distance lies within the rounding error of a ball's
radius are computed again from the original features, in float64. Equal images are looked at once, so that a collapsed
mode costs nothing. Memory is a few blocks, whatever the number of images.

Letters: n, m images of two sets, d feature length, k neighbours, P pairs. "Half": half a squared distance.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

ROWS, COLUMNS = 1024, 4096  # of a block: wide enough for the product's full speed, 16 MB
UNIT = 2.0**-24  # rounding unit of float32
CROWD = 64  # candidates of an image beyond which float32 cannot tell its neighbours apart


class Counts(NamedTuple):
    """Memberships between n generated and m reference images.

    Attributes:
        precise: generated images inside a reference ball.
        recalled: reference images inside a generated ball.
        inside: pairs of a generated image and a reference ball around it.
        covered: reference balls that hold a generated image.
        per_image: (n,) int64, reference balls around each generated image.
    """

    precise: int
    recalled: int
    inside: int
    covered: int
    per_image: np.ndarray


def ball_counts(generated: np.ndarray, reference: np.ndarray, k: int, closed: bool, device: torch.device) -> Counts:
    """Who lies in whose ball of radius "distance to the k-th neighbour among the other images of its set".

    Args:
        generated: (n, d) float32, n > k; `reference`: (m, d) float32, m > k.
        closed: a point on the surface is inside (``<=``), or is not (``<``).
    """
    with full_precision():
        mine, theirs = Distinct(generated), Distinct(reference)
        balls = radii(mine, k, device), radii(theirs, k, device)
        blocks = Blocks(mine.rows, theirs.rows, device)
        around = np.zeros(len(mine.rows), np.int64)  # reference balls around each distinct generated image
        covered, recalled = np.zeros(len(theirs.rows), bool), np.zeros(len(theirs.rows), bool)
        for block in blocks:
            first, second = block.inside(balls[1], 1, closed)
            around += np.bincount(first, theirs.counts[second], len(around)).astype(np.int64)
            covered[second] = True
            recalled[block.inside(balls[0], 0, closed)[1]] = True
    per_image = around[mine.inverse]
    found = (theirs.counts[recalled].sum(), per_image.sum(), theirs.counts[covered].sum())
    return Counts(int((per_image > 0).sum()), *map(int, found), per_image)


class Distinct:
    """The distinct rows of a set.

    Attributes:
        rows: (u, d) the rows themselves where all are distinct.
        counts: (u,) int64, how often each occurs.
        inverse: (n,) int64, which of them each image is.
    """

    def __init__(self, features: np.ndarray) -> None:
        keys = np.array([hashlib.blake2b(row, digest_size=16).digest() for row in np.ascontiguousarray(features)])
        _, first, inverse, counts = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
        place = np.argsort(first)  # distinct rows stay in the order of the images
        rank = np.argsort(place)
        self.rows = features if len(first) == len(features) else features[first[place]]
        self.counts, self.inverse = counts[place].astype(np.int64), rank[inverse.ravel()]


class Block(NamedTuple):
    """A block of pairs with its halves, approximately.

    Attributes:
        rows, columns: which images of the two sets.
        halves: (A, B) float32.
        error: bounds of their errors by row (A,) and by column (B,), float32.
    """

    sets: tuple[np.ndarray, np.ndarray]
    rows: slice
    columns: slice
    halves: Tensor
    error: tuple[np.ndarray, np.ndarray]

    def within(self, limit: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pairs whose half is at most that of their row (`side` 0, limit (A,)) or column (1, (B,)).

        Returns:
            places in the block (P,) by row and by column, and the halves (P,) float32.
        """
        bound = torch.from_numpy(limit.astype(np.float32)).to(self.halves.device)
        mask = self.halves <= (bound if side else bound[:, None])
        # NumPy finds the few true ones several times faster than torch does.
        flat = np.flatnonzero(mask.numpy()) if mask.device.type == "cpu" else mask.flatten().nonzero()[:, 0].cpu().numpy()
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
        self.norms = [self._norms(a), self._norms(b)]  # half the squared norms, float64
        # A product of d float32 terms errs by at most d units of |a||b|; centring, norms and sums by a few more.
        self.relative = (a.shape[1] + 32) * UNIT
        self.buffer = torch.empty(min(ROWS, len(a)) * min(COLUMNS, len(b)), device=device)
        self.right = np.empty((min(COLUMNS, len(b)), b.shape[1]), np.float32)

    def _norms(self, rows: np.ndarray) -> np.ndarray:
        parts = (_half_norms(rows[i : i + ROWS] - self.centre) for i in range(0, len(rows), ROWS))
        return np.concatenate(list(parts))

    def __iter__(self) -> Iterator[Block]:
        """Blocks; the halves of one are overwritten by the next."""
        n, m = map(len, self.sets)
        for i in range(0, n, ROWS):
            rows = slice(i, min(i + ROWS, n))
            left = self._tensor(self.sets[0][rows] - self.centre)
            if self.upper:
                yield self._block(rows, rows, left)
            for j in range(rows.stop if self.upper else 0, m, COLUMNS):
                yield self._block(rows, slice(j, min(j + COLUMNS, m)), left)

    def _block(self, rows: slice, columns: slice, left: Tensor) -> Block:
        right = np.subtract(self.centre, self.sets[1][columns], out=self.right[: columns.stop - columns.start])
        norms = self.norms[0][rows], self.norms[1][columns]
        halves = self.buffer[: len(left) * len(right)].view(len(left), len(right))
        torch.mm(left, self._tensor(right).T, out=halves)
        halves.add_(self._tensor(norms[0])[:, None]).add_(self._tensor(norms[1]))
        error = self.relative * (norms[0] + norms[1].max()), self.relative * (norms[1] + norms[0].max())
        return Block(self.sets, rows, columns, halves, error)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array.astype(np.float32, copy=False)).to(self.device)


def radii(points: Distinct, k: int, device: torch.device) -> np.ndarray:
    """Squared distance of each distinct image to its k-th neighbour among the other images, (u,) float64, exact."""
    blocks = Blocks(points.rows, points.rows, device, upper=True)
    nearest = Nearest(len(points.rows), k + 1)
    for block in blocks:
        nearest.see(block, 0)
        if block.rows != block.columns:
            nearest.see(block, 1)
    first, second = nearest.candidates()
    exact = exact_squared(points.rows, points.rows, first, second)
    found = _ranked(first, exact, points.counts[second], k, len(points.rows))
    everyone = np.arange(len(points.rows))
    for row in np.flatnonzero(nearest.crowded):
        exact = exact_squared(points.rows, points.rows, np.full(len(everyone), row), everyone)
        found[row] = _ranked(np.zeros_like(everyone), exact, points.counts, k, 1)[0]
    return found


def _ranked(group: np.ndarray, value: np.ndarray, counts: np.ndarray, k: int, groups: int) -> np.ndarray:
    """The value of rank k (from 0) in each group, where each value stands for `counts` images; 0 for a group of none."""
    order = np.lexsort((value, group))
    group, total = group[order], np.cumsum(counts[order])
    start = np.searchsorted(group, np.arange(groups))
    before = np.concatenate([[0], total])[start]
    place = np.searchsorted(total, before + k + 1)
    held = np.bincount(group, minlength=groups) > 0
    found = np.zeros(groups)
    found[held] = value[order][place[held]]
    return found


class Nearest:
    """Candidates for the `wanted` nearest of every image of a set, itself among them, as blocks of pairs are seen.

    Attributes:
        crowded: (n,) bool, images with too many candidates to keep: float32 cannot tell them apart.
    """

    def __init__(self, count: int, wanted: int) -> None:
        self.best = np.full((count, wanted), np.inf, np.float32)  # the smallest halves so far, sorted
        self.slack = np.zeros(count, np.float32)
        self.crowded = np.zeros(count, dtype=bool)
        self.found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self.held = 0

    def see(self, block: Block, side: int) -> None:
        """Take the near ones of a block for the images of its rows (`side` 0) or columns (1)."""
        mine, others = (block.columns, block.rows) if side else (block.rows, block.columns)
        self.slack[mine] = np.maximum(self.slack[mine], 2 * block.error[side])
        limit = self._limit(np.arange(mine.start, mine.stop))
        if np.isposinf(limit).any():
            limit = np.minimum(limit, _sample(block.halves.T if side else block.halves, self.best.shape[1]) + self.slack[mine])
        *places, value = block.within(limit, side)
        self._take(places[side] + mine.start, places[1 - side] + others.start, value)

    def _limit(self, rows: np.ndarray) -> np.ndarray:
        """What is farther cannot be among the nearest, whatever the errors of both."""
        return np.where(self.crowded[rows], -np.inf, self.best[rows, -1] + self.slack[rows])

    def _take(self, mine: np.ndarray, others: np.ndarray, value: np.ndarray) -> None:
        order = np.lexsort((value, mine))
        rows, start, size = np.unique(mine[order], return_index=True, return_counts=True)
        rank = np.arange(len(order)) - np.repeat(start, size)
        best = rank < self.best.shape[1]
        fresh = np.full((len(rows), self.best.shape[1]), np.inf, np.float32)
        fresh[np.repeat(np.arange(len(rows)), size)[best], rank[best]] = value[order][best]
        self.best[rows] = np.sort(np.concatenate([self.best[rows], fresh], 1), 1)[:, : self.best.shape[1]]
        self.found.append((mine, others, value))
        self.held += len(mine)
        if self.held > CROWD * len(self.best):
            self._thin()

    def _thin(self) -> None:
        mine, others, value = (np.concatenate(part) for part in zip(*self.found, strict=True))
        kept = value <= self._limit(mine)
        held = np.bincount(mine[kept], minlength=len(self.best))
        self.crowded |= held > CROWD + 4 * self.best.shape[1]
        kept &= ~self.crowded[mine]
        self.found, self.held = [(mine[kept], others[kept], value[kept])], int(kept.sum())

    def candidates(self) -> tuple[np.ndarray, np.ndarray]:
        """Pairs (P,) of an image and one that may be among its nearest; none for the crowded."""
        self._thin()
        return self.found[0][:2]


def _sample(halves: Tensor, wanted: int) -> np.ndarray:
    """An upper bound of the `wanted`-th smallest of each row, from its first columns."""
    if halves.shape[1] < wanted:
        return np.full(len(halves), np.inf, np.float32)
    part = halves[:, : max(wanted, ROWS // 2)].contiguous()
    return np.asarray(part.topk(wanted, largest=False).values.amax(1).cpu().numpy())


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
