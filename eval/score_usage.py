"""Step ``train-usage``: the codes that the ids of all training images use, of a tokenizer with or without a generator."""

from __future__ import annotations

from typing import Any

import numpy as np

from vqbench.eval.archive import batches
from vqbench.eval.base import Batch
from vqbench.eval.evaluator import Evaluator, Found
from vqbench.eval.protocols import read_protocol
from vqbench.eval.scoring import entries, write_scores
from vqbench.eval.usage import Usage
from vqbench.jobs import Finished, Job
from vqbench.specs import TokenSpec


def run(job: Job) -> dict[str, Any]:
    """Write ``scores.json`` with usage_train, perplexity_train and what else :class:`Usage` gives of the training images."""
    spec, protocol = job.spec, read_protocol(job.spec["protocol"])
    tokens = job.upstream("tokens", f"{spec['tokenizer']}/{spec['dataset']}/train")
    found = training_usage(tokens, TokenSpec(**spec["tokens"]), protocol.batch)
    write_scores(job, entries(found, protocol))
    return {"images": tokens.facts["images"], "protocol": protocol.name}


def training_usage(tokens: Finished, spec: TokenSpec, batch: int) -> list[Found]:
    """Codes of all training images (VQGAN-LC, Table 2), each counted once: their mirror images, which generators also
    learn from, are left out."""
    ids = np.load(tokens.file("ids.npy"), mmap_mode="r")[: tokens.facts["images"]]
    evaluator = Evaluator([Usage(spec, "train")])
    for part in batches(len(ids), batch):
        evaluator.see(Batch(np.arange(part.start, part.stop), ids=np.array(ids[part])))
    return evaluator.streamed()
