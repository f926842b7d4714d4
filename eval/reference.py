"""Step ``reference``: what FID, precision and recall compare with, for one split of a data set, computed once."""

from __future__ import annotations

import zipfile
from typing import Any, NamedTuple

import numpy as np
import torch

from vqbench.artifacts import write_npz
from vqbench.data import open_images
from vqbench.errors import ArtifactError
from vqbench.eval.fid import Gaussian, Moments
from vqbench.eval.protocols import Protocol
from vqbench.eval.scoring import batches, judge, setting
from vqbench.progress import Progress
from vqbench.seeds import numpy_rng
from vqbench.steps import Finished, Job


class Reference(NamedTuple):
    """Statistics of all images of a split, and the features of the few that precision and recall compare with."""

    gaussian: Gaussian
    features: np.ndarray  # (R, d) float32


def run(job: Job) -> dict[str, Any]:
    """Write ``statistics.npz``: mu (d,), sigma (d, d) float64, n, features (R, d) float32 and their image indices (R,).

    Features are streamed: ImageNet's training set needs no more memory than its covariance and R rows.
    """
    where, spec = setting(job), job.spec
    images = open_images(job.bench.datasets[spec["dataset"]], spec["split"], job.upstream("dataset", spec["dataset"]))
    extract, moments, kept = judge(job, where), Moments(), []
    chosen = choose(len(images), where.protocol)
    progress = Progress(len(images), f"reference {job.key[1]}", "img")
    for part in batches(len(images), where.protocol.batch):
        pooled = extract(images.batch(part.start, part.stop - part.start)).pooled  # (B, d)
        moments.update(pooled)
        inside = chosen[(chosen >= part.start) & (chosen < part.stop)] - part.start
        kept.append(pooled[torch.from_numpy(inside).to(pooled.device)].cpu().numpy())
        progress.update(len(pooled))
    mu, sigma, count = moments.gaussian()
    rows = np.concatenate(kept)
    write_npz(job.store / "statistics.npz", mu=mu, sigma=sigma, n=np.array(count), features=rows, indices=chosen)
    return {"images": count, "kept": len(rows), "dimensions": len(mu)}


def choose(count: int, protocol: Protocol) -> np.ndarray:
    """Sorted indices of the images whose features are kept, the same ones for any batch size; int64 (R,)."""
    neighbours = protocol.precision_recall
    if neighbours is None:
        return np.zeros(0, dtype=np.int64)
    size = min(count, neighbours.reference_count)
    rng = numpy_rng(neighbours.seed, "precision-recall", count)
    return np.sort(rng.choice(count, size, replace=False)).astype(np.int64)


def open_reference(finished: Finished) -> Reference:
    """Read a finished reference.

    Raises:
        ArtifactError: its file is not readable.
    """
    path = finished.file("statistics.npz")
    try:
        with path.open("rb") as file, np.load(file) as data:
            return Reference(Gaussian(data["mu"], data["sigma"], int(data["n"])), data["features"])
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ArtifactError(f"cannot read {path}: {error}; remove its manifest and run again") from None
