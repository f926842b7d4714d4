"""Step ``reference``: what set metrics compare with, for one split of a data set, computed once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from vqbench.data import open_images
from vqbench.eval.archive import batches
from vqbench.eval.base import Batch, Layer
from vqbench.eval.feature_set import FeatureSet, choose
from vqbench.eval.protocols import Protocol
from vqbench.eval.scoring import judge, setting
from vqbench.eval.seen import class_sizes
from vqbench.eval.statistics_file import Reference, open_statistics, save_statistics
from vqbench.jobs import Finished, Job
from vqbench.progress import Progress
from vqbench.specs import digest_of


def run(job: Job) -> dict[str, Any]:
    """Write ``statistics.npz`` (:mod:`vqbench.eval.statistics_file`): moments of all images, features of the chosen ones.

    Features are streamed: ImageNet's training set needs no more memory than its covariance and the chosen rows.
    """
    where, spec = setting(job), job.spec
    images = open_images(job.bench.datasets[spec["dataset"]], spec["split"], job.upstream("dataset", spec["dataset"]))
    found = reference_set(len(images), where.protocol)
    extract = judge(job, where, reference_layers(where.protocol))
    progress = Progress(len(images), f"reference {job.key[1]}", "img")
    for part in batches(len(images), where.protocol.batch):
        batch = images.batch(part.start, part.stop - part.start)
        found.update(Batch(np.arange(part.start, part.stop), features=extract(batch)))
        progress.update(len(batch))
    kept, side = len(found.matrix("pooled")), images.spec.resolution
    header = meta(where.protocol, job.key[1], {}) | {"crop": [side, side], "classes": class_sizes(images.labels)}
    save_statistics(job.store / "statistics.npz", found, header)
    return {"images": found.count, "kept": kept, "dimensions": len(found.gaussian("pooled").mu)}


def reference_layers(protocol: Protocol) -> frozenset[Layer]:
    """The judge's layers that a reference is made of, whichever metrics will read it."""
    layers: set[Layer] = {"pooled"}
    if protocol.judge.spatial:
        layers.add("spatial")
    if protocol.precision_recall is not None and protocol.precision_recall.judge is not None:
        layers.add("manifold")
    return frozenset(layers)


def reference_set(count: int, protocol: Protocol) -> FeatureSet:
    """An empty set for `count` reference images: moments of all of them, features of those that P/R compares with."""
    layers = reference_layers(protocol)
    rows = chosen(count, protocol)
    return FeatureSet(layers - {"manifold"}, dict.fromkeys(sorted(layers - {"spatial"}), rows))


def chosen(count: int, protocol: Protocol) -> np.ndarray | None:
    """Which of `count` reference images keep their features, sorted; None: all of them."""
    neighbours = protocol.precision_recall
    return None if neighbours is None else choose(count, neighbours)


def meta(protocol: Protocol, source: str, weights: Mapping[str, str]) -> dict[str, Any]:
    """What a statistics file says of itself.

    Args:
        source: which images: a data set's split, or the digest of a source.
        weights: kind of network -> SHA-256 of its weights file.
    """
    return {"protocol": protocol.name, "source": source, "weights": dict(sorted(weights.items())), **expected(protocol)}


def expected(protocol: Protocol) -> dict[str, str]:
    """What a statistics file must say to serve a protocol: digests of all that its moments and its rows hang on."""
    judge = {"judge": protocol.judge.model_dump(mode="json"), "images": protocol.images.model_dump(mode="json")}
    found = {"judge_digest": digest_of(judge)}
    if (near := protocol.precision_recall) is not None:  # k and the comparison come when it is read
        own = near.judge.model_dump(mode="json") if near.judge is not None else None
        found["rows_digest"] = digest_of([own, near.reference_count, near.seed])
    return found


def open_reference(finished: Finished, protocol: Protocol) -> Reference:
    """Read a finished reference.

    Raises:
        ArtifactError: its file is not readable, or was made under another judge.
    """
    return open_statistics(finished.file("statistics.npz"), expected(protocol))
