"""What comes beside images: ids and captions, and the metrics that read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vqbench.errors import SpecError
from vqbench.eval.base import Metric
from vqbench.eval.judges import Judges
from vqbench.eval.unique_ratio import UniqueRatio
from vqbench.eval.usage import STATISTICS, Usage

# metric -> what it reads
NEEDS = {**dict.fromkeys((*STATISTICS, "unique_ratio"), "ids"), "clip_score": "captions"}
CLIP = "clip-vitb32"


@dataclass
class Extras:
    """Ids (n, N, Q) and n captions of the images that are scored, either of them or none."""

    metrics: list[Metric]
    ids: np.ndarray | None
    captions: Sequence[str] | None

    def of(self, indices: np.ndarray) -> dict[str, Any]:
        """The fields of a batch."""
        captions = None if self.captions is None else tuple(self.captions[i] for i in indices)
        return {"ids": None if self.ids is None else np.asarray(self.ids[indices]), "captions": captions}

    def check(self, count: int) -> None:
        """Refuse ids or captions of other images."""
        for name, found in (("ids", self.ids), ("captions", self.captions)):
            if found is not None and len(found) != count:
                raise SpecError(f"{count} images and {len(found)} {name}; give those of the same images")


def open_extras(
    names: Sequence[str],
    judges: Judges,
    ids: np.ndarray | None,
    num_codes: int | None,
    captions: Sequence[str] | None,
    scales: Sequence[int] = (),
) -> Extras:
    """The metrics of :data:`NEEDS` among `names`; those of :data:`STATISTICS` come together.

    Raises:
        SpecError: a metric without what it reads, ids without the size of their codebook, or no ids of images.
        MissingWeights: no CLIP weights.
    """
    given = {"ids": ids is not None, "captions": captions is not None}
    for name in names:
        if name in NEEDS and not given[NEEDS[name]]:
            raise SpecError(f"'{name}' needs {NEEDS[name]}; give --{NEEDS[name]}")
    if ids is not None:
        _check_ids(ids, num_codes)
    metrics: list[Metric] = []
    if not set(STATISTICS).isdisjoint(names):
        if num_codes is None:
            raise SpecError("codebook usage needs the codebook's size; give --num-codes")
        metrics.append(Usage(num_codes, scales=scales))
    if "unique_ratio" in names:
        metrics.append(UniqueRatio())
    if "clip_score" in names:
        from vqbench.eval.clip_score import ClipScore  # open_clip and torchvision take 220 MB

        metrics.append(ClipScore(judges.file(CLIP), device=judges.device))
    return Extras(metrics, ids, captions)


def _check_ids(ids: Any, num_codes: int | None) -> None:
    if not isinstance(ids, np.ndarray):
        raise SpecError(f"ids are a {type(ids).__name__}; give an integer array (images, N, Q)")
    if ids.dtype.kind not in "iu" or ids.ndim != 3:
        hint = "; of one code a position: ids[..., None]" if ids.ndim == 2 else ""
        raise SpecError(f"ids are {ids.dtype} {ids.shape}; give integers (images, N, Q){hint}")
    if num_codes is not None and (not isinstance(num_codes, int | np.integer) or num_codes < 1):
        raise SpecError(f"a codebook of {num_codes} codes; --num-codes is a whole number above 0")
