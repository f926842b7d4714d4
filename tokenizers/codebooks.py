"""Step ``codebook``: K vectors of length D, made once from a teacher's patch features, for tokenizers that train none.

VQGAN-LC (Sec. 3.2, 4.3): k-means over all features, or class by class as the released code does
(zh460045050/VQGAN-LC:codebook_generation/minibatch_kmeans_per_class.py); features drawn at random; or random numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from vqbench.artifacts import read_array, write_npy, write_tensors
from vqbench.errors import SpecError
from vqbench.jobs import Job
from vqbench.notice import Notice
from vqbench.progress import Progress
from vqbench.seeds import numpy_rng
from vqbench.specs import CodebookSpec
from vqbench.tokenizers.kmeans import Clusters, Features, KMeans, cluster
from vqbench.tokenizers.quantizers.projected import CODEBOOK


def run(job: Job) -> dict[str, Any]:
    """Write ``codebook.safetensors`` (``codebook``: (K, D) float32) and, of clusters, ``counts.npy`` (K,): features of each.

    Facts: codes, dim, features; of clusters also inertia (of a class within the class), empty (in the end), reseeded (on
    the way).

    Raises:
        SpecError: fewer features than codes, in all or in a class.
        ArtifactError: a feature is not finite; names the file.
    """
    spec: CodebookSpec = job.spec
    torch.set_num_threads(spec.threads)
    with threadpool_limits(limits=spec.threads):
        codes, facts = METHODS[spec.method](job, spec)
    write_tensors(job.store / CODEBOOK, {"codebook": torch.from_numpy(codes)})
    return {"codes": len(codes), "dim": codes.shape[1], **facts}


def _random(_: Job, spec: CodebookSpec) -> tuple[np.ndarray, dict[str, Any]]:
    """Uniform in [-1 / K, 1 / K], as zh460045050/VQGAN-LC:vqgan-gpt-lc/models/models_vq.py has it ("Random Fix"); the paper
    prints no distribution."""
    bound = 1 / spec.num_codes
    drawn = numpy_rng(spec.seed, "codebook").uniform(-bound, bound, (spec.num_codes, spec.code_dim))
    return drawn.astype(np.float32), {}


def _drawn(job: Job, spec: CodebookSpec) -> tuple[np.ndarray, dict[str, Any]]:
    features, _ = _read(job, spec)
    rows = numpy_rng(spec.seed, "codebook").choice(len(features), spec.num_codes, replace=False)
    return features.take(rows), {"features": len(features)}


def _clustered(job: Job, spec: CodebookSpec) -> tuple[np.ndarray, dict[str, Any]]:
    features, labels = _read(job, spec)
    how = KMeans(spec.num_codes // spec.classes, spec.passes, spec.batch_size, spec.seed)
    with Notice() as notice:
        parts = list(_parts(job, spec, features, labels, how, notice))
    counts = np.concatenate([part.counts for part in parts])
    write_npy(job.store / "counts.npy", counts)
    facts = {"features": len(features), "inertia": sum(part.inertia for part in parts),
             "empty": int((counts == 0).sum()), "reseeded": sum(part.reseeded for part in parts),
             "largest": int(counts.max())}  # fmt: skip
    return np.concatenate([part.centres for part in parts]), facts


def _parts(
    job: Job, spec: CodebookSpec, features: Features, labels: np.ndarray, how: KMeans, notice: Notice
) -> Iterator[Clusters]:
    """The clusters of all features, or of each class in order; a class is saved when it is done."""
    if spec.method == "kmeans":
        yield cluster(features, np.arange(len(features)), how, job.state / "all", notice)
        return
    per_image = len(features) // len(labels)
    sizes = np.bincount(labels, minlength=spec.classes) * per_image  # features of each class
    if sizes[smallest := int(sizes.argmin())] < how.clusters:
        raise SpecError(f"class {smallest} of '{spec.dataset}' has {sizes[smallest]} features, fewer than its {how.clusters} "
                        "codes; lower num_codes, or set method: kmeans")  # fmt: skip
    progress = Progress(spec.classes, job.key[1], "class")
    for label in range(spec.classes):
        images = np.flatnonzero(labels == label)  # (n,)
        rows = (images[:, None] * per_image + np.arange(per_image)).ravel()  # (n * g * g,)
        folder = job.state / f"class-{label}"
        yield cluster(features, rows, how, folder, notice, "class", label, every=how.passes + 1)
        progress.update()


def _read(job: Job, spec: CodebookSpec) -> tuple[Features, np.ndarray]:
    """The features (M, D) and the class of each image."""
    made = job.upstream("features", f"{spec.teacher}/{spec.dataset}")
    features, labels = Features(made.file("features.npy")), np.asarray(read_array(made.file("labels.npy")))
    if len(features) < spec.num_codes:  # images were skipped: their number was known when the job was planned
        raise SpecError(
            f"{features.path} holds {len(features)} features, fewer than {spec.num_codes} codes; lower num_codes"
        )
    return features, labels


Method = Callable[[Job, CodebookSpec], tuple[np.ndarray, dict[str, Any]]]
METHODS: dict[str, Method] = {
    "kmeans": _clustered, "kmeans-per-class": _clustered, "random-features": _drawn, "random": _random,
}  # fmt: skip
