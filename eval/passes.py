"""Passes over images: each image is decoded once and goes through the judge once; the seconds of every stage are counted."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from vqbench.eval.base import Batch, Layer, SetMetric
from vqbench.eval.evaluator import Evaluator, layers_of
from vqbench.eval.extras import Extras
from vqbench.eval.feature_set import FeatureSet
from vqbench.eval.features import Extractor
from vqbench.eval.protocols import Protocol
from vqbench.eval.reference import chosen
from vqbench.eval.sources import Source
from vqbench.eval.sources import pairs as paired
from vqbench.progress import Progress


def pass_over(evaluator: Evaluator, source: Source, batch: int, extras: Extras) -> None:
    """Every image of `source` through all metrics of `evaluator`."""
    progress = Progress(len(source), f"evaluate {source.name}", "img")
    for indices, images in clocked(source.batches(batch), evaluator.seconds):
        evaluator.see(Batch(indices, images, **extras.of(indices)))
        progress.update(len(images))


def pass_over_pairs(
    evaluator: Evaluator, source: Source, originals: Source, protocol: Protocol, extras: Extras
) -> FeatureSet | None:
    """Both sides at once; returns the originals' features, the reference of the set metrics (None where there are none)."""
    progress = Progress(len(source), f"evaluate {source.name}", "img")
    known = reference_features(evaluator.sets, len(originals), protocol) if evaluator.sets else None
    for indices, images, before in clocked(paired(source, originals, protocol.batch), evaluator.seconds):
        evaluator.see(Batch(indices, images, before, **extras.of(indices)))
        if known is not None and evaluator.extract is not None:
            with evaluator.clock("judge"):
                features = evaluator.extract(before)
            known.update(Batch(indices, features=features))
        progress.update(len(images))
    return known


def collect(source: Source, extract: Extractor, batch: int, seconds: dict[str, float], *known: FeatureSet) -> None:
    """The features of a reference into each of `known`."""
    progress = Progress(len(source), f"reference {source.name}", "img")
    for indices, images in clocked(source.batches(batch), seconds):
        began = time.perf_counter()
        features = extract(images)
        seconds["judge"] += time.perf_counter() - began
        for each in known:
            each.update(Batch(indices, features=features))
        progress.update(len(images))


def reference_features(sets: Sequence[SetMetric], count: int, protocol: Protocol) -> FeatureSet:
    """An empty set for a reference of `count` images: moments and KID's features of all, P/R's of the chosen ones."""
    read = layers_of(sets) - {"logits"}
    moments: frozenset[Layer] = frozenset(read & {"pooled", "spatial"})
    wanted = frozenset[Layer]().union(*(m.reference_rows for m in sets))
    some = chosen(count, protocol)
    return FeatureSet(moments, {layer: some if layer == "manifold" else None for layer in sorted(wanted)})


def clocked(batches: Iterator[Any], seconds: dict[str, float]) -> Iterator[Any]:
    """The same batches; what was waited for them is counted under ``read``."""
    while True:
        began = time.perf_counter()
        batch = next(batches, None)
        seconds["read"] += time.perf_counter() - began
        if batch is None:
            return
        yield batch
