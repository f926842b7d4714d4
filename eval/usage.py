"""Codebook usage: how much of the codebook a set of images uses, and how evenly.

Letters: B images, N positions an image, Q slots a position, S scales, K codes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal, Self

import numpy as np
from scipy.special import entr

from vqbench.errors import ArtifactError, SpecError
from vqbench.eval.base import Batch, Estimate, Metric, check_alike
from vqbench.eval.intervals import GROUPS, SMALLEST, groups_of, jackknife
from vqbench.specs import TokenSpec

STATISTICS = {"usage": "%", "usage_above": "%", "entropy": "bits", "perplexity": "codes"}  # name -> unit


class Usage(Metric):
    """Usage, usage above a threshold, entropy and perplexity of the ids of a set of images.

    ``usage``: share of the K codes that occur at least once. It grows with the number of images: a value belongs to
    the set it was counted on (LlamaGen counts the last 65,536 training tokens of one process instead).
    ``usage_above``: share of codes that occur at least `threshold` times as often as a code of a uniform codebook.
    VAR counts so, scale by scale, with 0.08 (FoundationVision/VAR:models/quant.py), but over a moving average of
    training batches and with the finest scale's positions as the measure of every scale; here each part is measured
    by its own ids.
    ``entropy`` of the codes' frequencies, 0 to log2 K bits, and ``perplexity``, 2 to its power, 1 to K codes.

    All slots and scales are counted together under these names; with Q > 1 also apart (``usage[slot0]``), likewise
    with S > 1 scales (``usage[scale0]``).

    Args:
        codes: K, or the tokenizer's tokens.
        on: set of images; that of training images is named apart, ``usage_train``.
        threshold: of ``usage_above``, above 0.
        scales: sides of the S scales, coarsest first, where `codes` does not know them.

    Attributes:
        units: unit of every name returned.

    Raises:
        SpecError: the threshold is not above 0, or scales do not add up to the tokens.
    """

    unit = "%"
    higher_is_better = True
    interval = "delete-group jackknife over images, 10 groups by index; undefined below 20 images"
    not_finite = "cannot occur: ids are counted; NaN of no images"
    needs = frozenset({"ids"})

    def __init__(
        self,
        codes: TokenSpec | int,
        on: Literal["validation", "train", "generated"] = "validation",
        threshold: float = 0.08,
        scales: Sequence[int] = (),
    ) -> None:
        if not threshold > 0:
            raise SpecError(
                f"threshold of codebook usage is {threshold}; give one above 0 (1 is the uniform frequency)"
            )
        self.tokens = codes if isinstance(codes, TokenSpec) else None
        self.num_codes = codes.num_codes if isinstance(codes, TokenSpec) else codes
        self.suffix, self.threshold = "_train" if on == "train" else "", threshold
        self.images = np.zeros(GROUPS, np.int64)  # images of each group
        self.scale_of = _scales(self.tokens, scales)  # (N,), or empty: one scale
        slots = self.tokens.num_slots if self.tokens else 0  # 0: not known before the first batch
        self.counts = self._zeros(slots)  # (GROUPS, S, Q, K)

    def _zeros(self, slots: int) -> np.ndarray:
        scales = int(self.scale_of[-1]) + 1 if len(self.scale_of) else 1
        return np.zeros((GROUPS, scales, slots, self.num_codes), np.int64)

    @property
    def count(self) -> int:
        """Images added."""
        return int(self.images.sum())

    @property
    def units(self) -> dict[str, str]:
        """``{name: unit}`` of all that is returned."""
        return {name + self.suffix + part: unit for part, _ in self._parts() for name, unit in STATISTICS.items()}

    def update(self, batch: Batch) -> None:
        """Add ids (B, N, Q) in [0, K).

        Raises:
            ArtifactError: an id outside [0, K), or another shape: the ids belong to another tokenizer.
        """
        ids = batch.ids
        assert ids is not None, "usage needs ids"
        self._check(ids)
        if not self.counts.shape[2]:
            self.counts = self._zeros(ids.shape[2])
        groups = groups_of(batch.indices)  # (B,)
        self.images += np.bincount(groups, minlength=GROUPS)
        _, scales, slots, codes = self.counts.shape
        scale = self.scale_of if len(self.scale_of) else np.zeros(ids.shape[1], np.int64)
        place = (groups[:, None, None] * scales + scale[None, :, None]) * slots + np.arange(slots)  # (B, N, Q)
        np.add.at(
            self.counts.reshape(-1), (place * codes + ids.astype(np.int64)).reshape(-1), 1
        )  # uint64 would be a float

    def _check(self, ids: np.ndarray) -> None:
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < self.num_codes:
            raise ArtifactError(
                f"ids span {ids.min()}..{ids.max()}, outside a codebook of {self.num_codes}; tokenize again"
            )
        slots = self.counts.shape[2] or (ids.shape[2] if ids.ndim == 3 else 0)
        known = self.tokens.num_tokens if self.tokens else len(self.scale_of)
        positions = known or (ids.shape[1] if ids.ndim == 3 else "N")
        if ids.shape[1:] != (positions, slots):
            raise ArtifactError(f"ids are {ids.shape}, expected (images, {positions}, {slots or 'Q'}); tokenize again")

    def merge(self, other: Self) -> None:
        """Add the counts of a shard.

        Raises:
            SpecError: counted over another codebook, set or scales, by another threshold, or of other slots.
        """
        check_alike("usage", self._settings(), other._settings())
        if not other.count:
            return
        if not self.counts.shape[2]:
            self.counts = self._zeros(other.counts.shape[2])
        check_alike("usage", {"slots": self.counts.shape[2]}, {"slots": other.counts.shape[2]})
        self.counts += other.counts
        self.images += other.images

    def _settings(self) -> dict[str, object]:
        scales = np.bincount(self.scale_of).tolist()  # positions of each
        return {"codes": self.num_codes, "threshold": self.threshold, "name": f"usage{self.suffix}", "scales": scales}

    def compute(self) -> dict[str, Estimate]:
        """``{name: estimate}`` of the four statistics: of all ids, of each slot, of each scale."""
        found: dict[str, Estimate] = {}
        for part, counts in self._parts():
            whole = _statistics(counts.sum(0), self.threshold)  # (4,)
            without = _statistics((counts.sum(0) - counts)[self.images > 0], self.threshold)  # (groups, 4)
            for i, name in enumerate(STATISTICS):
                low, high = self._interval(without[:, i], whole[i], _range(name, self.num_codes))
                found[name + self.suffix + part] = Estimate(float(whole[i]), low, high, self.count)
        return found

    def _interval(self, without: np.ndarray, whole: float, limits: tuple[float, float]) -> tuple[float, float]:
        if self.count < SMALLEST:
            return math.nan, math.nan
        low, high = jackknife(float(whole), without.tolist())
        return float(np.maximum(low, limits[0])), float(np.minimum(high, limits[1]))  # NaN stays NaN

    def _parts(self) -> Iterator[tuple[str, np.ndarray]]:
        """Name's ending and counts (GROUPS, K) of all ids, of each slot, of each scale."""
        yield "", self.counts.sum((1, 2))
        if self.counts.shape[2] > 1:
            yield from ((f"[slot{q}]", self.counts[:, :, q].sum(1)) for q in range(self.counts.shape[2]))
        if self.counts.shape[1] > 1:
            yield from ((f"[scale{s}]", self.counts[:, s].sum(1)) for s in range(self.counts.shape[1]))


def _scales(tokens: TokenSpec | None, scales: Sequence[int]) -> np.ndarray:
    """(N,) int64, the scale of each position; empty where there is one scale. A scale of side s has s * s positions."""
    if tokens is not None:
        scales = tokens.scales if tokens.layout == "multiscale" else ()
    if len(scales) < 2:
        return np.zeros(0, np.int64)
    found = np.repeat(np.arange(len(scales)), np.square(scales))
    if tokens is not None and len(found) != tokens.num_tokens:
        raise SpecError(
            f"scales {tokens.scales} have {len(found)} positions, the tokens {tokens.num_tokens}; mend either"
        )
    return found


def _statistics(counts: np.ndarray, threshold: float) -> np.ndarray:
    """(..., K) int64 -> (..., 4) float64, in the order of STATISTICS; NaN where nothing was counted."""
    total, codes = counts.sum(-1, keepdims=True), counts.shape[-1]
    with np.errstate(invalid="ignore"):
        bits = np.maximum(entr(counts / total).sum(-1) / math.log(2), 0.0)
    above = 100 * (counts * codes >= threshold * total).mean(-1)
    found = np.stack([100 * (counts > 0).mean(-1), above, bits, np.exp2(bits)], -1)
    return np.where(total > 0, found, np.nan)


def _range(name: str, codes: int) -> tuple[float, float]:
    return {"entropy": (0.0, math.log2(codes)), "perplexity": (1.0, float(codes))}.get(name, (0.0, 100.0))
