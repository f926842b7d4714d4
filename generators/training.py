"""Step ``generator``: train one generator on tokens that were written once; it never sees an image."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from vqbench.errors import naming
from vqbench.generators.base import Generator, build_generator, check_vocabulary
from vqbench.jobs import Job
from vqbench.shuffled import Shuffled
from vqbench.specs import GeneratorSpec
from vqbench.training import Batch, Player, Task, Terms, Trainer, finish


class GeneratorTask(Task):
    """One player, over the rows of the memory-mapped token file."""

    def __init__(self, spec: GeneratorSpec, tokens: np.ndarray, labels: np.ndarray) -> None:
        torch.manual_seed(spec.seed)
        self.spec, self.tokens, self.labels = spec, tokens, labels
        self.model: Generator = build_generator(spec)
        self.players = {"model": Player(self.model, spec.training.optimizer)}
        self.extras: dict[str, nn.Module] = {}
        self._order = Shuffled(spec.seed, len(labels))

    def begin(self, batch: Batch) -> None:
        self.model.begin(batch[0])

    def examples(self, start: int, count: int) -> Batch:
        rows = self._order.rows(start, count)
        kind = np.int64 if np.issubdtype(self.tokens.dtype, np.integer) else np.float32  # ids, or latents
        return torch.from_numpy(self.tokens[rows].astype(kind)), torch.from_numpy(self.labels[rows])

    def terms(self, player: str, batch: Batch, step: int, micro: int, rng: torch.Generator) -> Terms:
        half = self.spec.training.precision == "bf16"
        with torch.autocast(batch[0].device.type, dtype=torch.bfloat16, enabled=half):
            named = self.model.losses(batch[0], batch[1], rng)
        weights = self.spec.training.weights
        total = sum((named[k] * w for k, w in weights.items()), torch.zeros((), device=batch[0].device))
        return Terms(total, named)


def run(job: Job) -> dict[str, Any]:
    """Train, then write ``model.safetensors`` (EMA weights where the recipe keeps them) and ``losses.csv``.

    Raises:
        SpecError: the tokens have another codebook or shape than the generator's spec says, or a set of its samples asks
            its sampler for what it cannot do: said now, not after days of training.
    """
    spec: GeneratorSpec = job.spec
    torch.set_num_threads(spec.threads)
    read = job.upstream(spec.reads, f"{spec.tokenizer}/{spec.dataset}/train")
    tokens = np.load(read.file("ids.npy" if spec.reads == "tokens" else "latents.npy"), mmap_mode="r")
    codes = read.facts.get("codes", spec.tokens.num_codes)  # latents have none
    check_vocabulary(spec, codes, tokens.shape[1:], "/".join(read.key))
    task = GeneratorTask(spec, tokens, np.load(read.file("labels.npy")))
    for name, samples in job.bench.samples.items():
        if samples.generator == job.key[1]:
            with naming(f"samples '{name}'"):
                task.model.check_sampler(samples.sampler)
    trainer = Trainer(task, spec.training, job.state, spec.seed, job.key[1])
    trainer.run()
    finish(trainer, job.store)
    return {"parameters": task.model.parameter_counts(), "steps": trainer.step,
            "images_seen": trainer.step * spec.training.batch_size}  # fmt: skip
