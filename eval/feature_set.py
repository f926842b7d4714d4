"""Features of a set of images: streamed, merged, kept within a bound of memory; what every set metric compares.

Letters: B images of a batch, n images of a set, d feature length.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqbench.errors import ArtifactError
from vqbench.eval.base import Batch, Layer, check_alike
from vqbench.eval.moments import Gaussian, Moments, gaussian_of
from vqbench.eval.protocols import Neighbours
from vqbench.eval.rows import Rows
from vqbench.seeds import numpy_rng

__all__ = ["FeatureSet", "Gaussian", "choose", "draw"]


class FeatureSet:
    """Moments of all images of a set, and the features of all or of chosen ones.

    Args:
        moments: layers of which mean and covariance are wanted.
        rows: layer -> indices of the images whose features are kept, sorted; None keeps all. Where all are kept,
            moments are taken from them at the end and cost nothing before.
    """

    def __init__(self, moments: frozenset[Layer], rows: Mapping[Layer, np.ndarray | None]) -> None:
        self.count = 0
        self._made = {"moments": sorted(moments), "rows": {layer: _images_text(rows[layer]) for layer in sorted(rows)}}
        self._lengths: dict[Layer, int] = {}  # d of each layer that was seen
        self._chosen = dict(rows)
        self._rows: dict[Layer, Rows] = {layer: Rows() for layer in rows}
        whole = {layer for layer, chosen in rows.items() if chosen is None}
        self._moments: dict[Layer, Moments] = {layer: Moments() for layer in sorted(moments - whole)}
        self._known: dict[Hashable, Any] = {}

    def update(self, batch: Batch) -> None:
        """Add the features of one batch.

        Raises:
            ArtifactError: a feature is not finite.
        """
        assert batch.features is not None, "a batch without features"
        if batch.features.manifold is None:
            self._share()
        self.count += len(batch.indices)
        self._known.clear()
        found = {layer: _layer(batch, layer) for layer in {*self._moments, *self._rows}}
        self._lengths = {layer: found[layer].shape[1] for layer in sorted(found)}
        for layer, moments in self._moments.items():
            moments.update(found[layer])
        for layer, rows in self._rows.items():
            chosen = self._chosen[layer]
            inside = slice(None) if chosen is None else np.isin(batch.indices, chosen)
            rows.append(batch.indices[inside], found[layer].cpu().numpy()[inside])

    def _share(self) -> None:
        """Precision and recall read the pooled features: one copy serves both, if it holds the same images."""
        if "manifold" not in self._rows:
            return
        if "pooled" not in self._rows:
            self._rows["pooled"] = self._rows.pop("manifold")
            self._chosen["pooled"] = self._chosen.pop("manifold")
        elif _same(self._chosen["pooled"], self._chosen["manifold"]):
            del self._rows["manifold"], self._chosen["manifold"]

    def merge(self, other: FeatureSet) -> None:
        """Add all that another shard holds.

        Raises:
            SpecError: it keeps other layers, or those of other images, or its judge gives other lengths.
            ArtifactError: an image is in both, which shows when the features are asked for.
        """
        check_alike("features", self._made, other._made)
        if not other.count:
            return
        if not self.count and "manifold" not in other._rows:
            self._share()
        check_alike("features", {"lengths": self._lengths or other._lengths}, {"lengths": other._lengths})
        self._lengths = other._lengths
        self.count += other.count
        self._known.clear()
        for layer, moments in self._moments.items():
            moments.merge(other._moments[layer])
        for layer, rows in self._rows.items():
            rows.merge(other._rows[layer])

    def __getstate__(self) -> dict[str, Any]:
        """Without what was computed from it."""
        return {**self.__dict__, "_known": {}}

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` gives, computed at the first call with `key` and kept until the set changes."""
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]

    def gaussian(self, layer: Layer) -> Gaussian:
        """Mean and covariance of a layer.

        Raises:
            ArtifactError: fewer than two images.
        """
        moments = self._moments.get(layer)
        make = moments.gaussian if moments is not None else lambda: gaussian_of(self.matrix(layer))
        found: Gaussian = self.once(("gaussian", layer), make)
        return found

    def matrix(self, layer: Layer) -> np.ndarray:
        """The kept features of a layer in the order of their images, (n, d) float32; "manifold" is "pooled" by default.

        Raises:
            ArtifactError: they were not kept, there is none, or an image came twice.
        """
        found = self._place(layer)
        if found not in self._rows:
            raise ArtifactError(f"the features '{layer}' of this set were not kept; make its statistics again")
        return self._rows[found].matrix()

    def indices(self, layer: Layer) -> np.ndarray:
        """Which images :meth:`matrix` holds."""
        return self._rows[self._place(layer)].indices

    def has_rows(self, layer: Layer) -> bool:
        """Whether :meth:`matrix` can answer."""
        return self._place(layer) in self._rows

    def _place(self, layer: Layer) -> Layer:
        return "pooled" if layer == "manifold" and "manifold" not in self._rows else layer

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Layers of which there are moments."""
        return tuple(sorted({*self._moments, *(layer for layer, kept in self._chosen.items() if kept is None)}))


def _images_text(chosen: np.ndarray | None) -> str:
    """Which images keep their features, so that two choices are equal where their texts are."""
    if chosen is None:
        return "all images"
    return f"{len(chosen)} images {hashlib.sha256(np.asarray(chosen, np.int64).tobytes()).hexdigest()[:12]}"


def _same(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    return a is b if a is None or b is None else np.array_equal(a, b)


def _layer(batch: Batch, layer: Layer) -> Tensor:
    assert batch.features is not None
    found: Tensor | None = getattr(batch.features, layer)
    if found is None and layer == "manifold":
        found = batch.features.pooled
    assert found is not None, f"the judge was not asked for '{layer}'"
    if not torch.isfinite(found).all():
        raise ArtifactError("the judge gave features that are not finite; its weights are damaged, fetch them again")
    return found


def choose(count: int, neighbours: Neighbours) -> np.ndarray:
    """Sorted indices of the images whose features are kept, the same ones for any batch size; int64 (R,)."""
    return draw(count, min(count, neighbours.reference_count or count), neighbours.seed, "precision-recall")


def draw(count: int, size: int, seed: int, purpose: str) -> np.ndarray:
    """`size` of `count` places, sorted, int64; another `purpose` draws others."""
    return np.sort(numpy_rng(seed, purpose, count).choice(count, size, replace=False)).astype(np.int64)
