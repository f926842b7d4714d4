"""Step ``classifier``: train a vision transformer on the token maps of a frozen tokenizer (VQGAN-LC, Sec. 3.3).

It reads the ids that were written once, and of the tokenizer the codebook alone; it never sees an image.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqbench.eval.token_classifier import TokenClassifier
from vqbench.jobs import Job
from vqbench.pretrained import weights_path
from vqbench.seeds import derive
from vqbench.shuffled import Shuffled
from vqbench.specs import NO_WEIGHTS, ClassifierSpec
from vqbench.switches import at_least_fp32
from vqbench.tokenizers.base import Quantizer, open_tokenizer
from vqbench.training import Batch, Player, Task, Terms, Trainer, device, finish


class ClassifierTask(Task):
    """One player. `ids` (n * views, N, Q), memory-mapped, and their labels (n * views,)."""

    def __init__(
        self, spec: ClassifierSpec, model: TokenClassifier, codes: Quantizer, ids: np.ndarray, labels: np.ndarray
    ) -> None:
        self.spec, self.model, self.codes, self.ids, self.labels = spec, model, codes, ids, labels
        self.players = {"model": Player(model, spec.training.optimizer)}
        self.extras: dict[str, nn.Module] = {}
        self._order = Shuffled(spec.seed, len(labels))

    def begin(self, batch: Batch) -> None:
        self.model.scale.measure(self.codes.lookup(batch[0]))

    def examples(self, start: int, count: int) -> Batch:
        rows = self._order.rows(start, count)
        return torch.from_numpy(self.ids[rows].astype(np.int64)), torch.from_numpy(self.labels[rows])

    def terms(self, player: str, batch: Batch, step: int, micro: int, rng: torch.Generator) -> Terms:
        ids, labels = batch
        training = self.spec.training
        with torch.autocast(ids.device.type, dtype=torch.bfloat16, enabled=training.precision == "bf16"):
            logits = self.model(self.codes.lookup(ids))  # (B, classes)
        loss = F.cross_entropy(at_least_fp32(logits), labels, label_smoothing=training.label_smoothing)
        right: Tensor = (logits.argmax(1) == labels).float().mean()
        return Terms(training.weights["cross_entropy"] * loss, {"cross_entropy": loss, "accuracy": right})


def run(job: Job) -> dict[str, Any]:
    """Train, then write ``model.safetensors`` (EMA weights where the recipe keeps them) and ``losses.csv``.

    Raises:
        MissingWeights: the recipe starts from pretrained weights, and the file does not hold them.
    """
    spec: ClassifierSpec = job.spec
    torch.set_num_threads(spec.threads)
    torch.manual_seed(derive(spec.seed, "classifier"))
    model = TokenClassifier(spec)
    if spec.network.weights != NO_WEIGHTS:
        role = job.bench.pretrained[spec.network.weights]
        model.start_from(weights_path(role, job.upstream("pretrained", spec.network.weights)))
    tokens = job.upstream("tokens", f"{spec.tokenizer}/{spec.dataset}/train")
    ids, labels = np.load(tokens.file("ids.npy"), mmap_mode="r"), np.load(tokens.file("labels.npy"))
    task = ClassifierTask(spec, model, open_codes(job, spec.tokenizer), ids, labels)
    trainer = Trainer(task, spec.training, job.state, spec.seed, job.key[1])
    trainer.run()
    finish(trainer, job.store)
    return {"parameters": sum(p.numel() for p in model.parameters()), "steps": trainer.step,
            "images_seen": trainer.step * spec.training.batch_size}  # fmt: skip


def open_codes(job: Job, tokenizer: str) -> Quantizer:
    """The frozen quantizer of a tokenizer, for its look-up; encoder and decoder are let go."""
    return open_tokenizer(job.bench.tokenizers[tokenizer], job.upstream("tokenizer", tokenizer)).quantizer.to(device())
