"""Exact nearest code without the M x K matrix of distances.

Letters: M vectors, K codes, d their length; m and k the rows and codes of one chunk.

Scores ``|e|^2 - 2 z.e`` are compared in float32 first. Their rounding error is bounded (Higham, Accuracy and Stability
of Numerical Algorithms, Sec. 3.1); where the margin is below the bound, the codes within it are compared in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Relative error of one rounded input of a float32 matmul, by torch's fp32_precision setting; twice the unit roundoff,
# because tensor cores may truncate. "none" is the default and means IEEE.
_INPUT_ERROR = {"none": 0.0, "ieee": 0.0, "tf32": 2.0**-10, "bf16": 2.0**-7}
_CODES_AT_ONCE = 8192


class _Plan(NamedTuple):
    """Sizes of chunks that keep all temporaries within the memory that was allowed."""

    vectors: int  # rows of a chunk of scores
    codes: int  # columns of a chunk of scores
    rechecked: int  # rows of a chunk of scores whose near codes are listed
    pairs: int  # (vector, code) pairs compared in float64 at once


def _plan(num_vectors: int, num_codes: int, dim: int, memory_mb: int) -> _Plan:
    budget = memory_mb * 2**20
    row = 24 * dim  # bytes of one centred row and of what it is made from
    codes = max(1, min(num_codes, _CODES_AT_ONCE, budget // 8 // row))
    vectors = max(1, min(num_vectors, budget // 8 // row, budget // 2 // (4 * codes)))
    # 40 bytes a score: its float32, a mask, two int64 of nonzero() and what it sorts them from
    rechecked = max(1, min(vectors, budget // 2 // (40 * codes)))
    return _Plan(vectors, codes, rechecked, max(1, budget // 4 // (40 * dim)))


@torch.no_grad()
def nearest_code(vectors: Tensor, codebook: Tensor, *, memory_mb: int = 256) -> Tensor:
    """Index of the nearest code in squared Euclidean distance, the lowest of equally near ones.

    Equal to an arg-min over distances summed in float64, on CPU and GPU and under any matmul precision. No gradient.

    Args:
        vectors: (M, d), any floating dtype.
        codebook: (K, d), any floating dtype.
        memory_mb: bound in MiB on temporaries, whatever M and K are; not counted are a few numbers for each vector and
            code. (One row of each kind is always held, so d and memory_mb must not be absurd.)

    Returns:
        (M,) int64 in [0, K). A vector that is not finite gets 0, and so do all where the codebook is not finite: who
        trains must look at the losses.

    Raises:
        ValueError: shapes do not fit together, or there is no code.
    """
    if vectors.ndim != 2 or codebook.ndim != 2 or vectors.shape[1] != codebook.shape[1] or not len(codebook):
        raise ValueError(f"nearest_code: vectors {tuple(vectors.shape)} do not fit a codebook {tuple(codebook.shape)}")
    plan = _plan(len(vectors), len(codebook), vectors.shape[1], memory_mb)
    ids = torch.zeros(len(vectors), dtype=torch.int64, device=vectors.device)
    # autocast would turn the scores into bf16
    with torch.autocast(vectors.device.type, enabled=False):
        codes = _Codes(codebook, plan)
        if not codes.finite:
            return ids
        for start in range(0, len(vectors), plan.vectors):
            rows = slice(start, start + plan.vectors)
            ids[rows] = _nearest(vectors[rows], codes, plan)
    return ids


class _Codes:
    """The codebook in centred float32 chunks: a shared offset would cost the scores their digits."""

    def __init__(self, codebook: Tensor, plan: _Plan) -> None:
        self.raw, self.size = codebook, plan.codes
        parts = codebook.split(plan.codes)
        centre = torch.stack([p.float().sum(0) for p in parts]).sum(0) / len(codebook)  # (d,)
        self.centre = torch.where(centre.isfinite(), centre, 0.0)  # any point will do where the mean overflows
        self.norms = torch.cat([self.centred(p).square().sum(1, dtype=torch.float64) for p in parts])  # (K,)
        self.longest = self.norms.max().sqrt()
        self.finite = all(bool(p.isfinite().all()) for p in parts)

    def centred(self, values: Tensor) -> Tensor:
        """(n, d) minus the codebook's mean, in float32."""
        return (values.to(torch.promote_types(values.dtype, torch.float32)) - self.centre).float()

    def chunks(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Index of the first code, centred codes (k, d), their squared norms (k,)."""
        for start in range(0, len(self.raw), self.size):
            part = slice(start, start + self.size)
            yield start, self.centred(self.raw[part]), self.norms[part].float()


def _nearest(vectors: Tensor, codes: _Codes, plan: _Plan) -> Tensor:
    """(m, d) -> (m,) int64: float32 scores for all, float64 where they leave a doubt."""
    z = codes.centred(vectors)  # (m, d)
    bound = _error_bound(z, codes)  # (m,)
    best = z.new_full((len(z),), torch.inf)  # (m,)
    ids = torch.zeros(len(z), dtype=torch.int64, device=z.device)
    doubt = torch.zeros(len(z), dtype=torch.bool, device=z.device)
    for start, e, norms in codes.chunks():
        scores = torch.addmm(norms, z, e.T, alpha=-2)  # (m, k)
        first, index = scores.min(1)  # (m,)
        second = scores.scatter_(1, index[:, None], torch.inf).amin(1)  # (m,)
        # `not >` instead of `<=`: an overflow to inf or nan is a doubt too
        near = ~(second > first + bound)
        doubt = torch.where(best > first + bound, near, doubt | ~(first > best + bound))
        ids = torch.where(first < best, index + start, ids)
        best = torch.fmin(best, first)
        del scores
    doubt |= ~best.isfinite()
    finite = vectors.isfinite().all(1)  # (m,)
    ids = torch.where(finite, ids, 0)
    doubtful = (doubt & finite).nonzero().squeeze(1)
    for rows in doubtful.split(plan.rechecked):
        ids[rows] = _recheck(vectors[rows], z[rows], (best + bound)[rows], codes, plan)
    return ids


def _error_bound(z: Tensor, codes: _Codes) -> Tensor:
    """(m, d) -> (m,): how far apart two computed scores may be while their true order is open.

    A score is a sum of d products, each rounded, plus a squared norm: its error is below a(2|z||e| + |e|^2) with a of
    about (d + 4) unit roundoffs. Twice that for the rounding of the centring, and twice again for two scores.
    """
    backend: Any = torch.backends.cuda if z.is_cuda else torch.backends.mkldnn
    unit = torch.finfo(torch.float32).eps / 2
    relative = 4 * ((z.shape[1] + 8) * unit + 2 * _INPUT_ERROR[backend.matmul.fp32_precision])
    longest, length = codes.longest, z.double().norm(dim=1)  # (), (m,)
    # numbers that underflow lose up to the smallest normal one, relative errors notwithstanding
    underflow = 8 * z.shape[1] * torch.finfo(torch.float32).tiny * (1 + longest + length)
    bound: Tensor = relative * longest * (2 * length + longest) + underflow  # (m,)
    return bound.float()


def _recheck(vectors: Tensor, z: Tensor, limit: Tensor, codes: _Codes, plan: _Plan) -> Tensor:
    """Compare in float64 all codes whose score is within the limit: (m, d), (m, d), (m,) -> (m,) int64."""
    best = torch.full((len(z),), torch.inf, dtype=torch.float64, device=z.device)
    ids = torch.zeros(len(z), dtype=torch.int64, device=z.device)
    for start, e, norms in codes.chunks():
        scores = torch.addmm(norms, z, e.T, alpha=-2)  # (m, k)
        near = (~(scores > limit[:, None])).nonzero()  # (p, 2), by row and then by code
        del scores
        for rows, columns in (part.T for part in near.split(plan.pairs)):
            index = columns + start
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
