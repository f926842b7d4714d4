"""The metrics of image sets that a protocol defines, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from vqbench.errors import SpecError, nearest
from vqbench.eval.base import SetMetric
from vqbench.eval.density_coverage import DensityCoverage
from vqbench.eval.fid import Fid
from vqbench.eval.fid_infinity import FidInfinity
from vqbench.eval.inception_score import InceptionScore
from vqbench.eval.kid import Kid
from vqbench.eval.precision_recall import PrecisionRecall
from vqbench.eval.protocols import Neighbours, Protocol
from vqbench.eval.sfid import Sfid


def _block(name: str, block: object, protocol: Protocol) -> None:
    if block is None:
        raise SpecError(
            f"protocol '{protocol.name}' defines no '{name}'; leave it out of --metrics or take another protocol"
        )


def _spatial(protocol: Protocol) -> SetMetric:
    _block("sfid", protocol.judge.spatial, protocol)
    return Sfid()


def _kid(protocol: Protocol) -> SetMetric:
    _block("kid", protocol.kid, protocol)
    assert protocol.kid is not None
    return Kid(protocol.kid)


def _is(protocol: Protocol) -> SetMetric:
    _block("is", protocol.inception_score, protocol)
    assert protocol.inception_score is not None
    return InceptionScore(protocol.inception_score)


def _infinity(protocol: Protocol) -> SetMetric:
    _block("fid_infinity", protocol.fid_infinity, protocol)
    assert protocol.fid_infinity is not None
    return FidInfinity(protocol.fid_infinity)


def _neighbours(name: str, protocol: Protocol) -> Neighbours:
    _block(name, protocol.precision_recall, protocol)
    assert protocol.precision_recall is not None
    return protocol.precision_recall


# name -> the metric that computes it. Precision and recall come from one metric, so do density and coverage.
BUILD: dict[str, Callable[[Protocol], SetMetric]] = {
    "fid": lambda p: Fid("fid"),
    "rfid": lambda p: Fid("rfid"),
    "sfid": _spatial,
    "kid": _kid,
    "fid_infinity": _infinity,
    "is": _is,
    "precision": lambda p: PrecisionRecall(_neighbours("precision", p)),
    "recall": lambda p: PrecisionRecall(_neighbours("recall", p)),
    "density": lambda p: DensityCoverage(_neighbours("density", p)),
    "coverage": lambda p: DensityCoverage(_neighbours("coverage", p)),
}


def set_metrics(names: Iterable[str], protocol: Protocol) -> list[SetMetric]:
    """One metric of each kind that `names` ask for, in their order.

    Raises:
        SpecError: unknown name, or one that the protocol does not define.
    """
    found: dict[object, SetMetric] = {}
    for name in names:
        if name not in BUILD:
            raise SpecError(f"unknown metric '{name}'; {nearest(name, BUILD)}")
        metric = BUILD[name](protocol)
        found.setdefault((type(metric), getattr(metric, "name", "")), metric)
    return list(found.values())
