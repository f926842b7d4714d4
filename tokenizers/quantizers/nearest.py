"""Exact nearest code without the M x K matrix of distances.

Letters: M vectors, K codes, d their length; m and k the rows and codes of one block, g the codes of a group.

Scores ``|e|^2 - 2 z.e`` are compared in float32 first, block by block while they are in cache: the product carries the norm
as one more dimension, and the lowest and second lowest of a row come from the minima of groups of codes. The rounding
error of scores is bounded (Higham, Accuracy and Stability of Numerical Algorithms, Sec. 3.1); where the margin is below the
bound, the codes within it are compared in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Relative error of one rounded input of a float32 matmul, by torch's fp32_precision setting; twice the unit roundoff,
# because tensor cores may truncate. "none" is the default and means IEEE.
_INPUT_ERROR = {"none": 0.0, "ieee": 0.0, "tf32": 2.0**-10, "bf16": 2.0**-7}
_CODES_AT_ONCE = 16384  # codes that are centred together
_BLOCK = 2048  # codes of one block of scores
_VECTORS = 1024  # rows of one block on a CPU: 8 MiB of scores, which a cache holds
_GROUP = 128
_LINE = 16  # float32 of a cache line
_SAFE = 1e38  # a third of float32's largest number
_MEMORY_MB = {"cpu": 80, "cuda": 512}  # larger blocks keep a GPU busy


class _Plan(NamedTuple):
    """Sizes of chunks that keep all temporaries within the memory that was allowed."""

    vectors: int  # rows of a block of scores
    codes: int  # codes that are centred together
    block: int  # columns of a block of scores, a multiple of `group`
    group: int
    rechecked: int  # rows of a block of scores whose near codes are listed
    pairs: int  # (vector, code) pairs compared in float64 at once


def _plan(num_vectors: int, num_codes: int, dim: int, memory_mb: int, most: int) -> _Plan:
    budget = memory_mb * 2**20
    row = 24 * _stride(dim + 1)  # bytes of one centred row and of what it is made from
    codes = max(1, min(num_codes, _CODES_AT_ONCE, budget // 4 // row * 2))
    group = min(_GROUP, 1 << (codes.bit_length() // 2))  # few codes: about as many groups as codes in one
    block = -(-min(codes, _BLOCK) // group) * group
    vectors = max(1, min(num_vectors, most, budget // 8 // row, budget // 3 // (4 * block)))
    # 40 bytes a score: its float32, a mask, two int64 of nonzero() and what it sorts them from
    rechecked = max(1, min(vectors, budget // 4 // (40 * block)))
    return _Plan(vectors, codes, block, group, rechecked, max(1, budget // 4 // (40 * dim)))


def _stride(width: int) -> int:
    """Numbers from one row to the next: a row that begins within a cache line slows the product by a few percent."""
    return -(-width // _LINE) * _LINE


@torch.no_grad()
def nearest_code(vectors: Tensor, codebook: Tensor, *, memory_mb: int | None = None) -> Tensor:
    """Index of the nearest code in squared Euclidean distance, the lowest of equally near ones.

    Equal to an arg-min over distances summed in float64, on CPU and GPU and under any matmul precision. No gradient.

    Args:
        vectors: (M, d), any floating dtype.
        codebook: (K, d), any floating dtype.
        memory_mb: bound in MiB on temporaries, whatever M and K are (80 on a CPU, 512 on a GPU); not counted are a few
            numbers for each vector and code. (One row of each kind is always held, so d and memory_mb must not be absurd.)

    Returns:
        (M,) int64 in [0, K). A vector that is not finite gets 0, and so do all where the codebook is not finite: who
        trains must look at the losses.

    Raises:
        ValueError: shapes do not fit together, or there is no code.
    """
    if vectors.ndim != 2 or codebook.ndim != 2 or vectors.shape[1] != codebook.shape[1] or not len(codebook):
        raise ValueError(f"nearest_code: vectors {tuple(vectors.shape)} do not fit a codebook {tuple(codebook.shape)}")
    kind = "cpu" if vectors.device.type == "cpu" else "cuda"
    memory_mb = _MEMORY_MB[kind] if memory_mb is None else memory_mb
    most = _VECTORS if kind == "cpu" else len(vectors)
    plan = _plan(len(vectors), len(codebook), vectors.shape[1], memory_mb, most)
    # autocast would turn the scores into bf16
    with torch.autocast(vectors.device.type, enabled=False):
        codes = _Codes(codebook, plan)
        if not codes.finite or not len(vectors):
            return torch.zeros(len(vectors), dtype=torch.int64, device=vectors.device)
        found = _Found.empty(len(vectors), vectors.device)
        for start, prepared in codes.prepared():
            _sweep(vectors, codes, prepared, start, found, plan)
        return _settle(vectors, codes, found, plan)


class _Codes:
    """The codebook in centred float32 chunks: a shared offset would cost the scores their digits."""

    def __init__(self, codebook: Tensor, plan: _Plan) -> None:
        self.raw, self.plan = codebook, plan
        parts = codebook.split(plan.codes)
        centre = torch.stack([p.float().sum(0) for p in parts]).sum(0) / len(codebook)  # (d,)
        self.centre = torch.where(centre.isfinite(), centre, 0.0)  # any point will do where the mean overflows
        self.norms = self.centre.new_empty(len(codebook), dtype=torch.float64)  # (K,)
        # one room for all: between large pieces of memory that come and go, the small ones that stay would leave gaps
        room = self.centre.new_empty(parts[0].shape)
        for part, norms in zip(parts, self.norms.split(plan.codes), strict=True):
            torch.sum(self.centred(part, out=room[: len(part)]).square_(), 1, dtype=torch.float64, out=norms)
        self.longest = self.norms.max().sqrt()
        self.finite = all(bool(p.isfinite().all()) for p in parts)

    def centred(self, values: Tensor, out: Tensor | None = None) -> Tensor:
        """(n, d) minus the codebook's mean, in float32."""
        if values.dtype == torch.float32:
            return torch.sub(values, self.centre, out=out)
        found = (values.to(torch.promote_types(values.dtype, torch.float32)) - self.centre).float()
        return found if out is None else out.copy_(found)

    def prepared(self) -> Iterator[tuple[int, Tensor]]:
        """Index of the first code, and codes (k, d + 1) float32: -2 e and |e|^2.

        Filled up to whole groups by codes that are infinitely far.
        """
        count, dim = self.raw.shape
        for start in range(0, count, self.plan.codes):
            raw = self.raw[start : start + self.plan.codes]
            out = self.centre.new_zeros(len(raw) + -len(raw) % self.plan.group, _stride(dim + 1))[:, : dim + 1]
            self.centred(raw, out=out[: len(raw), :dim]).mul_(-2)
            out[: len(raw), dim] = self.norms[start : start + self.plan.codes]
            out[len(raw) :, dim] = torch.inf
            yield start, out


class _Found(NamedTuple):
    """What is known of each vector so far, (M,) each."""

    ids: Tensor  # of the lowest score
    best: Tensor  # the lowest score
    second: Tensor  # the lowest but for that one
    lengths: Tensor  # of the centred vectors, float64: a float32 square could underflow

    @classmethod
    def empty(cls, count: int, device: torch.device) -> _Found:
        """Nothing."""
        far = torch.full((count,), torch.inf, device=device)
        ids = torch.zeros(count, dtype=torch.int64, device=device)
        return cls(ids, far, far.clone(), torch.zeros(count, dtype=torch.float64, device=device))


def _sweep(vectors: Tensor, codes: _Codes, prepared: Tensor, start: int, found: _Found, plan: _Plan) -> None:
    """Let the codes ``start ...`` compete: all scores once, each block of them while it is in cache."""
    # (m, d + 1), the last column multiplies the norms
    z = prepared.new_ones(plan.vectors, prepared.stride(0))[:, : prepared.shape[1]]
    room = prepared.new_empty(plan.vectors * plan.block)
    for left in range(0, len(vectors), plan.vectors):
        part = vectors[left : left + plan.vectors]
        rows, width = slice(left, left + len(part)), len(part)
        centred = codes.centred(part, out=z[:width, :-1])
        if not start:
            found.lengths[rows] = torch.linalg.vector_norm(centred, dim=1, dtype=torch.float64)
        for first in range(0, len(prepared), plan.block):
            block = prepared[first : first + plan.block]  # (k, d + 1)
            scores = torch.mm(z[:width], block.T, out=room[: width * len(block)].view(width, len(block)))
            _merge(found, rows, *_lowest_two(scores, plan.group), start + first)


def _lowest_two(scores: Tensor, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """(m, k) -> the lowest score, the lowest but for it, and the place of the lowest, (m,) each."""
    tiles = scores.view(len(scores), -1, group)  # (m, k / g, g)
    minima = tiles.amin(2)  # (m, k / g)
    place = minima.argmin(1)  # (m,)
    row = torch.arange(len(scores), device=scores.device) * tiles.shape[1]
    members = tiles.view(-1, group).index_select(0, place + row)  # (m, g)
    first, inner = members.min(1, keepdim=True)  # (m, 1)
    others = minima.scatter_(1, place[:, None], torch.inf).amin(1)
    second = torch.minimum(others, members.scatter_(1, inner, torch.inf).amin(1))
    return first[:, 0], second, place * group + inner[:, 0]


def _merge(found: _Found, rows: slice, first: Tensor, second: Tensor, index: Tensor, start: int) -> None:
    """Let a block's best compete with those found so far. A score that is not a number stays one, and is a doubt."""
    ids, best, next_best = found.ids[rows], found.best[rows], found.second[rows]
    torch.minimum(next_best, torch.minimum(torch.maximum(best, first), second), out=next_best)
    torch.where(first < best, index + start, ids, out=ids)
    torch.minimum(best, first, out=best)


def _settle(vectors: Tensor, codes: _Codes, found: _Found, plan: _Plan) -> Tensor:
    """(M,) int64: the ids found, compared again in float64 where the scores leave a doubt."""
    bound = _error_bound(found.lengths, codes.longest, vectors.shape[1])  # (M,)
    # `not >` instead of `<=`: an overflow to inf or nan is a doubt too
    doubtful = (~(found.second > found.best + bound)).nonzero().squeeze(1)
    for rows in doubtful.split(plan.rechecked):
        part = vectors[rows]
        finite = part.isfinite().all(1)
        found.ids[rows[~finite]] = 0
        rows, part = rows[finite], part[finite]
        if len(rows):
            found.ids[rows] = _recheck(part, codes, (found.best + bound)[rows], plan)
    return found.ids


def _error_bound(lengths: Tensor, longest: Tensor, dim: int) -> Tensor:
    """Lengths (M,) -> (M,): how far apart two computed scores may be while their true order is open.

    A score is a sum of d products and a squared norm, each rounded: its error is below a(2|z||e| + |e|^2) with a of
    about (d + 5) unit roundoffs. Twice that for the rounding of the centring, and twice again for two scores.
    """
    backend: Any = torch.backends.cuda if lengths.is_cuda else torch.backends.mkldnn
    unit = torch.finfo(torch.float32).eps / 2
    relative = 4 * ((dim + 9) * unit + 2 * _INPUT_ERROR[backend.matmul.fp32_precision])
    # numbers that underflow lose up to the smallest normal one, relative errors notwithstanding
    underflow = 8 * (dim + 1) * torch.finfo(torch.float32).tiny * (1 + longest + lengths)
    size = longest * (2 * lengths + longest)  # (M,), no score and no part of its sum is larger
    # where a part may overflow, one code's -inf or inf says nothing of the others: all are compared again
    return torch.where(size < _SAFE, relative * size + underflow, torch.inf).float()


def _recheck(vectors: Tensor, codes: _Codes, limit: Tensor, plan: _Plan) -> Tensor:
    """Compare in float64 all codes whose score is within the limit: (m, d), (m,) -> (m,) int64."""
    best = torch.full((len(vectors),), torch.inf, dtype=torch.float64, device=vectors.device)
    ids = torch.zeros(len(vectors), dtype=torch.int64, device=vectors.device)
    z = torch.nn.functional.pad(codes.centred(vectors), (0, 1), value=1.0)  # (m, d + 1)
    for start, prepared in codes.prepared():
        for first in range(0, len(prepared), plan.block):
            block = prepared[first : min(first + plan.block, len(codes.raw) - start)]  # without those infinitely far
            near = (~(torch.mm(z, block.T) > limit[:, None])).nonzero()  # (p, 2), by row and then by code
            for rows, columns in (part.T for part in near.split(plan.pairs)):
                index = columns + (start + first)
                gap = vectors[rows].double() - codes.raw[index].double()  # (p, d)
                best, ids = _improve(best, ids, rows, index, gap.square_().sum(1))
    return ids


def _improve(best: Tensor, ids: Tensor, rows: Tensor, index: Tensor, distance: Tensor) -> tuple[Tensor, Tensor]:
    """Let pairs (p,) compete with the best so far (m,). Codes come in ascending order, so a later tie never wins."""
    lowest = best.scatter_reduce(0, rows, distance, "amin")  # (m,)
    wins = (distance == lowest[rows]) & (distance < best[rows])  # (p,)
    none = torch.iinfo(torch.int64).max
    found = torch.full_like(ids, none).scatter_reduce(0, rows[wins], index[wins], "amin")  # (m,)
    return lowest, torch.where(found == none, ids, found)
