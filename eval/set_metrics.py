"""The metrics of image sets that a protocol defines, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

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

Device = torch.device | None


def _block(name: str, block: object, protocol: Protocol) -> None:
    if block is None:
        raise SpecError(
            f"protocol '{protocol.name}' defines no '{name}'; leave it out of --metrics or take another protocol"
        )


def _spatial(protocol: Protocol, device: Device) -> SetMetric:
    _block("sfid", protocol.judge.spatial, protocol)
    return Sfid(device)


def _kid(protocol: Protocol, device: Device) -> SetMetric:
    _block("kid", protocol.kid, protocol)
    assert protocol.kid is not None
    return Kid(protocol.kid, device)


def _is(protocol: Protocol, _: Device) -> SetMetric:
    _block("is", protocol.inception_score, protocol)
    assert protocol.inception_score is not None
    return InceptionScore(protocol.inception_score)


def _infinity(protocol: Protocol, device: Device) -> SetMetric:
    _block("fid_infinity", protocol.fid_infinity, protocol)
    assert protocol.fid_infinity is not None
    return FidInfinity(protocol.fid_infinity, device)


def _neighbours(name: str, protocol: Protocol) -> Neighbours:
    _block(name, protocol.precision_recall, protocol)
    assert protocol.precision_recall is not None
    return protocol.precision_recall


# name -> the metric that computes it. Precision and recall come from one metric, so do density and coverage.
BUILD: dict[str, Callable[[Protocol, Device], SetMetric]] = {
    "fid": lambda p, d: Fid("fid", d),
    "rfid": lambda p, d: Fid("rfid", d),
    "sfid": _spatial,
    "kid": _kid,
    "fid_infinity": _infinity,
    "is": _is,
    "precision": lambda p, d: PrecisionRecall(_neighbours("precision", p), d),
    "recall": lambda p, d: PrecisionRecall(_neighbours("recall", p), d),
    "density": lambda p, d: DensityCoverage(_neighbours("density", p), d),
    "coverage": lambda p, d: DensityCoverage(_neighbours("coverage", p), d),
}


def set_metrics(names: Iterable[str], protocol: Protocol, device: Device = None) -> list[SetMetric]:
    """One metric of each kind that `names` ask for, in their order.

    Args:
        device: of their linear algebra; by default the GPU where there is one.

    Raises:
        SpecError: unknown name, or one that the protocol does not define.
    """
    found: dict[object, SetMetric] = {}
    for name in names:
        if name not in BUILD:
            raise SpecError(f"unknown metric '{name}'; {nearest(name, BUILD)}")
        metric = BUILD[name](protocol, device)
        found.setdefault((type(metric), getattr(metric, "name", "")), metric)
    return list(found.values())
