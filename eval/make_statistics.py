"""``vqbench statistics``: reusable statistics of a reference, one file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from vqbench.eval.base import Layer
from vqbench.eval.evaluate import Images, Request
from vqbench.eval.feature_set import FeatureSet
from vqbench.eval.inception_score import InceptionScore
from vqbench.eval.judges import Judges, with_judge
from vqbench.eval.passes import collect
from vqbench.eval.protocols import Protocol, load_protocol
from vqbench.eval.reference import meta, reference_layers, reference_set
from vqbench.eval.scoring import scoring_device
from vqbench.eval.sources import open_source
from vqbench.eval.statistics_file import save_statistics


def statistics(
    reference: Images,
    out: Path,
    *,
    protocol: str = "adm",
    judge: str | None = None,
    weights: Mapping[str, str | Path | nn.Module] | None = None,
    resolution: int | None = None,
    value_range: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """Extract the features of a reference once and write ``out`` (npz: mu, sigma, n, mu_s, sigma_s, features ...).

    ADM's evaluator reads its moments; ``vqbench evaluate --reference OUT`` all of it, under the same protocol's judge.

    Args:
        resolution: crop images to this side by the protocol's rule; by default they are taken as they are.

    Returns:
        the file's ``meta``: protocol, digests of judge, weights and images.
    """
    found = with_judge(load_protocol(protocol), judge) if judge else load_protocol(protocol)
    device = scoring_device()
    request = Request(found, [], True, False, device, Judges(found, device, weights), value_range)
    crop = (resolution, resolution) if resolution else None
    source = open_source(reference, found.images, crop_to=crop, value_range=value_range)
    layers = reference_layers(found) | frozenset[Layer]({"logits"} if found.judge.logits else ())
    known, logits = reference_set(len(source), found), FeatureSet(frozenset(), {"logits": None})
    sets = (known, logits) if found.inception_score is not None else (known,)
    collect(source, request.judges.extractor(layers), found.batch, request.seconds, *sets)
    header = meta(found, source.digest(), request.judges.digests) | {
        "count": known.count,
        "crop": crop,
        "size": source.size,
    }
    header |= _own_score(found, logits)
    save_statistics(out, known, header)
    return header


def _own_score(protocol: Protocol, logits: FeatureSet) -> dict[str, Any]:
    """The reference's own Inception Score, what a perfect model would reach; nothing for fewer images than splits."""
    if protocol.inception_score is None or logits.count < protocol.inception_score.splits:
        return {}
    estimate = InceptionScore(protocol.inception_score).compute(logits, None)["is"]
    return {"is": estimate.value}
