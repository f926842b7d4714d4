"""Trains a tokenizer of the clone's scale ``tiny`` in float64, in as many processes as torchrun starts:
``python tests/several.py RUN FOLDER``. Process 0 writes what was learned to ``FOLDER/found.pt``; the environment variable
KILL (``PROCESS:STEP``) has a process kill itself there, once.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vqbench import distributed
from vqbench.data import Images
from vqbench.papers import bench
from vqbench.seeds import numpy_rng
from vqbench.specs import TokenizerSpec, TrainingSpec
from vqbench.tokenizers.training import TokenizerTask
from vqbench.training import Batch, Terms, Trainer


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


class Double(TokenizerTask):
    """All in float64."""

    def __init__(self, spec: TokenizerSpec, marker: Path) -> None:
        super().__init__(spec, Patterns(spec.resolution), Gap())
        self.marker = marker
        for part in (*(p.module for p in self.players.values()), *self.extras.values()):
            part.double()

    def examples(self, start: int, count: int) -> Batch:
        return (super().examples(start, count)[0].double(),)

    def terms(self, player: str, batch: Batch, step: int, micro: int, rng: torch.Generator) -> Terms:
        if os.environ.get("KILL") == f"{distributed.rank()}:{step}" and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().terms(player, batch, step, micro, rng)


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


def main(run: str, folder: Path) -> None:
    """Train 50 steps of four micro-batches."""
    torch.set_num_threads(1)
    distributed.join()
    spec = bench("tiny").tokenizers[run]
    switches: dict[str, Any] = {name: True for name in os.environ.get("SWITCHES", "").split(",") if name}
    training = spec.training.model_copy(
        update={"steps": 50, "batch_size": 8, "micro_batch": 2, "checkpoint_every": 20, "usage_every": 9, **switches}
    )
    training = slower(training)
    spec = spec.model_copy(update={"training": training})
    (folder / "state").mkdir(parents=True, exist_ok=True)
    trainer = Trainer(Double(spec, folder / "killed"), training, folder / "state", seed=0, title=run)
    trainer.run()
    if distributed.rank() == 0:
        extras = {n: m.state_dict() for n, m in trainer.task.extras.items()}
        assert isinstance(trainer.task, TokenizerTask)
        found = {
            "rows": trainer.rows,
            "weights": trainer.weights(),
            "extras": extras,
            "usage": trainer.task.usage.csv(),
        }
        torch.save(found, folder / "found.pt")
    distributed.leave()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
