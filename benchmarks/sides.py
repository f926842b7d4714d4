"""One side of a comparison that is run in a process of its own: ``python benchmarks/sides.py SIDE FOLDER SIZE``.

Prints JSON: ``seconds`` of the work without imports, ``peak_mb`` (the process' largest resident size during it), ``before_mb``
(its resident size before: imports and inputs), and the ``values`` computed.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from materials import weights
from memory import forget_peak, peak_mb, resident_mb

Work = Callable[[], dict[str, float]]
METRICS = ["fid", "is", "precision", "recall"]


def _plain(report: dict[str, Any]) -> dict[str, float]:
    return {name.partition("[")[0]: entry["value"] for name, entry in report["metrics"].items()}


def sets_engine(folder: Path, _: int) -> Work:
    """FID, IS, precision and recall by the engine."""
    from vqbench.eval.evaluate import evaluate

    return lambda: _plain(
        evaluate(
            folder / "made",
            folder / "other",
            protocol="adm",
            metrics=METRICS,
            weights=weights(folder),
            device="cpu",
        )
    )


def fidelity(made: Path, other: Path, folder: Path) -> dict[str, float]:
    """The same by torch-fidelity with its defaults, and Inception for all of them, as the engine has it."""
    import torch_fidelity

    with warnings.catch_warnings(action="ignore"):
        found = torch_fidelity.calculate_metrics(
            input1=str(made), input2=str(other), cuda=False, isc=True, fid=True, prc=True, cache=False, verbose=False,
            feature_extractor="inception-v3-compat", feature_extractor_weights_path=str(weights(folder)["inception-v3"]),
        )  # fmt: skip
    return {"fid": found["frechet_inception_distance"], "is": found["inception_score_mean"],
            "precision": found["precision"], "recall": found["recall"]}  # fmt: skip


def sets_library(folder: Path, _: int) -> Work:
    """FID, IS, precision and recall by torch-fidelity."""
    import torch_fidelity  # noqa: F401  (its import is not counted)

    return lambda: fidelity(folder / "made", folder / "other", folder)


def bare_forward(folder: Path, count: int) -> Work:
    """The limit: the folded, channels-last Inception alone, on images of 299x299 that are there."""
    from vqbench.eval.features import open_network

    network = open_network("inception-v3", weights(folder)["inception-v3"], torch.device("cpu"))
    images = torch.rand(8, 3, 299, 299).mul(255)

    def work() -> dict[str, float]:
        with torch.inference_mode():
            for _ in range(2 * count // 8):
                network(images, ["2048", "logits_unbiased"])
        return {}

    return work


def suite_engine(folder: Path, count: int) -> Work:
    """The whole suite in one pass over pairs."""
    import lpips  # noqa: F401  (its import is not counted)

    from vqbench.eval.evaluate import evaluate

    names = [*METRICS, "psnr", "ssim", "lpips_alex", "usage"]
    ids = np.random.default_rng(0).integers(0, 16384, (count, 256, 1))
    return lambda: _plain(
        evaluate(folder / "made", folder / "real", protocol="adm", metrics=names, pairs=True,
                 weights=weights(folder), ids=ids, num_codes=16384, device="cpu")
    )  # fmt: skip


def suite_libraries(folder: Path, count: int) -> Work:
    """torch-fidelity, scikit-image and lpips in turn, each reading the images; numpy counts the codes."""
    import lpips
    import torch_fidelity  # noqa: F401
    from PIL import Image
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    with warnings.catch_warnings(action="ignore"):
        network = lpips.LPIPS(net="alex", verbose=False).eval()  # torch's hub cache has its weights
    ids = np.random.default_rng(0).integers(0, 16384, (count, 256, 1))

    def pair(path: Path) -> tuple[np.ndarray, np.ndarray]:
        return np.asarray(Image.open(path)), np.asarray(Image.open(folder / "real" / path.name))

    def tensor(image: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1

    def work() -> dict[str, float]:
        values = fidelity(folder / "made", folder / "real", folder)
        files = sorted((folder / "made").iterdir())
        both = [pair(path) for path in files]
        values["psnr"] = float(np.mean([peak_signal_noise_ratio(b, a, data_range=255) for a, b in both]))
        values["ssim"] = float(np.mean([structural_similarity(b, a, data_range=255, channel_axis=-1) for a, b in both]))
        with torch.no_grad():
            values["lpips_alex"] = float(np.mean([float(network(tensor(b), tensor(a))) for a, b in map(pair, files)]))
        return values | {"usage": 100 * len(np.unique(ids)) / 16384}

    return work


def neighbours_engine(_: Path, count: int) -> Work:
    """Precision and recall of features by the engine."""
    from vqbench.eval.neighbours import ball_counts

    a, b = _features(count)

    def work() -> dict[str, float]:
        found = ball_counts(a, b, 3, True, torch.device("cpu"))
        return {"precision": found.precise / count, "recall": found.recalled / count}

    return work


def neighbours_library(_: Path, count: int) -> Work:
    """The same by torch-fidelity, from the same features."""
    from torch_fidelity.metric_prc import prc_features_to_metric

    a, b = (torch.from_numpy(x) for x in _features(count))

    def work() -> dict[str, float]:
        found = prc_features_to_metric(a, b, prc_neighborhood=3, verbose=False)
        return {k: float(found[k]) for k in ("precision", "recall")}

    return work


def _features(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Two sets (count, 2048) that overlap: few directions carry most of the variance, as in Inception's features."""
    rng = np.random.default_rng(0)
    spread = (1.0 / np.arange(1, 2049) ** 0.7).astype(np.float32)
    a = rng.standard_normal((count, 2048), dtype=np.float32) * spread
    b = rng.standard_normal((count, 2048), dtype=np.float32) * spread * np.float32(1.05)
    return a, b


def read(folder: Path, kind: str) -> Work:
    """Reading and decoding alone."""
    from vqbench.eval.protocols import load_protocol
    from vqbench.eval.sources import open_source

    rules = load_protocol("adm").images
    return lambda: {"images": sum(len(i) for i, _ in open_source(folder / kind, rules).batches(32))}


def read_png(folder: Path, _: int) -> Work:
    """PNG files."""
    return read(folder, "png")


def read_jpeg(folder: Path, _: int) -> Work:
    """JPEG files."""
    return read(folder, "jpeg")


SIDES: dict[str, Callable[[Path, int], Work]] = {
    "sets-engine": sets_engine, "sets-library": sets_library, "bare-forward": bare_forward,
    "suite-engine": suite_engine, "suite-libraries": suite_libraries,
    "neighbours-engine": neighbours_engine, "neighbours-library": neighbours_library,
    "read-png": read_png, "read-jpeg": read_jpeg,
}  # fmt: skip


def main() -> None:
    """Run one side."""
    name, folder, size = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    work = SIDES[name](folder, size)
    forget_peak()
    before, began = resident_mb(), time.perf_counter()
    values = work()
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "peak_mb": peak_mb(), "before_mb": before, "values": values}))


if __name__ == "__main__":
    main()
