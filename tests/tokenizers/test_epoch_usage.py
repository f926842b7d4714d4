"""Usage by epoch of training: the counts of the very ids that were trained on, also over a cut run and with slots."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from several import Gap, Patterns

from vqbench.specs import OptimizerSpec, TokenizerSpec, TokenSpec, TrainingSpec
from vqbench.tokenizers.epoch_usage import EpochUsage, epoch_ends
from vqbench.tokenizers.training import TokenizerTask
from vqbench.training import Trainer

ADAM = OptimizerSpec(name="adam", lr=1e-3, betas=(0.9, 0.99))
BASE = {"steps": 11, "batch_size": 4, "micro_batch": 2, "optimizer": ADAM, "weights": {"l2": 1.0, "codebook": 1.0},
        "checkpoint_every": 3, "usage_every": 4}  # fmt: skip


class Kept(EpochUsage):
    """Keeps all ids beside."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.ids: list[np.ndarray] = []

    def add(self, ids: torch.Tensor) -> None:
        self.ids.append(ids.numpy().copy())
        super().add(ids)


def trainer(spec: TokenizerSpec, folder: Path) -> tuple[Trainer, Kept]:
    spec = spec.model_copy(update={"training": TrainingSpec.model_validate(BASE)})
    task = TokenizerTask(spec, Patterns(16), Gap())
    task.usage = kept = Kept(spec.tokens, spec.training, 1)
    task.extras["usage"] = kept
    folder.mkdir(exist_ok=True)
    return Trainer(task, spec.training, folder, seed=0, title="test"), kept


def rows(usage: EpochUsage) -> list[dict[str, float]]:
    return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(io.StringIO(usage.csv()))]


def test_the_counts_are_those_of_the_ids_that_were_trained_on(make_spec: Callable[..., Any], tmp_path: Path) -> None:
    run, usage = trainer(make_spec("vq", num_codes=64), tmp_path)
    run.run()
    by_epoch = [
        np.concatenate(usage.ids[start : start + 8]) for start in (0, 8)
    ]  # two micro-batches a step, four steps
    counts = [len(np.unique(ids)) for ids in by_epoch]
    assert len(usage.ids) == 22 and counts[0] != counts[1], "the ids of both epochs, and three steps that are no epoch"
    assert [(r["epoch"], r["step"], r["used"]) for r in rows(usage)] == [(1, 4, counts[0]), (2, 8, counts[1])]
    assert [r["share"] for r in rows(usage)] == pytest.approx([c / 64 for c in counts], rel=1e-5)
    expected = sum(np.bincount(np.unique(ids), minlength=64) for ids in by_epoch)
    assert np.array_equal(usage.by_code(), np.asarray(expected)[None])


@pytest.mark.parametrize("stop", [3, 5, 8])
def test_a_run_cut_within_an_epoch_counts_the_same(make_spec: Callable[..., Any], tmp_path: Path, stop: int) -> None:
    spec = make_spec("vq", num_codes=64)
    whole, usage = trainer(spec, tmp_path / "whole")
    whole.run()
    cut, _ = trainer(spec, tmp_path / "cut")
    batches = cut._batches(range(100))
    while cut.step < stop:  # the loop's own body, left before its end
        cut._log(cut._one_step([next(batches), next(batches)]))
        cut.step += 1
        if cut.step % 3 == 0:
            cut._save()
    again, resumed = trainer(spec, tmp_path / "cut")
    again.run()
    assert len(resumed.ids) < len(usage.ids) and resumed.csv() == usage.csv()
    assert np.array_equal(resumed.by_code(), usage.by_code())


def test_slots_are_counted_together_and_apart() -> None:
    tokens = TokenSpec(layout="raster", grid=1, num_tokens=1, code_dim=2, num_codes=10, num_slots=2)
    usage = EpochUsage(tokens, TrainingSpec.model_validate(BASE | {"usage_every": 2}), 1)
    for ids in ([[1, 2]], [[3, 2]]):
        usage.add(torch.tensor(ids)[None])
        usage.end_step()
    assert usage.csv() == "epoch,step,used,share,used[slot0],used[slot1]\n1,2,3,0.3,2,1\n"
    assert usage.by_code().sum(1).tolist() == [2, 1] and usage.by_code()[0, [1, 3]].tolist() == [1, 1]


def test_epochs_end_where_recipes_count_them() -> None:
    def ends(images: int, **changes: int) -> list[int]:
        return epoch_ends(TrainingSpec.model_validate(BASE | {"usage_every": 0} | changes), images)

    assert ends(10, batch_size=4) == [2, 5, 8, 10]  # 2.5 steps an epoch, in 11 steps
    assert ends(1_281_167, batch_size=256, micro_batch=8, steps=round(20 * 1_281_167 / 256))[-1] == 100_091
    assert len(ends(1_281_167, batch_size=256, micro_batch=8, steps=round(20 * 1_281_167 / 256))) == 20
    assert ends(2, batch_size=4) == list(range(1, 12))  # a step sees the set twice
    assert ends(1000, batch_size=4) == []
