"""The judge: features of uint8 images, found a few images at a time, so that memory does not grow with the batch.

Letters: B images, H W pixels, d feature length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from vqbench.errors import SpecError, nearest
from vqbench.eval.base import Features, Layer
from vqbench.eval.judge_kinds import ClassifierNetwork, open_network
from vqbench.eval.judge_network import JudgeNetwork
from vqbench.eval.protocols import Judge
from vqbench.eval.resize import resize

__all__ = ["ClassifierNetwork", "Extractor", "JudgeNetwork", "make_extractor", "open_network"]

Extractor = Callable[[np.ndarray], Features]  # uint8 (B, H, W, 3) -> Features on the judge's device
GPU_CHUNK = 128  # images that run together there: few leave it idle


def make_extractor(
    judge: Judge,
    network: JudgeNetwork,
    device: torch.device,
    layers: frozenset[Layer],
    manifold: tuple[Judge, JudgeNetwork] | None = None,
) -> Extractor:
    """What gives the `layers` of images; others are not computed.

    Args:
        judge: resize, size, and the names of the network's layers.
        manifold: a judge of its own for precision, recall, density and coverage; None: "manifold" is "pooled".

    Returns:
        uint8 (B, H, W, 3) -> :class:`Features`: what was not asked for is None, `pooled` then (B, 0). The batch an
        image comes in does not matter beyond the rounding of float32 (of Inception, measured on a CPU: logits by 2e-7,
        the rest not at all).

    Raises:
        SpecError: the network has no such layer, the judge names none for a layer asked for, or it states another size
            than the network takes.
    """
    names: dict[Layer, str | None] = {"pooled": judge.features, "logits": judge.logits, "spatial": judge.spatial}
    _check(judge, network, [name for name in names.values() if name is not None])
    own = layers - {"manifold"} | ({"pooled"} if "manifold" in layers and manifold is None else set())
    wanted = {layer: _named(name, layer, judge) for layer, name in names.items() if layer in own}
    second: tuple[Judge, JudgeNetwork] | None = None
    if manifold is not None and "manifold" in layers:
        second = manifold
        _check(*second, [second[0].features])

    def extract(images: np.ndarray) -> Features:
        found = run(judge, network, images, device, wanted)
        if second is not None:
            found |= run(*second, images, device, {"manifold": second[0].features})
        pooled = found.pop("pooled", torch.empty(len(images), 0, device=device))
        return Features(pooled, **found)

    return extract


def run(
    judge: Judge, network: JudgeNetwork, images: np.ndarray, device: torch.device, wanted: Mapping[Layer, str]
) -> dict[Layer, Tensor]:
    """The `wanted` layers of images (B, H, W, 3) uint8, under our names: each (B, d) float32."""
    assert images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] == 3, "the judge takes uint8 RGB"
    chunk, names = network.chunk if device.type == "cpu" else GPU_CHUNK, sorted(set(wanted.values()))
    parts = []
    with torch.inference_mode(), full_precision():
        for start in range(0, len(images) if names else 0, chunk):
            levels = resize(images[start : start + chunk], judge.resize, judge.size, device)  # (b, 3, S, S)
            if judge.gain != 1:
                levels = levels * judge.gain
            parts.append(network(levels, names))
    return {layer: torch.cat([part[name] for part in parts]) for layer, name in wanted.items()}


@contextmanager
def full_precision() -> Iterator[None]:
    """No TF32 on a GPU, whoever calls: it moves FID in its third digit."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


def _named(name: str | None, layer: Layer, judge: Judge) -> str:
    if name is None:
        raise SpecError(f"the protocol names no '{layer}' layer of its judge '{judge.network}'; add it to 'judge'")
    return name


def _check(judge: Judge, network: JudgeNetwork, names: list[str]) -> None:
    for name in names:
        if name not in network.layers:
            raise SpecError(f"judge '{judge.network}' has no layer '{name}'; {nearest(name, network.layers)}")
    if network.size is not None and judge.size != network.size:
        raise SpecError(f"judge '{judge.network}' takes images of {network.size} pixels; mend 'size: {judge.size}'")
