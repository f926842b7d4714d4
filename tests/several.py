"""Trains a tokenizer or generator of the clone's scale ``tiny`` in float64, in as many processes as torchrun starts:
``python tests/several.py RUN FOLDER``. Process 0 writes what was learned to ``FOLDER/found.pt``; the environment variable
KILL (``PROCESS:STEP``) has a process kill itself there, once. RUN ``averages`` is a codebook of moving averages alone.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from vqbench import distributed
from vqbench.data import Images
from vqbench.generators.base import shape_of
from vqbench.generators.training import GeneratorTask
from vqbench.papers import bench
from vqbench.seeds import numpy_rng
from vqbench.specs import GeneratorSpec, TokenizerSpec, TokenSpec, TrainingSpec
from vqbench.tokenizers.quantizers.ema import EmaQuantizer
from vqbench.tokenizers.training import TokenizerTask
from vqbench.training import Batch, Task, Terms, Trainer


class Patterns(Images):
    """Endless images that follow from their index."""

    def __init__(self, side: int) -> None:
        self.side, self.labels = side, np.zeros(1, np.int64)

    def plain(self, index: int) -> np.ndarray:
        found = numpy_rng(0, "pattern", index).integers(0, 256, (4, 4, 3)).astype(np.uint8)
        return found.repeat(self.side // 4, 0).repeat(self.side // 4, 1)

    def augmented(self, position: int, seed: int) -> tuple[np.ndarray, int]:
        return self.plain(position), 0


class Gap(nn.Module):
    """Stands in for the perceptual network."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (nn.functional.avg_pool2d(a, 4) - nn.functional.avg_pool2d(b, 4)).abs()


class Double(Task):
    """Stands before a task among the bases: all in float64, and a process killed where KILL says so."""

    marker: Path

    def doubled(self, marker: Path) -> Self:
        self.marker = marker
        for part in (*(p.module for p in self.players.values()), *self.extras.values()):
            part.double()
        return self

    def examples(self, start: int, count: int) -> Batch:
        return tuple(part.double() if part.is_floating_point() else part for part in super().examples(start, count))

    def terms(self, player: str, batch: Batch, step: int, micro: int, rng: torch.Generator) -> Terms:
        if os.environ.get("KILL") == f"{distributed.rank()}:{step}" and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().terms(player, batch, step, micro, rng)


class DoubleTokenizer(Double, TokenizerTask):
    """On images."""


class DoubleGenerator(Double, GeneratorTask):
    """On 64 images' random ids or latents."""


def generator_task(spec: GeneratorSpec) -> DoubleGenerator:
    rng = numpy_rng(0, "tokens")
    shape = (64, *shape_of(spec, spec.tokens))
    read = rng.integers(0, spec.tokens.num_codes, shape) if spec.reads == "tokens" else rng.normal(size=shape)
    return DoubleGenerator(spec, read, rng.integers(0, spec.num_classes, 64))


def slower(training: TrainingSpec) -> TrainingSpec:
    """PatchGAN at a thirtieth of its rates: at full ones its batch norm over two images multiplies a rounding error of
    1e-16 by 1e7 within 25 steps, whoever computes it."""
    adversary = training.discriminator
    if adversary is None or adversary.name != "patchgan":
        return training
    own, its = (o.model_copy(update={"lr": o.lr / 30}) for o in (training.optimizer, adversary.optimizer))
    return training.model_copy(
        update={"optimizer": own, "discriminator": adversary.model_copy(update={"optimizer": its})}
    )


def task_of(run: str, switches: dict[str, Any]) -> tuple[Double, TrainingSpec]:
    """The run's task at 50 steps of four micro-batches."""
    known = bench("tiny")
    spec = known.tokenizers.get(run) or known.generators[run]
    sizes = {"steps": 50, "batch_size": 8, "micro_batch": 2, "checkpoint_every": 20, "usage_every": 9}
    training = slower(spec.training.model_copy(update=sizes | switches))
    spec = spec.model_copy(update={"training": training})
    if isinstance(spec, TokenizerSpec):
        return DoubleTokenizer(spec, Patterns(spec.resolution), Gap()), training
    return generator_task(spec), training


def averages() -> dict[str, Tensor]:
    """A codebook in float32 after ten steps of the same six micro-batches, whoever quantizes which."""
    torch.manual_seed(0)
    codes = EmaQuantizer(TokenSpec(layout="raster", grid=4, num_tokens=16, code_dim=8, num_codes=24), init="normal")
    for _ in range(10):
        parts = [torch.randn(2, 8, 4, 4) for _ in range(6)]
        for part in distributed.share(parts):
            codes(part)
        codes.end_step()
    return codes.state_dict()


def main(run: str, folder: Path) -> None:
    """Train and write what was learned."""
    torch.set_num_threads(1)
    distributed.join()
    if run == "averages":
        found = averages()
        if distributed.rank() == 0:
            torch.save(found, folder / "found.pt")
        distributed.leave()
        return
    switches: dict[str, Any] = {name: True for name in os.environ.get("SWITCHES", "").split(",") if name}
    task, training = task_of(run, switches)
    (folder / "state").mkdir(parents=True, exist_ok=True)
    trainer = Trainer(task.doubled(folder / "killed"), training, folder / "state", seed=0, title=run)
    trainer.run()
    if distributed.rank() == 0:
        extras = {n: m.state_dict() for n, m in task.extras.items()}
        usage = task.usage.csv() if isinstance(task, TokenizerTask) else ""
        torch.save({"rows": trainer.rows, "weights": trainer.weights(), "extras": extras, "usage": usage},
                   folder / "found.pt")  # fmt: skip
    distributed.leave()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
