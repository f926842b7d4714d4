"""What all scoring steps share: the device, the judge, and ``scores.json``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from vqbench.artifacts import write_json
from vqbench.errors import SpecError
from vqbench.eval.base import Estimate, Facts, Layer
from vqbench.eval.evaluator import Found
from vqbench.eval.features import ClassifierNetwork, Extractor, make_extractor, open_network
from vqbench.eval.protocols import Protocol, metric_name, read_protocol
from vqbench.jobs import Job
from vqbench.pretrained import open_classifier, weights_path
from vqbench.specs import digest_of


class Setting(NamedTuple):
    """What a scoring job runs under."""

    protocol: Protocol
    device: torch.device


def setting(job: Job) -> Setting:
    """The job's protocol and device; sets the threads that its scale states."""
    torch.set_num_threads(job.bench.overlay.threads)
    return Setting(read_protocol(job.spec["protocol"]), scoring_device())


def scoring_device() -> torch.device:
    """The GPU where there is one, with TF32 off: it moves FID in its third digit."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_of(name: str | torch.device) -> torch.device:
    """A device by its name.

    Raises:
        SpecError: no such device, or none on this machine.
    """
    try:
        found = torch.device(name)
    except RuntimeError:
        raise SpecError(f"unknown device '{name}'; give cpu, cuda or cuda:1") from None
    if found.type not in ("cpu", "cuda"):
        raise SpecError(f"scores are computed on cpu or cuda, not on '{name}'")
    if found.type == "cuda" and (found.index or 0) >= (count := torch.cuda.device_count()):
        raise SpecError(f"device '{name}' is not here, torch sees {count} GPUs; give --device cpu or leave it out")
    return found


def judge(job: Job, where: Setting, layers: frozenset[Layer]) -> Extractor:
    """The extractor of the job's judge, for those `layers`.

    Raises:
        SpecError: the scale's network is not the protocol's, or the protocol wants a second one.
    """
    name, wanted = job.spec["judge"], where.protocol.judge
    spec, done = job.bench.pretrained[name], job.upstream("pretrained", name)
    if spec.kind != wanted.network:
        raise SpecError(
            f"the protocol's judge is '{wanted.network}', the scale's is '{spec.kind}'; mend 'protocol' or 'roles.judge'"
        )
    if where.protocol.precision_recall is not None and where.protocol.precision_recall.judge is not None:
        raise SpecError(f"protocol '{where.protocol.name}' wants two judges, a scale has one; take another protocol")
    if spec.kind == "photo-classifier":
        network: Any = ClassifierNetwork(open_classifier(spec, done, where.device))
    else:
        network = open_network(spec.kind, weights_path(spec, done), where.device)
    return make_extractor(wanted, network, where.device, layers)


def entries(found: Iterable[Found], protocol: Protocol) -> dict[str, dict[str, Any]]:
    """``{name under the protocol: entry}``."""
    return {metric_name(base, protocol): entry(facts, estimate, base) for facts, base, estimate in found}


def entry(facts: Facts, estimate: Estimate, name: str = "") -> dict[str, Any]:
    """One metric's line in ``scores.json``; what is undefined (NaN) or infinite is null."""
    units: Mapping[str, str] = getattr(facts, "units", {})
    numbers = {k: v if math.isfinite(v) else None for k, v in estimate._asdict().items() if k != "n"}
    return numbers | {
        "interval": facts.interval, "unit": units.get(name, facts.unit),
        "higher_is_better": facts.higher_is_better, "n": estimate.n,
    }  # fmt: skip


def write_scores(job: Job, metrics: Mapping[str, Any], warnings: Sequence[str] = (), **more: Any) -> None:
    """Write ``scores.json``: metrics, warnings, the whole protocol (as data) with its digest, judge and data set.

    Args:
        warnings: what :class:`vqbench.eval.guards.Guards` says of the images; tables print it below.
    """
    protocol = job.spec["protocol"]
    write_json(job.store / "scores.json", {
        "metrics": dict(metrics), "warnings": list(warnings), "protocol": protocol, "protocol_digest": digest_of(protocol),
        "judge": job.spec.get("judge"), "dataset": job.spec.get("dataset"), **more,
    })  # fmt: skip
