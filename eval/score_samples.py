"""Step ``sample-scores``: generated images against the training images: FID, IS, precision, recall, codes used."""

from __future__ import annotations

from typing import Any

import numpy as np

from vqbench.errors import ArtifactError
from vqbench.eval.base import Metric
from vqbench.eval.fid import Fid
from vqbench.eval.inception_score import InceptionScore
from vqbench.eval.precision_recall import PrecisionRecall
from vqbench.eval.protocols import Protocol
from vqbench.eval.reference import Reference, open_reference
from vqbench.eval.scoring import Archive, batches, entries, judge, setting, write_scores
from vqbench.eval.usage import Usage
from vqbench.progress import Progress
from vqbench.steps import Job


def run(job: Job) -> dict[str, Any]:
    """Write ``scores.json`` with fid, is, precision, recall, and usage (over the generated ids).

    Raises:
        ArtifactError: the samples and their ids are not equally many, or the archive is damaged.
    """
    where, spec = setting(job), job.spec
    samples = job.upstream("samples", spec["samples"])
    archive, ids = Archive(samples.file("samples.npz"), "arr_0"), np.load(samples.file("ids.npy"), mmap_mode="r")
    if len(archive) != len(ids):
        raise ArtifactError(f"{spec['samples']}: {len(archive)} samples and {len(ids)} rows of ids; sample again")
    reference = open_reference(job.upstream("reference", f"{spec['dataset']}/train"))
    generator = job.bench.generators[job.bench.samples[spec["samples"]].generator]
    sets, usage, extract = set_metrics(reference, where.protocol), Usage(generator.tokens.num_codes), judge(job, where)
    progress = Progress(len(archive), f"score {spec['samples']}", "img")
    for images in archive.batches(where.protocol.batch):
        features = extract(images)
        for metric in sets:
            metric.update(features)
        progress.update(len(images))
    for part in batches(len(ids), where.protocol.batch):
        usage.update(np.array(ids[part]))
    write_scores(job, entries([*sets, usage], where.protocol))
    return {"images": len(archive), "protocol": where.protocol.name}


def set_metrics(reference: Reference, protocol: Protocol) -> list[Metric]:
    """The metrics of image sets that a protocol defines, against a reference."""
    metrics: list[Metric] = [Fid(reference.gaussian, "fid")]
    if protocol.inception_score is not None:
        metrics.append(InceptionScore(protocol.inception_score))
    if protocol.precision_recall is not None:
        metrics.append(PrecisionRecall(reference.features, protocol.precision_recall))
    return metrics
