"""The JSON of an evaluation: numbers with what they were made by."""

from __future__ import annotations

import resource
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vqbench import __version__
from vqbench.artifacts import sha256_file
from vqbench.eval.scoring import entries
from vqbench.specs import digest_of

if TYPE_CHECKING:
    from vqbench.eval.evaluator import Found
    from vqbench.eval.request import Request
    from vqbench.eval.sources import Source

PACKAGES = ("torch", "torchvision", "numpy", "scipy", "pillow", "torch-fidelity", "clean-fid", "scikit-image", "lpips",
            "timm", "open_clip_torch", "scikit-learn")  # fmt: skip


def report_of(
    request: Request,
    engine: str,
    generated: Source,
    reference: Any,
    found: list[Found],
    warnings: list[str],
    seconds: float,
) -> dict[str, Any]:
    """Everything that a number's reader may ask: which images, protocol, weights, versions; how long, how much memory."""
    protocol = request.protocol.model_dump(mode="json", by_alias=True)
    return {
        "metrics": entries(found, request.protocol),
        "warnings": warnings,
        "protocol": protocol,
        "protocol_digest": digest_of(protocol),
        "engine": engine,
        "generated": _described(generated),
        "reference": _described(reference),
        "weights": dict(sorted(request.judges.digests.items())),
        "versions": _versions(),
        "device": torch.cuda.get_device_name() if request.device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "seconds": {k: round(v, 3) for k, v in sorted(request.seconds.items())} | {"total": round(seconds, 3)},
        "images_per_second": round(len(generated) / seconds, 2),
        "peak_memory_mb": peak_memory_mb(request.device),
    }


def _described(source: Any) -> dict[str, Any] | None:
    if source is None:
        return None
    if hasattr(source, "meta"):
        path = Path(source.name)
        named = {} if source.meta else {"sha256": sha256_file(path)}  # ADM's say nothing of themselves
        return {"kind": "statistics", "name": path.name, "n": source.count or None, "meta": source.meta, **named}
    return {
        "kind": "images", "name": source.name, "n": len(source), "digest": source.digest(),
        "formats": dict(source.formats), "converted": dict(source.converted),
    }  # fmt: skip


def _versions() -> dict[str, str]:
    found = {"vqbench": __version__, "python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def peak_memory_mb(device: torch.device) -> int:
    """The largest resident size of this process so far, in MiB (on a GPU: of its allocations there)."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated() >> 20)
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)
