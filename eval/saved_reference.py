"""What a file of statistics (:mod:`vqbench.eval.statistics_file`) is to set metrics: a feature set that is finished.

Letters: n images, R images whose features are kept, d feature length.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vqbench.errors import ArtifactError
from vqbench.eval.archive import Archive
from vqbench.eval.base import Batch, Layer
from vqbench.eval.feature_set import FeatureSet, Gaussian
from vqbench.eval.seen import ClassSizes

MOMENTS: dict[Layer, tuple[str, str]] = {"pooled": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}
SINGULAR: dict[Layer, str] = {"pooled": "rows", "spatial": "rows_s"}
ROWS: dict[Layer, tuple[str, str]] = {
    "pooled": ("features", "indices"),
    "manifold": ("features_manifold", "indices_manifold"),
    "spatial": ("features_spatial", "indices_spatial"),
}
MEND = "make it again: vqbench statistics"


class Kept(NamedTuple):
    """Features of some images: `indices` (R,) int64, `matrix` (R, d) float32."""

    indices: np.ndarray
    matrix: np.ndarray


class Reference(FeatureSet):
    """A finished feature set, read from a file.

    Attributes:
        count: images behind the moments; 0 where the file does not say (ADM's).
        meta: what the file says of itself; empty in ADM's.
        images_path: the file itself where it holds images (``arr_0``), whose features can stand for missing rows.
    """

    def __init__(
        self,
        name: str,
        count: int,
        gaussians: Mapping[Layer, Gaussian],
        kept: Mapping[Layer, Kept],
        meta: Mapping[str, Any],
        images_path: Path | None = None,
    ) -> None:
        super().__init__(frozenset(), {})
        self.name, self.count, self.meta, self.images_path = name, count, dict(meta), images_path
        self._gaussians, self._kept = dict(gaussians), dict(kept)

    def update(self, batch: Batch) -> None:
        """Not allowed: the file is finished."""
        raise ArtifactError(f"{self.name} holds finished statistics; images cannot be added, {MEND}")

    def merge(self, other: FeatureSet) -> None:
        """Not allowed: the file is finished."""
        raise ArtifactError(f"{self.name} holds finished statistics; they cannot be merged, {MEND}")

    def gaussian(self, layer: Layer) -> Gaussian:
        """Mean and covariance of a layer, with the features of all images where they were kept.

        Raises:
            ArtifactError: the file has none of that layer.
        """
        if layer not in self._gaussians:
            arrays = " and ".join(MOMENTS.get(layer, (f"statistics of '{layer}'",)))
            raise ArtifactError(f"{self.name} holds no {arrays}; {MEND}")
        found, kept = self._gaussians[layer], self._kept.get(layer)
        if kept is None or len(kept.matrix) != self.count:
            return found
        return Gaussian(found.mu, found.covariance, found.n, kept.matrix)

    def matrix(self, layer: Layer) -> np.ndarray:
        """Kept features (R, d) float32; of "manifold" those of "pooled" by default.

        Raises:
            ArtifactError: none were kept.
        """
        return self._rows_of(layer).matrix

    def indices(self, layer: Layer) -> np.ndarray:
        """Which images :meth:`matrix` holds, (R,) int64."""
        return self._rows_of(layer).indices

    def _rows_of(self, layer: Layer) -> Kept:
        found = self._kept.get(layer) or (self._kept.get("pooled") if layer == "manifold" else None)
        if found is None:
            raise ArtifactError(f"{self.name} holds no features '{layer}' image by image; {MEND}")
        return found

    def has_rows(self, layer: Layer) -> bool:
        """Whether :meth:`matrix` can answer."""
        return layer in self._kept or (layer == "manifold" and "pooled" in self._kept)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Layers of which there are moments."""
        return tuple(sorted(self._gaussians))

    @property
    def converted(self) -> Counter[str]:
        """Rule -> on how many of its images, as far as the file says."""
        return Counter(self.meta.get("converted") or {})

    @property
    def formats(self) -> Counter[str]:
        """File format -> how many of its images, as far as the file says."""
        return Counter(self.meta.get("formats") or {})

    def copies(self) -> int:
        """How many of its images are pixel for pixel an earlier one, as far as the file says."""
        return int(self.meta.get("copies") or 0)

    def image_sizes(self) -> set[tuple[int, int]]:
        """All (H, W) of its images, as far as the file says; of ADM's those of the images that it holds."""
        if not self.meta and self.images_path is not None:
            _, height, width, _ = Archive(self.images_path, "arr_0").shape
            return {(height, width)}
        sizes = self.meta.get("sizes") or [size for size in (self.meta.get("size") or self.meta.get("crop"),) if size]
        return {(int(height), int(width)) for height, width, *_ in sizes}

    def class_sizes(self) -> ClassSizes | None:
        """Of all its images, where the file says it."""
        found = self.meta.get("classes")
        return ClassSizes(*found) if found else None

    def with_rows(self, rows: FeatureSet) -> Reference:
        """These moments, and the features that `rows` kept."""
        kept = {layer: Kept(rows.indices(layer), rows.matrix(layer)) for layer in ROWS if rows.has_rows(layer)}
        return Reference(self.name, self.count, self._gaussians, {**self._kept, **kept}, self.meta, self.images_path)
