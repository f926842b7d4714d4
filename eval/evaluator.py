"""One pass over images: the judge sees each once, every metric reads what it needs, nothing of a batch is kept but numbers."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

from vqbench import distributed
from vqbench.eval.base import Batch, Estimate, Facts, Layer, Metric, SetMetric, check_alike
from vqbench.eval.feature_set import FeatureSet
from vqbench.eval.features import Extractor


class Found(NamedTuple):
    """One value of one metric."""

    metric: Facts
    name: str
    estimate: Estimate


class Evaluator:
    """All metrics of one set of images.

    Shards may be evaluated apart, in any order and in batches of any size, and merged: values that are sums of
    per-image numbers come out the same to the last bit, those of features to the rounding of the judge.

    Args:
        metrics: what is added up image by image.
        sets: what compares sets of features.
        extract: the judge; needed where `sets` is not empty.
        seconds: a ``defaultdict(float)`` that counts seconds by stage (``judge``, a metric's class); shared by those who
            take part in one report.
    """

    def __init__(
        self,
        metrics: Sequence[Metric] = (),
        sets: Sequence[SetMetric] = (),
        extract: Extractor | None = None,
        seconds: dict[str, float] | None = None,
    ) -> None:
        self.metrics, self.sets, self.extract = list(metrics), list(sets), extract
        self.features = collector(self.sets) if self.sets else None
        self.seconds: dict[str, float] = defaultdict(float) if seconds is None else seconds

    def see(self, batch: Batch) -> None:
        """Add one batch; its features are extracted here unless it brings them."""
        if self.features is not None:
            if batch.features is None:
                assert self.extract is not None and batch.images is not None, "set metrics need a judge and images"
                with self.clock("judge"):
                    batch = replace(batch, features=self.extract(batch.images))
            with self.clock("features"):
                self.features.update(batch)
        for metric in self.metrics:
            with self.clock(type(metric).__name__.lower()):
                metric.update(batch)

    def merge(self, other: Evaluator) -> None:
        """Add what another shard saw.

        Raises:
            SpecError: by other metrics, in another order, or under other settings.
        """
        check_alike("evaluation", self._made(), other._made())
        self._add(other.metrics, other.features)

    def _made(self) -> dict[str, object]:
        """What must be equal where shards are merged; metrics that are added up compare their own settings."""
        sets = [(type(metric).__name__, metric.settings) for metric in self.sets]
        return {"metrics": [type(metric).__name__ for metric in self.metrics], "set metrics": sets}

    def _add(self, metrics: Sequence[Metric], features: FeatureSet | None) -> None:
        for mine, theirs in zip(self.metrics, metrics, strict=True):
            mine.merge(theirs)
        if self.features is not None and features is not None:
            self.features.merge(features)

    def gather(self) -> None:
        """Add, in the first process, what the others saw, as shards in their order; the others' own stays a part.

        50,000 rows of 2,048 float32 are 0.4 GB: no process but the first holds all of them.
        """
        for shard in distributed.sent_to_first((self.metrics, self.features)):
            self._add(*shard)
            del shard  # before the next one comes

    def compute(self, reference: FeatureSet | None = None) -> list[Found]:
        """Everything, set metrics (against `reference`) first."""
        return [*(self.compare(self.sets, reference) if self.sets else []), *self.streamed()]

    def streamed(self) -> list[Found]:
        """What was added up image by image."""
        return [Found(m, name, estimate) for m in self.metrics for name, estimate in m.compute().items()]

    def compare(self, sets: Sequence[SetMetric], reference: FeatureSet | None) -> list[Found]:
        """Those `sets` alone, against `reference` (None: an empty one, which the Inception Score does not read)."""
        assert self.features is not None, "set metrics need a judge"
        known = FeatureSet(frozenset(), {}) if reference is None else reference
        found: list[Found] = []
        for metric in sets:
            with self.clock(type(metric).__name__.lower()):
                found += [Found(metric, name, e) for name, e in metric.compute(self.features, known).items()]
        return found

    @contextmanager
    def clock(self, stage: str) -> Iterator[None]:
        """Count the seconds of a block under `stage`."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - began


def collector(sets: Sequence[SetMetric]) -> FeatureSet:
    """An empty feature set that keeps what `sets` need of the generated images."""
    moments = frozenset[Layer]().union(*(m.moments for m in sets))
    rows = frozenset[Layer]().union(*(m.rows for m in sets))
    return FeatureSet(moments, dict.fromkeys(sorted(rows)))


def layers_of(sets: Sequence[SetMetric]) -> frozenset[Layer]:
    """The judge's layers that `sets` read."""
    return frozenset[Layer]().union(*(m.moments | m.rows for m in sets))
