"""Codebook usage while a tokenizer trains: which codes each epoch's training ids hit, without a pass of its own.

VQGAN-LC (Fig. 3): a code counts as used in an epoch if one id of that epoch is its; at the right of the figure, each code's
share of the epochs. Letters: B images, N positions, Q slots, K codes, E epochs.
"""

from __future__ import annotations

import csv
import io

import numpy as np
import torch
from torch import Tensor, nn

from vqbench import distributed
from vqbench.specs import TokenSpec, TrainingSpec


class EpochUsage(nn.Module):
    """Counts over all processes; all that it knows is in its buffers, so a resumed run goes on where it was.

    An epoch ends after the step nearest to the end of the training set (recipes count their epochs in steps likewise), or
    every ``training.usage_every`` steps. A part of an epoch at the end of training is left out: it would not compare.

    Args:
        tokens: gives Q and K.
        training: steps, batch size and ``usage_every``.
        images: of the training set.
    """

    def __init__(self, tokens: TokenSpec, training: TrainingSpec, images: int) -> None:
        super().__init__()
        self.ends = epoch_ends(training, images)
        shape = (tokens.num_slots, tokens.num_codes)
        self.step: Tensor = nn.Buffer(torch.zeros((), dtype=torch.int64))  # steps done
        self.epoch: Tensor = nn.Buffer(torch.zeros((), dtype=torch.int64))  # epochs ended
        self.hit: Tensor = nn.Buffer(torch.zeros(shape, dtype=torch.bool))  # (Q, K), in the epoch that runs
        self.epochs: Tensor = nn.Buffer(
            torch.zeros(shape, dtype=torch.int32)
        )  # (Q, K): epochs in which each code was hit
        # Codes that were hit in each epoch: by any slot, then by each.
        self.used: Tensor = nn.Buffer(torch.zeros((len(self.ends), 1 + tokens.num_slots), dtype=torch.int64))
        self._now: Tensor | None = None  # (Q, K) int32, by this process in the step that runs

    def add(self, ids: Tensor) -> None:
        """The ids (B, N, Q) of one micro-batch."""
        if self._now is None:
            self._now = torch.zeros(self.hit.shape, dtype=torch.int32, device=ids.device)
        self._now.scatter_(1, ids.flatten(0, 1).T, 1)  # whatever the order, the same value

    def end_step(self) -> None:
        """After the micro-batches of a step. All processes come here."""
        assert self._now is not None, "no ids were added"
        distributed.add_up([self._now])
        self.hit |= self._now > 0
        self._now = None
        self.step += 1
        if int(self.epoch) < len(self.ends) and int(self.step) == self.ends[int(self.epoch)]:
            self._end_epoch()

    def _end_epoch(self) -> None:
        self.used[self.epoch, 0] = self.hit.any(0).sum()
        self.used[self.epoch, 1:] = self.hit.sum(1)
        self.epochs += self.hit
        self.hit.zero_()
        self.epoch += 1

    def csv(self) -> str:
        """``epoch, step, used, share``: the epoch's number from 1, its last step, codes hit by any slot, and that over K;
        with Q > 1 also ``used[slot0]`` and so on."""
        slots, codes = self.hit.shape
        names = ["epoch", "step", "used", "share", *(f"used[slot{q}]" for q in range(slots) if slots > 1)]
        writer = csv.writer(text := io.StringIO(), lineterminator="\n")
        writer.writerow(names)
        for number, counts in enumerate(self.used[: int(self.epoch)].tolist()):
            share = f"{counts[0] / codes:.6g}"
            writer.writerow([number + 1, self.ends[number], counts[0], share, *(counts[1:] if slots > 1 else ())])
        return text.getvalue()

    def by_code(self) -> np.ndarray:
        """(Q, K) int32: in how many of the epochs each code was hit."""
        return self.epochs.cpu().numpy()


def epoch_ends(training: TrainingSpec, images: int) -> list[int]:
    """Steps after which an epoch is over, of those within training."""
    steps = training.usage_every or images / training.batch_size
    ends = [max(1, round((number + 1) * steps)) for number in range(int(training.steps / steps) + 1)]
    return [end for end in dict.fromkeys(ends) if end <= training.steps]
