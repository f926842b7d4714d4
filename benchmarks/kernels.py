"""Comparisons within one process, both sides in turn: ``python benchmarks/kernels.py CASE RUNS SCALE``.

Prints JSON: seconds of every run by side, and what the sides' values differ by. SCALE divides the sizes (1: the real ones).
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from materials import crop, distort
from memory import forget_peak, peak_mb, resident_mb

Side = Callable[[], Any]
SLOW = {"sqrtm", "vector-quantize-pytorch"}  # run once or twice: they take 15 s and more


def alternate(sides: dict[str, Side], runs: int) -> dict[str, Any]:
    """Each side `runs` times in turn, after one run of each to warm up; the slow ones once, unwarmed."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    values = {name: work() for name, work in sides.items() if name not in SLOW}
    for run in range(runs):
        for name, work in sides.items():
            if name in SLOW and run:
                continue
            began = time.perf_counter()
            values[name] = work()
            seconds[name].append(time.perf_counter() - began)
    return {"seconds": seconds, "values": values}


def ssim(runs: int, scale: int, window: str, threads: int) -> dict[str, Any]:
    """SSIM of 256x256 RGB pairs; scikit-image on as many threads."""
    from skimage.metrics import structural_similarity

    from vqbench.eval.protocols import Window
    from vqbench.eval.ssim import Ssim

    torch.set_num_threads(threads)
    gaussian = window == "gaussian"
    settings = (
        {"size": 11, "sigma": 1.5, "covariance": "population"} if gaussian else {"size": 7, "covariance": "sample"}
    )
    metric = Ssim(Window(window=window, data_range=255, channels="rgb", **settings))  # type: ignore[arg-type]
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False} if gaussian else {}
    originals = np.stack([crop(i, 256) for i in range(max(4, 32 // scale))])
    images = np.stack([distort(image, i) for i, image in enumerate(originals)])
    one = partial(structural_similarity, channel_axis=-1, data_range=255, **options)
    with ThreadPoolExecutor(threads) as pool:
        return _compared(alternate({
            "engine": lambda: metric.values(images, originals).mean(),
            "scikit-image": lambda: np.mean(list(pool.map(one, originals, images))),
        }, runs))  # fmt: skip


def frechet(runs: int, scale: int, images: int, finished: bool = False) -> dict[str, Any]:
    """Frechet distance, d = 2048, from the features of so many images a set, or from their finished mu and sigma."""
    from scipy.linalg import sqrtm
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    from vqbench.eval.feature_set import Gaussian, gaussian_of
    from vqbench.eval.frechet import frechet_distance

    d, count = 2048 // scale, images // scale
    rng, mixing = np.random.default_rng(0), 1 / np.arange(1, d + 1) ** 0.7
    sets = [(rng.standard_normal((count, d)) * mixing * s).astype(np.float32) for s in (1, 1.1)]
    known = [gaussian_of(x).by_moments() for x in sets] if finished else []

    def ours() -> list[Gaussian]:
        return known or [gaussian_of(x) for x in sets]

    def theirs() -> list[dict[str, np.ndarray]]:
        if known:
            return [{"mu": g.mu, "sigma": g.sigma} for g in known]
        return [fid_features_to_statistics(torch.from_numpy(x)) for x in sets]

    def scipys() -> float:
        a, b = theirs()
        root = sqrtm(a["sigma"] @ b["sigma"])
        gap = np.subtract(a["mu"], b["mu"], dtype=np.float64)
        return float((gap**2).sum() + np.trace(a["sigma"] + b["sigma"] - 2 * np.real(root)))

    def fidelitys() -> float:
        with warnings.catch_warnings(action="ignore"):
            return float(fid_statistics_to_metric(*theirs(), verbose=False)["frechet_inception_distance"])

    return _compared(
        alternate({"engine": lambda: frechet_distance(*ours()), "torch-fidelity": fidelitys, "sqrtm": scipys}, runs)
    )


def nearest(runs: int, scale: int, codes: int, vectors: int, dim: int) -> dict[str, Any]:
    """Nearest of K codes for M vectors; the peers are the bare product, chunked cdist, vector-quantize-pytorch."""
    from vqbench.tokenizers.quantizers.nearest import nearest_code

    rng = torch.Generator().manual_seed(0)
    z, e = (torch.randn(n // scale, dim, generator=rng) for n in (vectors, codes))
    forget_peak()
    before = resident_mb()
    first = nearest_code(z, e)  # first of all: memory that others gave back would hide what it takes
    extra = peak_mb() - before - 8 * len(z) / 2**20  # but the ids
    chunk = max(1, (256 << 20) // (4 * len(e)))

    def product() -> None:
        out = torch.empty(chunk, len(e))
        for part in z.split(chunk):
            torch.mm(part, e.T, out=out[: len(part)])

    def cdist() -> torch.Tensor:
        return torch.cat([torch.cdist(part, e).argmin(1) for part in z.split(chunk)])

    sides = {"engine": lambda: nearest_code(z, e), "product": product, "cdist": cdist,
             "vector-quantize-pytorch": _their_lookup(z, e)}  # fmt: skip
    found = alternate(sides, runs)
    values = found.pop("values")
    agreed = {k: float((v == first).double().mean()) for k, v in values.items() if v is not None}
    return found | {"extra_mb": extra, "agreement": agreed}


def _their_lookup(z: torch.Tensor, e: torch.Tensor) -> Side:
    from vector_quantize_pytorch import VectorQuantize

    theirs = VectorQuantize(dim=z.shape[1], codebook_size=len(e)).eval()
    theirs.codebook = e

    @torch.no_grad()
    def work() -> torch.Tensor:
        found: torch.Tensor = theirs(z[None])[1][0]
        return found

    return work


def _compared(found: dict[str, Any]) -> dict[str, Any]:
    values = {k: float(v) for k, v in found["values"].items()}
    base = values["engine"]
    return found | {"values": values, "difference": {k: abs(v - base) / abs(base) for k, v in values.items()}}


CASES: dict[str, Callable[[int, int], dict[str, Any]]] = {
    **{f"ssim-{w}-{t}": partial(ssim, window=w, threads=t) for w in ("uniform", "gaussian") for t in (1, 2)},
    "frechet-moments": partial(frechet, images=5000, finished=True),
    **{f"frechet-{n}": partial(frechet, images=n) for n in (1000, 5000)},
    **{f"nearest-{k}-{d}": partial(nearest, codes=k, vectors=m, dim=d)
       for k, m in ((16384, 65536), (131072, 8192)) for d in (256, 8)},
}  # fmt: skip

if __name__ == "__main__":
    print(json.dumps(CASES[sys.argv[1]](int(sys.argv[2]), int(sys.argv[3]))))
