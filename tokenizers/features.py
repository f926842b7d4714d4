"""Step ``features``: a teacher's patch features of a training split, written once for all codebooks that are made from them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vqbench.data import open_images
from vqbench.errors import ArtifactError, SpecError
from vqbench.jobs import Job
from vqbench.specs import FeaturesSpec
from vqbench.tokenizers.encoding import write_split
from vqbench.tokenizers.teachers import open_teacher, patch_features
from vqbench.training import device


def run(job: Job) -> dict[str, Any]:
    """Write ``features.npy`` float16 (n * g * g, D) and ``labels.npy`` int64 (n,), the class of each image.

    Rows ``i * g * g ...`` are image i's, row by row of its grid. Half precision, as the released code saves CLIP's features:
    32 GB of ImageNet instead of 63, and what it rounds off (2^-11) is far below the spread of a cluster.

    Raises:
        ArtifactError: a feature is not finite.
        SpecError: the teacher's features have another length than the spec says.
    """
    spec: FeaturesSpec = job.spec
    torch.set_num_threads(spec.threads)
    images = open_images(job.bench.datasets[spec.dataset], "train", job.upstream("dataset", spec.dataset))
    network = job.bench.pretrained[spec.network]
    teacher = open_teacher(network, spec.layer, job.upstream("pretrained", spec.network), device())

    def make(batch: Tensor) -> tuple[Tensor, ...]:
        found = patch_features(teacher, batch, spec.grid).half()
        if found.shape[1] != spec.dim:
            raise SpecError(f"'{spec.network}' gives features of length {found.shape[1]}, not {spec.dim}")
        if not torch.isfinite(found).all():
            raise ArtifactError(f"a feature of '{spec.network}' on data set '{spec.dataset}' is not finite in half "
                                "precision; its weights are damaged: fetch or train them again")  # fmt: skip
        return (found,)

    rows = spec.grid**2
    facts = write_split(job, ("features",), images, make, rows=rows)
    return facts and facts | {"features": facts["images"] * rows, "dim": spec.dim, "teacher": spec.network}
