"""``vqbench evaluate``: score images without the DAG, under a named protocol, in one pass.

>>> report = evaluate("samples/", "reference.npz", protocol="adm")                      # doctest: +SKIP
>>> report["metrics"]["fid"]["value"], report["metrics"]["fid"]["interval"]             # doctest: +SKIP
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from torch import nn

from vqbench.errors import ArtifactError, SpecError, UserError, nearest
from vqbench.eval.base import Metric, SetMetric
from vqbench.eval.evaluator import Evaluator, Found, layers_of
from vqbench.eval.exact_mean import PairMean
from vqbench.eval.extras import NEEDS, Extras, open_extras
from vqbench.eval.feature_set import FeatureSet
from vqbench.eval.features import Extractor
from vqbench.eval.guards import Guards
from vqbench.eval.libraries import score_with_libraries
from vqbench.eval.pair_metrics import PAIRED, pair_metrics
from vqbench.eval.passes import collect, pass_over, pass_over_pairs, reference_features
from vqbench.eval.protocols import Protocol
from vqbench.eval.reference import expected
from vqbench.eval.report import report_of
from vqbench.eval.request import Engine, Images, Request, make_request
from vqbench.eval.set_metrics import BUILD, set_metrics
from vqbench.eval.sources import Source
from vqbench.eval.statistics_file import Reference, is_statistics, open_statistics


def evaluate(
    generated: Images,
    reference: Images | None = None,
    *,
    protocol: str | Protocol = "adm",
    metrics: Sequence[str] | None = None,
    pairs: bool = False,
    judge: str | None = None,
    weights: Mapping[str, str | Path | nn.Module] | None = None,
    engine: Engine = "vqbench",
    ids: np.ndarray | None = None,
    num_codes: int | None = None,
    scales: Sequence[int] = (),
    captions: Sequence[str] | None = None,
    value_range: tuple[float, float] | None = None,
    device: str | torch.device | None = None,
) -> dict[str, Any]:
    """Score images under a protocol.

    Args:
        generated: generated images or reconstructions: a folder, an ``.npz`` (uint8 NHWC ``arr_0``), a ``.npy``, an
            array or tensor (NHWC or NCHW), or a map-style data set.
        reference: what to compare with: the same kinds, or saved statistics (``vqbench statistics``, ADM's npz).
        metrics: names; by default those that the protocol lists, without what the inputs do not allow.
        pairs: `reference` holds the originals of `generated`, matched by relative file name or order.
        judge: a network in place of the protocol's own, e.g. ``dinov2-vitl14``; every metric then bears its name.
        weights: kind of network -> file (see :class:`vqbench.eval.judges.Judges`).
        engine: ``reference`` has the libraries compute what they can: slow, and without intervals.
        ids: (n, N, Q) integers of the same images, for ``usage``, ``usage_above``, ``entropy``, ``perplexity`` (which need
            `num_codes`) and ``unique_ratio``.
        scales: sides of the ids' scales, coarsest first: usage is then counted scale by scale, too.
        captions: n texts, for ``clip_score``.
        value_range: of float images, ``(0, 1)`` or ``(-1, 1)``.

    Returns:
        a JSON-able report: per metric value, 95% interval, unit, direction, n; the protocol with its digest, weights
        digests, versions, seconds by stage, peak memory, warnings.

    Raises:
        UserError: an unknown protocol or metric, weights that are missing or wrong, images that do not fit.
    """
    if engine not in (engines := get_args(Engine)):
        raise SpecError(f"unknown engine '{engine}'; {nearest(engine, engines)}")
    request = make_request(protocol, metrics, pairs, judge, weights, device, reference is not None, value_range)
    if not request.explicit:
        given = {"ids": ids is not None, "captions": captions is not None}
        request.names += [name for name, what in NEEDS.items() if given[what]]
    if not request.names:
        raise SpecError(f"protocol '{request.protocol.name}' has nothing to compute; give --reference or --metrics")
    extras = open_extras(request.names, request.judges, ids, num_codes, captions, scales)
    return score(request, generated, reference, extras, engine)


def score(
    request: Request,
    generated: Images,
    reference: Images | None,
    extras: Extras,
    engine: Engine = "vqbench",
) -> dict[str, Any]:
    """The report of a request; arguments as :func:`evaluate`'s."""
    began = time.perf_counter()
    source = request.open(generated)
    extras.check(len(source))
    run = _score_with_libraries if engine == "reference" else _score
    done = run(request, source, reference, extras)
    if not done.found:
        raise SpecError(f"nothing could be computed: {'; '.join(done.left)}")
    guards = Guards(request.protocol, request.names, request.pairs, "reconstructed" if request.pairs else "generated")
    warnings = guards.warnings(source, done.reference, done.predicted)
    seconds = time.perf_counter() - began
    warnings += [*request.judges.warnings, *done.left]
    return report_of(request, engine, source, done.reference, done.found, warnings, seconds)


class Done(NamedTuple):
    """What an engine found: values, what was left out and why, the reference, the judge's classes (n,) if it saw any."""

    found: list[Found]
    left: list[str]
    reference: Source | Reference | None
    predicted: np.ndarray | None = None


def _needed(reference: Images | None) -> Images:
    if reference is None:
        raise SpecError("these metrics compare with a reference; give --reference")
    return reference


def _score_with_libraries(request: Request, source: Source, reference: Images | None, extras: Extras) -> Done:
    if is_statistics(reference):
        raise SpecError("the libraries need the reference's images; give those instead of statistics")
    other = None if reference is None else request.open(reference, source)
    return Done(*score_with_libraries(request, source, other), other)


def _score(request: Request, source: Source, reference: Images | None, extras: Extras) -> Done:
    """One pass over the generated images (and their originals), one over a reference of other images."""
    evaluator, known, other, small = _seen(request, source, reference, extras)
    request.judges.close()  # the networks' memory serves the comparison
    features = evaluator.features
    seen = features is not None and features.has_rows("logits") and source.labels is None
    predicted = features.matrix("logits").argmax(1) if features is not None and seen else None
    found, left = _compare(evaluator, known, request.explicit)
    return Done(found, [*small, *left], other, predicted)


def _seen(
    request: Request, source: Source, reference: Images | None, extras: Extras
) -> tuple[Evaluator, FeatureSet | None, Source | Reference | None, list[str]]:
    """The passes: all that is kept of the images, and which metrics they are too small for."""
    sets = set_metrics([name for name in request.names if name in BUILD], request.protocol, request.device)
    extract = request.judges.extractor(layers_of(sets)) if sets else None
    paired = [name for name in request.names if name in PAIRED]
    streamed, left = _fitting(
        pair_metrics(paired, request.protocol, request.judges.lpips, request.device), source, request.explicit
    )
    evaluator = Evaluator([*streamed, *extras.metrics], sets, extract, request.seconds)
    if request.pairs:
        originals = request.open(_needed(reference), source)
        known: FeatureSet | None = pass_over_pairs(evaluator, source, originals, request.protocol, extras)
        other: Source | Reference | None = originals
    else:
        # The reference first: what is wrong with it shows before the pass over 50,000 samples.
        known, other = _reference(request, sets, extract, reference, source)
        pass_over(evaluator, source, request.protocol.batch, extras)
    evaluator.extract = None
    return evaluator, known, other, left


def _fitting(metrics: list[Metric], source: Source, explicit: bool) -> tuple[list[Metric], list[str]]:
    """Those of pairs that images of this size are large enough for, and why others of a protocol's own list are left out."""
    found, left = [], []
    for metric in metrics:
        why = metric.too_small(source.size) if isinstance(metric, PairMean) else ""
        if why and explicit:
            raise SpecError(why)
        if why:
            left.append(f"{type(metric).__name__} is left out: {why}")
        else:
            found.append(metric)
    return found, left


def _reference(
    request: Request, sets: list[SetMetric], extract: Extractor | None, reference: Images | None, like: Source
) -> tuple[FeatureSet | None, Source | Reference | None]:
    if not sets or layers_of(sets) == {"logits"}:
        return None, None
    assert extract is not None
    if is_statistics(reference):
        saved = open_statistics(Path(str(reference)), expected(request.protocol))
        _check_weights(request, saved, str(reference))
        return _with_rows(request, sets, extract, saved), saved
    source = request.open(_needed(reference), like)
    known = reference_features(sets, len(source), request.protocol)
    collect(source, extract, request.protocol.batch, request.seconds, known)
    return known, source


def _check_weights(request: Request, saved: Reference, name: str) -> None:
    """Refuse statistics made by other weights than those in use."""
    made: Mapping[str, str] = saved.meta.get("weights") or {}
    for kind, digest in request.judges.digests.items():
        if made.get(kind, digest) != digest:
            raise ArtifactError(
                f"{name} was made with weights {made[kind][:16]}... of '{kind}', these are {digest[:16]}...; "
                "make it again: vqbench statistics"
            )


def _with_rows(request: Request, sets: list[SetMetric], extract: Extractor, saved: Reference) -> FeatureSet:
    """ADM's npz holds moments and images: the features of precision and recall are those of its images."""
    wanted = frozenset().union(*(m.reference_rows for m in sets))
    if saved.images_path is None or all(saved.has_rows(layer) for layer in wanted):
        return saved
    images = request.open(saved.images_path)
    rows = reference_features([m for m in sets if m.reference_rows], len(images), request.protocol)
    collect(images, extract, request.protocol.batch, request.seconds, rows)
    return saved.with_rows(rows)


def _compare(evaluator: Evaluator, known: FeatureSet | None, explicit: bool) -> tuple[list[Found], list[str]]:
    """All values; of a protocol's own list, what this set is too small for is left out with a warning."""
    found, left = [], []
    for metric in evaluator.sets:
        try:
            found += evaluator.compare([metric], known)
        except UserError as error:
            if explicit:
                raise
            left.append(f"{type(metric).__name__} is left out: {error}")
    return [*found, *evaluator.streamed()], left
