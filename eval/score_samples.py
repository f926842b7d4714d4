"""Step ``sample-scores``: generated images against the training images: FID, IS, precision, recall ..., codes used."""

from __future__ import annotations

from typing import Any

import numpy as np

from vqbench import distributed
from vqbench.errors import ArtifactError
from vqbench.eval.archive import Archive, batches, read_array
from vqbench.eval.base import Batch, SetMetric
from vqbench.eval.evaluator import Evaluator, layers_of
from vqbench.eval.guards import Guards
from vqbench.eval.protocols import JUDGED, Protocol
from vqbench.eval.reference import open_reference
from vqbench.eval.score_usage import training_usage
from vqbench.eval.scoring import entries, judge, setting, write_scores
from vqbench.eval.seen import Seen
from vqbench.eval.set_metrics import set_metrics
from vqbench.eval.usage import Usage
from vqbench.jobs import Job
from vqbench.progress import Progress


def run(job: Job) -> dict[str, Any]:
    """Write ``scores.json`` with the protocol's set metrics, and the codes of the generated ids and of the training images.

    Raises:
        ArtifactError: the samples and their ids are not equally many, or the archive is damaged.
    """
    where, spec = setting(job), job.spec
    samples = job.upstream("samples", spec["samples"])
    archive, ids = Archive(samples.file("samples.npz"), "arr_0"), np.load(samples.file("ids.npy"), mmap_mode="r")
    seen = seen_samples(archive)
    if len(archive) != len(ids):
        raise ArtifactError(f"{spec['samples']}: {len(archive)} samples and {len(ids)} rows of ids; sample again")
    reference = open_reference(
        job.upstream("reference", f"{spec['dataset']}/{job.bench.datasets[spec['dataset']].fid_reference}"),
        where.protocol,
    )
    generator = job.bench.generators[job.bench.samples[spec["samples"]].generator]
    sets = generation_metrics(where.protocol)
    evaluator = Evaluator([Usage(generator.tokens, "generated")], sets, judge(job, where, layers_of(sets)))
    parts = list(batches(len(ids), where.protocol.batch))
    mine = distributed.share(range(len(parts)))
    progress = Progress(len(archive), f"score {spec['samples']}", "img")
    for number, images in enumerate(archive.batches(where.protocol.batch)):
        if number not in mine:
            continue
        part = parts[number]
        batch = Batch(np.arange(part.start, part.stop), images, ids=np.array(ids[part]))
        evaluator.see(batch)
        seen.add(batch.indices, images, "npz")
        progress.update(len(images))
    evaluator.gather()
    seen.gather()
    if distributed.rank():
        return {}
    trained_on = training_usage(job.upstream("tokens", spec["tokens"]), generator.tokens, where.protocol.batch)
    found = [*evaluator.compute(reference), *trained_on]
    warnings = Guards(where.protocol, generation_names(where.protocol)).warnings(seen, reference)
    write_scores(job, entries(found, where.protocol), warnings)
    return {"images": len(archive), "protocol": where.protocol.name}


def generation_metrics(protocol: Protocol) -> list[SetMetric]:
    """The metrics of generated images that the protocol lists."""
    return set_metrics(generation_names(protocol), protocol)


def generation_names(protocol: Protocol) -> list[str]:
    """Their names."""
    return [name for name in protocol.metrics if name in JUDGED and name != "rfid"]


def seen_samples(archive: Archive) -> Seen:
    """Nothing of the samples seen yet; their size, and the classes that were asked for (``arr_1``), are known."""
    return Seen(len(archive), archive.shape[1:3], read_array(archive.path, "arr_1").astype(np.int64))
