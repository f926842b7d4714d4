"""k-means over features that do not fit in memory: scikit-learn's mini-batches, seeded by pass, saved after each.

Letters: M features of length D, K clusters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.cluster import MiniBatchKMeans, kmeans_plusplus
from sklearn.metrics import pairwise_distances_argmin_min

from vqbench.artifacts import read_array
from vqbench.checkpoints import load_checkpoint, save_checkpoint
from vqbench.errors import ArtifactError
from vqbench.notice import Notice
from vqbench.seeds import derive, numpy_rng

DRAWN = 20_000  # clusters; more of them start from rows drawn at random (ours)


class Features:
    """The rows of a feature file (M, D), memory-mapped, given out in float32.

    Raises:
        ArtifactError: the file is damaged; on reading, a feature is not finite.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.array: np.ndarray = read_array(path)

    def __len__(self) -> int:
        return len(self.array)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Rows (n,) -> (n, D) float32, in the order of the file: a disk reads it so, and to a cluster order is nothing."""
        rows = np.sort(rows)
        found: np.ndarray = self.array[rows].astype(np.float32)
        bad = ~np.isfinite(found).all(1)
        if bad.any():
            raise ArtifactError(f"{self.path} holds a feature that is not finite (row {rows[bad][0]}): check the teacher's "
                                "weights, remove the file and run again: step 'features' makes it anew")  # fmt: skip
        return found


@dataclass(frozen=True)
class KMeans:
    """How to cluster. A batch never has fewer features than there are clusters."""

    clusters: int
    passes: int
    batch_size: int
    seed: int

    def batches(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """`rows` in parts of a batch's size."""
        size = max(self.batch_size, self.clusters)
        return (rows[start : start + size] for start in range(0, len(rows), size))


@dataclass
class Clusters:
    """What was found: centres (K, D) float32, features of each (K,), the sum of squared distances, clusters moved."""

    centres: np.ndarray
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    inertia: float = 0.0
    reseeded: int = 0


def cluster(
    features: Features, rows: np.ndarray, how: KMeans, folder: Path, notice: Notice, *path: str | int, every: int = 1
) -> Clusters:
    """Cluster the `rows` of `features`, resuming what is in `folder`.

    Starts by k-means++ on a sample of three batches, as scikit-learn does (kmeans_pytorch, which the released code calls,
    draws K rows, and leaves clusters that lie apart without a centre); of more than :data:`DRAWN` clusters from K rows, too, for
    the work of k-means++ grows as K squared. In each pass a centre becomes the mean of what it was given, so that a pass is
    Lloyd's step taken in batches; a cluster that a pass leaves empty starts again from a row drawn at random, but for the last
    one. In the end every row is counted once more.

    Args:
        notice: asked after every pass.
        path: what is clustered, for the seeds.
        every: passes between two saved states; the end is always saved.

    Raises:
        ArtifactError: a feature is not finite.
        Interrupted: a signal asked to stop; the pass was ended and saved.
    """
    step, found = _resumed(folder) or _start(features, rows, how, folder, every, *path, "start")
    while step <= how.passes:
        if step < how.passes:
            seen = _pass(features, rows, how, found, *path, "pass", step)
            if step + 1 < how.passes:
                _reseed(features, rows, found, np.flatnonzero(seen == 0), how.seed, *path, "empty", step)
        else:
            _assess(features, rows, how, found)
        step += 1
        told = notice.given_to_any()
        if told or step % every == 0 or step > how.passes:
            _save(folder, step, found)
        if told and step <= how.passes:
            raise notice.stopped(f"pass {step} of {'/'.join(map(str, path)) or 'all features'}")
    return found


def _start(
    features: Features, rows: np.ndarray, how: KMeans, folder: Path, every: int, *path: str | int
) -> tuple[int, Clusters]:
    if how.clusters > DRAWN:
        return 0, Clusters(features.take(_drawn(rows, how.clusters, how.seed, *path)))
    count = min(len(rows), 3 * max(how.batch_size, how.clusters))
    sample = features.take(_drawn(rows, count, how.seed, *path))
    centres, _ = kmeans_plusplus(sample, how.clusters, random_state=derive(how.seed, "k-means", *path) % 2**32)
    found = Clusters(centres)
    if every == 1:  # of many clusters the longest part
        _save(folder, 0, found)
    return 0, found


def _drawn(rows: np.ndarray, count: int, seed: int, *path: str | int) -> np.ndarray:
    found: np.ndarray = numpy_rng(seed, "k-means", *path).choice(rows, count, replace=False)
    return found


def _pass(features: Features, rows: np.ndarray, how: KMeans, found: Clusters, *path: str | int) -> np.ndarray:
    """Move the centres once over all `rows`; how many features each was given (K,)."""
    order = numpy_rng(how.seed, "k-means", *path).permutation(rows)
    # Its own answer to empty clusters (reassignment) is off: it draws without a word, and between batches.
    model: Any = MiniBatchKMeans(how.clusters, init=found.centres, n_init=1, batch_size=max(how.batch_size, how.clusters),
                                 reassignment_ratio=0.0, random_state=0)  # fmt: skip
    seen = np.zeros(how.clusters, dtype=np.int64)
    for batch in how.batches(order):
        model.partial_fit(features.take(batch))
        seen += np.bincount(model.labels_, minlength=how.clusters)
    found.centres = np.ascontiguousarray(model.cluster_centers_, dtype=np.float32)
    return seen


def _reseed(
    features: Features, rows: np.ndarray, found: Clusters, empty: np.ndarray, seed: int, *path: str | int
) -> None:
    if len(empty):
        found.centres[empty] = features.take(_drawn(rows, len(empty), seed, *path))
        found.reseeded += len(empty)


def _assess(features: Features, rows: np.ndarray, how: KMeans, found: Clusters) -> None:
    found.counts, found.inertia = np.zeros(how.clusters, dtype=np.int64), 0.0
    for batch in how.batches(rows):
        ids, distances = pairwise_distances_argmin_min(features.take(batch), found.centres, metric="sqeuclidean")
        found.counts += np.bincount(ids, minlength=how.clusters)
        found.inertia += float(distances.sum(dtype=np.float64))


def _save(folder: Path, step: int, found: Clusters) -> None:
    tensors = {"centres": torch.from_numpy(found.centres), "counts": torch.from_numpy(found.counts)}
    save_checkpoint(folder, step, tensors, {"inertia": found.inertia, "reseeded": found.reseeded})


def _resumed(folder: Path) -> tuple[int, Clusters] | None:
    saved = load_checkpoint(folder)
    if saved is None:
        return None
    step, tensors, extra = saved
    return step, Clusters(tensors["centres"].numpy(), tensors["counts"].numpy(), extra["inertia"], extra["reseeded"])
