"""k-nearest-neighbour balls around features, exactly: the counts are those of brute force in float64.

Products of float32 blocks rule out all pairs but few; those whose distance lies within the rounding error of a ball's
radius are computed again from the original features, in float64. Equal images are looked at once, so that a collapsed
mode costs nothing. Memory is a few blocks, whatever the number of images.

Letters: n generated, m reference images, u distinct ones, d feature length, k neighbours, P pairs.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vqbench.eval.distances import Block, Blocks, exact_squared, full_precision

SAMPLE = 512  # columns that give a first bound of an image's k-th distance
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
    return Counts(
        precise=int((per_image > 0).sum()),
        recalled=int(theirs.counts[recalled].sum()),
        inside=int(per_image.sum()),
        covered=int(theirs.counts[covered].sum()),
        per_image=per_image,
    )


class Distinct:
    """The distinct rows of a set.

    Attributes:
        rows: (u, d) the rows themselves where all are distinct.
        counts: (u,) int64, how often each occurs.
        inverse: (n,) int64, which of them each image is.
    """

    def __init__(self, features: np.ndarray) -> None:
        places: dict[bytes, int] = {}
        self.inverse = np.array([places.setdefault(key, len(places)) for key in _keys(features)])
        self.counts = np.bincount(self.inverse)
        first = np.unique(self.inverse, return_index=True)[1]
        self.rows = features if len(first) == len(features) else features[first]


def _keys(features: np.ndarray) -> list[bytes]:
    """Equal for equal rows alone: a row's beginning, or where that occurs twice the hash of all of it."""
    heads = [row.tobytes() for row in features[:, :16]]
    often = Counter(heads)
    return [
        hashlib.blake2b(row.tobytes(), digest_size=32).digest() if often[head] > 1 else head
        for head, row in zip(heads, features, strict=True)
    ]


def radii(points: Distinct, k: int, device: torch.device) -> np.ndarray:
    """Squared distance of each distinct image to its k-th neighbour among the other images, (u,) float64, exact."""
    blocks = Blocks(points.rows, points.rows, device, upper=True)
    nearest = Nearest(len(points.rows), k + 1)
    for block in blocks:
        nearest.see(block, 0)
        if block.rows != block.columns:
            nearest.see(block, 1)
    first, second = nearest.candidates()
    exact, apart = np.zeros(len(first)), first != second
    exact[apart] = exact_squared(points.rows, points.rows, first[apart], second[apart])
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
            limit = np.minimum(
                limit, _sample(block.halves.T if side else block.halves, self.best.shape[1]) + self.slack[mine]
            )
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
    part = halves[:, : max(wanted, SAMPLE)].contiguous()
    return np.asarray(part.topk(wanted, largest=False).values.amax(1).cpu().numpy())
