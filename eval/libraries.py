"""``--engine reference``: the libraries as they are, what a doubter runs and what the engine is checked against.

torch-fidelity (FID, KID, IS, precision, recall), clean-fid (FID and KID of its protocols), scikit-image (PSNR, SSIM) and
lpips, with the numbers that the protocol states. Slow, more memory, no intervals. Images come from the same sources as
the engine's, so both score the same pixels.

Letters: n generated, m reference images, H W pixels.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from vqbench.errors import SpecError
from vqbench.eval.base import Estimate, Facts
from vqbench.eval.evaluator import Found
from vqbench.eval.feature_set import choose
from vqbench.eval.features import ClassifierNetwork
from vqbench.eval.fid import Fid
from vqbench.eval.inception_score import InceptionScore
from vqbench.eval.judges import STAND_IN, Judges
from vqbench.eval.kid import Kid
from vqbench.eval.library_pairs import lpips, not_scikit_image, psnr, ssim
from vqbench.eval.library_spool import spool
from vqbench.eval.perceptual import Lpips
from vqbench.eval.precision_recall import PrecisionRecall
from vqbench.eval.protocols import ALEX, Protocol
from vqbench.eval.psnr import Psnr
from vqbench.eval.set_metrics import BUILD, set_metrics
from vqbench.eval.sources import Source
from vqbench.eval.ssim import Ssim

if TYPE_CHECKING:
    from vqbench.eval.request import Request

# What libraries compute, and the engine's metric whose unit and direction it has.
METRICS: dict[str, type[Facts]] = {
    "fid": Fid, "rfid": Fid, "kid": Kid, "is": InceptionScore, "precision": PrecisionRecall, "recall": PrecisionRecall,
    "psnr": Psnr, "ssim": Ssim, "lpips": Lpips, "lpips_alex": Lpips,
}  # fmt: skip
CLEAN = ("fid", "rfid", "kid")  # what clean-fid has
MEND = "leave it out of --metrics, or take --engine vqbench"


def score_with_libraries(
    request: Request, generated: Source, reference: Source | None
) -> tuple[list[Found], list[str]]:
    """What the request asks for, by libraries alone.

    Args:
        request: its protocol, names, pairs, judges, device; seconds are counted under the libraries' names.
        generated: n images.
        reference: m images; with ``request.pairs`` the originals of `generated`.

    Returns:
        values in the order of the names, their intervals NaN; and what was left out with the reason, where the
        metrics are the protocol's own list.

    Raises:
        SpecError: no library computes a metric that the user named, or any of the protocol's.
        DataError: images of several sizes, or no room for them on the disk.
        MissingWeights: weights that are not there, or are not what the library loads.
    """
    names, left = _plan(request, len(generated), None if reference is None else len(reference))
    with tempfile.TemporaryDirectory(prefix="vqbench-") as folder:
        images, others = spool(generated, reference, request.pairs, request.protocol.batch, Path(folder))
        values: dict[str, tuple[float, int]] = {}  # value, images behind it
        sets = [name for name in names if name in BUILD]
        values |= _sets(request, sets, images, others) if sets else {}
        if request.pairs and others is not None:
            values |= _pairs(request, [name for name in names if name not in BUILD], images, others)
    return [_found(name, values[name]) for name in names], left


def _found(name: str, value: tuple[float, int]) -> Found:
    metric = METRICS[name]
    facts: Facts = type(f"Library{metric.__name__}", (Facts,), {
        "unit": metric.unit, "higher_is_better": metric.higher_is_better,
        "interval": "none: the library gives none", "not_finite": "as the library gives it",
    })()  # fmt: skip
    return Found(facts, name, Estimate(value[0], math.nan, math.nan, value[1]))


def _plan(request: Request, n: int, m: int | None) -> tuple[list[str], list[str]]:
    """Names that a library computes, and why others are left out."""
    names, left = [], []
    for name in request.names:
        reason = why_not(name, request.protocol, n, m)
        if reason and request.explicit:
            raise SpecError(f"'{name}': {reason}; {MEND}")
        if reason:
            left.append(f"{name} is left out: {reason}")
        else:
            names.append(name)
    if not names:
        raise SpecError(f"the libraries compute nothing of this: {'; '.join(left)}; take --engine vqbench")
    return names, left


def why_not(name: str, protocol: Protocol, n: int, m: int | None) -> str:
    """Why no library computes a metric under a protocol for n and m images; empty where one does."""
    if name in BUILD:
        try:
            set_metrics([name], protocol)
        except SpecError as error:
            return str(error).partition(";")[0]
    if name not in METRICS:
        return f"no library here computes it under protocol '{protocol.name}'"
    if m is None and name != "is":
        return "it compares with a reference, there is none (--reference)"
    if name == "ssim":
        return not_scikit_image(protocol.ssim)
    return _not_a_set(name, protocol, n, m or n) if name in BUILD else ""


def _not_a_set(name: str, protocol: Protocol, n: int, m: int) -> str:
    from vqbench.eval.library_clean_fid import clean_mode
    from vqbench.eval.library_torch_fidelity import fidelity_layer, judge_of, not_cut, not_given

    splits, kernel, neighbours = protocol.inception_score, protocol.kid, protocol.precision_recall
    clean = name in CLEAN and clean_mode(protocol) is not None
    if not clean and (reason := not_given(judge_of(name, protocol), fidelity_layer(name, protocol))):
        return reason
    if name == "is" and splits is not None and (reason := not_cut(splits, n)):
        return reason
    if name == "kid" and kernel is not None:
        if clean and (kernel.degree, kernel.gamma, kernel.coef0) != (3, None, 1.0):
            return "clean-fid's kernel is (x y / d + 1)^3"
        if not clean and kernel.subset_size > min(n, m):  # clean-fid takes smaller subsets then
            return f"its subsets are of {kernel.subset_size} images, there are {n} and {m}"
    if name in ("precision", "recall") and neighbours is not None:
        if neighbours.comparison != "<=":
            return f"torch-fidelity compares by <=, the protocol by {neighbours.comparison}"
        if min(n, len(choose(m, neighbours))) <= neighbours.neighborhood:
            return f"it needs more than {neighbours.neighborhood} images a set, there are {n} and {m}"
    return "it needs 2 images a set" if min(n, m) < 2 else ""


def _sets(
    request: Request, names: list[str], images: np.ndarray, others: np.ndarray | None
) -> dict[str, tuple[float, int]]:
    """What compares sets of features."""
    from vqbench.eval.library_clean_fid import clean_distances, clean_features, clean_mode
    from vqbench.eval.library_torch_fidelity import Tensors, fidelity_call, judge_of

    protocol, values = request.protocol, dict.fromkeys(names, math.nan)
    mode = clean_mode(protocol)
    clean = [name for name in names if name in CLEAN] if mode else []
    if mode and clean and others is not None:
        weights = request.judges.file(protocol.judge.network)
        with _clock(request, "clean-fid"):
            features = [clean_features(x, mode, weights, protocol.batch, request.device) for x in (images, others)]
            values |= clean_distances(clean, features[0], features[1], protocol.kid)
    for group, chosen in _calls([name for name in names if name not in clean], protocol, others):
        network = _network(request.judges, judge_of(group[0], protocol).network)
        reference = None if others is None else Tensors(others, chosen)
        with _clock(request, "torch-fidelity"):
            values |= fidelity_call(group, protocol, Tensors(images), reference, network, request.device)
    return {name: (value, len(images)) for name, value in values.items()}


def _calls(
    names: list[str], protocol: Protocol, others: np.ndarray | None
) -> Iterator[tuple[list[str], np.ndarray | None]]:
    """Metrics that one call can compute, and the reference images that they read (None: all): one network, one seed."""
    from vqbench.eval.library_torch_fidelity import judge_of

    splits, kernel, neighbours = protocol.inception_score, protocol.kid, protocol.precision_recall
    seed = splits.seed if splits else 0
    m = 0 if others is None else len(others)
    part = choose(m, neighbours) if neighbours else np.arange(m)
    groups: dict[tuple[str, bool, int], list[str]] = {}
    for name in names:
        some = name in ("precision", "recall") and len(part) < m
        own = kernel.seed if name == "kid" and kernel else seed
        groups.setdefault((judge_of(name, protocol).network, some, own), []).append(name)
    for (_, some, _), group in groups.items():
        yield group, part if some else None


def _network(judges: Judges, kind: str) -> Path | nn.Module:
    """The weights file of a network, or the stand-in itself, which torch-fidelity cannot open."""
    if kind != STAND_IN:
        return judges.file(kind)
    network = judges.network(kind)
    assert isinstance(network, ClassifierNetwork)
    return network.classifier


def _pairs(
    request: Request, names: list[str], images: np.ndarray, originals: np.ndarray
) -> dict[str, tuple[float, int]]:
    """What compares image pairs."""
    protocol = request.protocol
    values: dict[str, tuple[float, int]] = {}
    for name in names:
        pairs = zip(originals, images, strict=True)
        if name.startswith("lpips"):
            distance = ALEX if name == "lpips_alex" else protocol.lpips
            network = request.judges.lpips(distance)
            with _clock(request, "lpips"):
                values[name] = lpips(images, originals, network, protocol.batch, distance.rescaled)
            continue
        with _clock(request, "scikit-image"):
            values[name] = psnr(pairs, protocol.psnr) if name == "psnr" else ssim(pairs, protocol.ssim)
    return values


@contextmanager
def _clock(request: Request, library: str) -> Iterator[None]:
    """Count the seconds of a block under a library's name."""
    began = time.perf_counter()
    try:
        yield
    finally:
        request.seconds[library] += time.perf_counter() - began
