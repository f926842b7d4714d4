"""Step ``tokenizer``: train one tokenizer by its recipe.

The model gives named, unweighted terms; the recipe's ``weights`` choose and weigh them; perceptual, adversarial and
discriminator terms are added here, so that a family's file holds only the model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vqbench import distributed
from vqbench.artifacts import write_npy, write_text
from vqbench.data import Images, open_images, to_float
from vqbench.errors import SpecError, nearest
from vqbench.jobs import Job
from vqbench.pretrained import open_perceptual
from vqbench.rooms import needs
from vqbench.specs import TokenizerSpec
from vqbench.switches import at_least_fp32
from vqbench.tokenizers.base import Tokenizer, build_tokenizer
from vqbench.tokenizers.epoch_usage import EpochUsage
from vqbench.tokenizers.losses.adversarial import (
    LeCam,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    r1_penalty,
)
from vqbench.tokenizers.networks.discriminators import build_discriminator
from vqbench.training import Batch, Player, Task, Terms, Trainer, device, finish

ADDED = ("perceptual", "adversarial")  # terms of the recipe that are not the model's own


class TokenizerTask(Task):
    """Two players: the tokenizer, and from ``start_step`` on the discriminator of its recipe."""

    def __init__(self, spec: TokenizerSpec, images: Images, perceptual: nn.Module) -> None:
        self.spec, self.images, self.perceptual = spec, images, perceptual
        self.model: Tokenizer = build_tokenizer(spec)
        self.players = {"model": Player(self.model, spec.training.optimizer)}
        self.usage = EpochUsage(spec.tokens, spec.training, len(images))
        self.extras: dict[str, nn.Module] = {"usage": self.usage}
        self.adversary = spec.training.discriminator
        if self.adversary:
            network = build_discriminator(self.adversary, spec.resolution, seed=spec.seed)
            self.players["discriminator"] = Player(network, self.adversary.optimizer, self.adversary.start_step)
            if self.adversary.lecam_weight:
                self.extras["lecam"] = LeCam(self.adversary.lecam_decay)
        self._fakes: dict[int, Tensor] = {}
        self._logits: list[Tensor] = []  # means of the discriminator's logits (real, fake), by micro-batch

    def begin(self, batch: Batch) -> None:
        self.model(batch[0])  # a codebook that starts from samples takes them here

    def examples(self, start: int, count: int) -> Batch:
        return (to_float(self.images.stream(start, count, self.spec.seed)[0]),)

    def terms(self, player: str, batch: Batch, step: int, micro: int, rng: torch.Generator) -> Terms:
        if player == "model":
            return self._model_terms(batch[0], step, micro)
        return self._discriminator_terms(batch[0], self._fakes.pop(micro), step)

    def _model_terms(self, images: Tensor, step: int, micro: int) -> Terms:
        weights = self.spec.training.weights
        half = self.spec.training.precision == "bf16"
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=half):
            output = self.model(images)
        self.usage.add(output.quantized.ids)
        output = output._replace(images=at_least_fp32(output.images))
        named = self.model.losses(images, output, step)
        if weights.get("perceptual"):
            named["perceptual"] = self.perceptual(output.images, images).mean()
        _check_weights(weights, named)
        total = sum((named[k] * w for k, w in weights.items() if k != "adversarial" and w), torch.zeros(()).to(images))
        if self.adversary and step >= self.adversary.start_step:
            self._fakes[micro] = output.images.detach()
            total = total + self._adversarial(output.images, named, total)
        return Terms(total, named)

    def _adversarial(self, fakes: Tensor, named: dict[str, Tensor], total: Tensor) -> Tensor:
        assert self.adversary is not None
        term = generator_loss(self.players["discriminator"].module(fakes), self.adversary.loss)
        named["adversarial"] = term
        weight = torch.tensor(self.spec.training.weights["adversarial"])
        if self.adversary.adaptive:
            pixels = sum(
                named[k] * self.spec.training.weights.get(k, 0.0) for k in ("l1", "l2", "perceptual") if k in named
            )
            assert isinstance(pixels, Tensor)
            named["adaptive_weight"] = adaptive_weight(pixels, term, self.model.last_layer)
            weight = weight * named["adaptive_weight"]
        return weight.to(total) * term

    def _discriminator_terms(self, images: Tensor, fakes: Tensor, step: int) -> Terms:
        assert self.adversary is not None
        network = self.players["discriminator"].module
        real, fake = network(images), network(fakes)
        total = discriminator_loss(real, fake, self.adversary.loss)
        named = {"discriminator": total}
        if "lecam" in self.extras:
            lecam = self.extras["lecam"]
            assert isinstance(lecam, LeCam)
            self._logits.append(torch.stack([at_least_fp32(x.detach()).mean() for x in (real, fake)]))
            named["lecam"] = lecam(real, fake)
            total = total + self.adversary.lecam_weight * named["lecam"]
        if self.adversary.r1_weight and (step - self.adversary.start_step) % self.adversary.r1_every == 0:
            named["r1"] = r1_penalty(network, images)
            # Lazy regularisation (Karras et al. 2020): applied every r1_every steps, so weighted r1_every times.
            total = total + self.adversary.r1_weight / 2 * self.adversary.r1_every * named["r1"]
        return Terms(total, named)

    def end_step(self, micro_batches: int) -> None:
        self.model.end_step()
        self.usage.end_step()
        if self._logits:
            lecam, total = self.extras["lecam"], torch.stack(self._logits).sum(0)  # (2,)
            assert isinstance(lecam, LeCam)
            distributed.add_up([total])
            lecam.update(*total / micro_batches)
            self._logits.clear()


def _check_weights(weights: dict[str, float], named: dict[str, Tensor]) -> None:
    for name, weight in weights.items():
        if weight and name not in named and name not in ADDED:
            raise SpecError(f"the recipe weighs a term '{name}' that the model does not give; {nearest(name, named)}")


def run(job: Job) -> dict[str, Any]:
    """Train, then write ``model.safetensors`` (EMA weights where the recipe keeps them), ``losses.csv``, ``usage.csv`` (codes
    hit in each epoch) and ``code_epochs.npy`` (in how many of them each code was)."""
    spec: TokenizerSpec = job.spec
    torch.set_num_threads(spec.threads)
    dataset = job.bench.datasets[spec.dataset]
    images = open_images(dataset, "train", job.upstream("dataset", spec.dataset))
    role = job.bench.pretrained[spec.perceptual]
    task = TokenizerTask(spec, images, open_perceptual(role, job.upstream("pretrained", spec.perceptual)))
    task.perceptual.to(device())
    for option, rule in needs(spec.family).items():
        task.model.take(option, job.upstream(rule["kind"], spec.options[option]))
    task.workers = 0 if dataset.kind == "embedded" else min(16, spec.threads * 2)
    trainer = Trainer(task, spec.training, job.state, spec.seed, job.key[1])
    trainer.run()
    finish(trainer, job.store)
    if distributed.rank() == 0:
        write_text(job.store / "usage.csv", task.usage.csv())
        write_npy(job.store / "code_epochs.npy", task.usage.by_code())
    count = sum(p.numel() for p in task.model.parameters())
    return {"parameters": count, "steps": trainer.step, "images_seen": trainer.step * spec.training.batch_size}
