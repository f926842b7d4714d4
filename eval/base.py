"""The contract of a metric: one file, one definition, an interval with every value.

Two shapes of metric. A :class:`Metric` adds up what it sees of each image; a :class:`SetMetric` compares two
:class:`vqbench.eval.feature_set.FeatureSet`, which stream and merge for all of them at once.
Images are compared as uint8 RGB, shape (B, H, W, 3), the way they would be saved: rounded and clipped once, at decoding.

Letters: B images, H W pixels, d feature length, N ids an image, Q codes a position.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, Self

import numpy as np

from vqbench.errors import SpecError

if TYPE_CHECKING:
    from torch import Tensor

    from vqbench.eval.feature_set import FeatureSet

Layer = Literal["pooled", "logits", "spatial", "manifold"]
Need = Literal["images", "originals", "ids", "captions"]


class Features(NamedTuple):
    """What the judge says of a batch.

    Attributes:
        pooled: (B, d) float32, the layer of FID and KID.
        logits: (B, classes) float32, or None where the protocol has no Inception Score.
        spatial: (B, s) float32, the layer of sFID, or None.
        manifold: (B, m) float32, the layer of precision, recall, density and coverage; None where `pooled` serves.
    """

    pooled: Tensor
    logits: Tensor | None = None
    spatial: Tensor | None = None
    manifold: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """One batch of a pass; a metric reads what it needs.

    Attributes:
        indices: (B,) int64, the images' places in the whole set: values do not depend on the order of batches.
        images: (B, H, W, 3) uint8, generated images or reconstructions.
        originals: (B, H, W, 3) uint8, what `images` reconstruct.
        features: the judge's, of `images`.
        ids: (B, N, Q) integers in [0, K).
        captions: B texts.
    """

    indices: np.ndarray
    images: np.ndarray | None = None
    originals: np.ndarray | None = None
    features: Features | None = None
    ids: np.ndarray | None = None
    captions: tuple[str, ...] | None = None


class Estimate(NamedTuple):
    """A value with its 95% interval and the number of images behind it; NaN is "undefined"."""

    value: float
    low: float
    high: float
    n: int


class Facts:
    """What a table and a JSON say of a metric, stated as class attributes.

    Attributes:
        unit: e.g. "dB", "%", "".
        higher_is_better: direction.
        interval: how the 95% interval is found, in a few words ("normal over images", "delete-group jackknife, ...").
        not_finite: what happens with NaN and infinity ("refused", "identical pairs are left out of the mean").
    """

    unit: ClassVar[str]
    higher_is_better: ClassVar[bool]
    interval: ClassVar[str]
    not_finite: ClassVar[str]


class Metric(Facts, ABC):
    """Accumulates over batches, merges with the same metric of another shard, and computes once.

    The result does not depend on the order of images, on batch sizes or on how images were spread over shards.
    """

    needs: ClassVar[frozenset[Need]]

    @abstractmethod
    def update(self, batch: Batch) -> None:
        """Add one batch."""

    @abstractmethod
    def merge(self, other: Self) -> None:
        """Add all that `other` was given.

        Raises:
            SpecError: `other` has other settings (:func:`check_alike`).
        """

    @abstractmethod
    def compute(self) -> dict[str, Estimate]:
        """``{name: estimate}`` over everything added."""


class SetMetric(Facts, ABC):
    """A function of two sets of features; the reference is taken as fixed, the interval is over the generated images.

    Recall and coverage are shares of the reference images: their interval is over these. `n` counts generated ones in any case.
    """

    rows: ClassVar[frozenset[Layer]]  # layers whose features must be kept, image by image
    moments: ClassVar[frozenset[Layer]]  # layers of which mean and covariance are enough
    reference_rows: ClassVar[frozenset[Layer]] = frozenset()  # layers whose features must be kept of the reference

    @property
    def settings(self) -> dict[str, object]:
        """What it was made with, which is all that it holds: shards of one set are compared by equal ones."""
        return dict(vars(self))

    @abstractmethod
    def compute(self, generated: FeatureSet, reference: FeatureSet) -> dict[str, Estimate]:
        """``{name: estimate}``."""


def shape(size: tuple[int, ...]) -> str:
    """(H, W) for people: width x height.

    >>> shape((480, 640))
    '640x480'
    """
    return f"{size[1]}x{size[0]}"


def check_alike(what: str, mine: Mapping[str, object], theirs: Mapping[str, object]) -> None:
    """Refuse to merge shards that were made under different settings: their sum would be no set's number.

    Args:
        what: what is merged, for people.
        mine, theirs: setting -> value, all that must be equal.

    Raises:
        SpecError: some are not; names those alone, with both values.
    """
    names = [name for name in dict.fromkeys((*mine, *theirs)) if mine.get(name) != theirs.get(name)]
    if names:
        differing = "; ".join(f"{name} {mine.get(name)} and {theirs.get(name)}" for name in names)
        raise SpecError(f"{what}: shards of different settings cannot be merged ({differing}); score both alike")
