"""The training loop: resumes bit-identically, stops at the first NaN, survives damaged checkpoints."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vqbench.checkpoints import load_checkpoint
from vqbench.errors import Diverged
from vqbench.optimizers import learning_rate, make_optimizer
from vqbench.specs import OptimizerSpec, ScheduleSpec, TrainingSpec
from vqbench.training import Batch, Player, Task, Terms, Trainer

OPTIMIZER = OptimizerSpec(name="adamw", lr=0.01, betas=(0.9, 0.99), weight_decay=0.1)


class Regression(Task):
    """A model with dropout and a second player with its own clock: everything that a resume could forget."""

    def __init__(self, poison_at: int = -1) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 1))
        self.players = {"model": Player(model, OPTIMIZER), "critic": Player(nn.Linear(1, 1), OPTIMIZER, start_step=5)}
        self.extras: dict[str, nn.Module] = {"count": nn.BatchNorm1d(1)}
        self.poison_at = poison_at

    def examples(self, start: int, count: int) -> Batch:
        rows = torch.arange(start, start + count).float()[:, None]
        x = torch.sin(rows * torch.arange(1, 5))
        return x, x.sum(1, keepdim=True)

    def terms(self, player: str, batch: Batch, step: int, micro: int, rng: torch.Generator) -> Terms:
        x, y = batch
        out: Tensor = self.players["model"].module(x + 0.01 * torch.randn(x.shape, generator=rng))
        if player == "critic":
            term = self.players["critic"].module(self.extras["count"](out.detach())).square().mean()
            return Terms(term, {"critic": term})
        error = (out - y).square().mean() * (float("nan") if step == self.poison_at else 1.0)
        return Terms(error, {"error": error})


def spec(**changes: object) -> TrainingSpec:
    base = {"steps": 12, "batch_size": 8, "micro_batch": 4, "optimizer": OPTIMIZER, "ema_decay": 0.9, "clip_norm": 1.0,
            "checkpoint_every": 4, "schedule": ScheduleSpec(name="cosine", warmup_steps=2)}  # fmt: skip
    return TrainingSpec.model_validate(base | changes)


def train(folder: Path, **changes: object) -> Trainer:
    folder.mkdir(exist_ok=True)
    trainer = Trainer(Regression(), spec(**changes), folder, seed=0, title="test")
    trainer.run()
    return trainer


def assert_same(a: Trainer, b: Trainer) -> None:
    for key, value in a.weights().items():
        assert torch.equal(value, b.weights()[key]), key
    assert a.losses_csv() == b.losses_csv()


@pytest.mark.parametrize("stop", [1, 4, 6, 11])
def test_a_run_cut_at_any_step_ends_bit_identical(tmp_path: Path, stop: int) -> None:
    whole = train(tmp_path / "whole")
    cut = Trainer(Regression(), spec(), tmp_path / "whole2", seed=0, title="test")
    (tmp_path / "whole2").mkdir()
    batches = cut._batches(range(100))
    while cut.step < stop:  # the loop's own body, left before its end
        cut._log(cut._one_step([next(batches), next(batches)]))
        cut.step += 1
        if cut.step % 4 == 0:
            cut._save()
    assert_same(whole, train(tmp_path / "whole2"))


KILLED = """
import sys; sys.path.insert(0, {tests!r})
from pathlib import Path
import importlib.util
found = importlib.util.spec_from_file_location("t", {this!r}); t = importlib.util.module_from_spec(found)
found.loader.exec_module(t)
import os, signal
class Deadly(t.Regression):
    def terms(self, player, batch, step, micro, rng):
        if step == {step} and os.environ.get("DIE"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().terms(player, batch, step, micro, rng)
trainer = t.Trainer(Deadly(), t.spec(), Path({folder!r}), seed=0, title="test")
trainer.run()
from vqbench.artifacts import write_tensors
write_tensors(Path({folder!r}) / "model.safetensors", trainer.weights())
"""


def test_sigkill_then_resume_gives_the_same_bytes(tmp_path: Path) -> None:
    bytes_of = {}
    for name, deaths in (("calm", 0), ("killed", 1)):
        folder = tmp_path / name
        folder.mkdir()
        code = KILLED.format(tests=str(Path(__file__).parent), this=__file__, step=7, folder=str(folder))
        for die in [True] * deaths + [False]:
            env = {**os.environ, **({"DIE": "1"} if die else {})}
            done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
            assert done.returncode == (-signal.SIGKILL if die else 0), done.stderr
        bytes_of[name] = (folder / "model.safetensors").read_bytes()
    assert bytes_of["calm"] == bytes_of["killed"]


def test_micro_batches_only_regroup(tmp_path: Path) -> None:
    """Gradients of two micro-batches average to those of their union (a model without batch statistics or noise)."""

    class Plain(Regression):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.players = {"model": Player(nn.Linear(4, 1).double(), OPTIMIZER)}

        def terms(self, player: str, batch: Batch, step: int, micro: int, rng: torch.Generator) -> Terms:
            error = (self.players["model"].module(batch[0].double()) - batch[1].double()).square().mean()
            return Terms(error, {"error": error})

    found = []
    for micro in (8, 2):
        trainer = Trainer(Plain(), spec(micro_batch=micro), tmp_path / str(micro), seed=0, title="test")
        trainer.run()
        found.append(trainer.weights()["weight"])
    assert torch.allclose(*found, rtol=1e-12, atol=0)


def test_nan_stops_the_run_names_the_term_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    trainer = Trainer(Regression(poison_at=6), spec(), tmp_path, seed=0, title="cq-k1024")
    with pytest.raises(Diverged, match=r"cq-k1024: the term 'error' of the model is nan at step 6.*step 4"):
        trainer.run()
    found = load_checkpoint(tmp_path)
    assert found is not None and found[0] == 4


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = train(tmp_path / "a")
    train(tmp_path / "b", steps=8)
    newest = max((tmp_path / "b").glob("*.safetensors"))
    data = bytearray(newest.read_bytes())
    data[-3] ^= 4
    newest.write_bytes(bytes(data))
    found = load_checkpoint(tmp_path / "b")
    assert found is not None and found[0] == 4
    assert "does not match its digest" in capsys.readouterr().err
    assert whole.step == 12


def test_the_loop_learns(tmp_path: Path) -> None:
    rows = train(tmp_path, steps=200, ema_decay=0.0).rows
    assert sum(r["error"] for r in rows[-20:]) < 0.6 * sum(r["error"] for r in rows[:20])


def test_schedule_ends() -> None:
    cosine = ScheduleSpec(name="cosine", final_lr=0.1, warmup_steps=10)
    assert learning_rate(1.0, cosine, 0, 100) == pytest.approx(0.1)
    assert learning_rate(1.0, cosine, 9, 100) == pytest.approx(1.0)
    assert learning_rate(1.0, cosine, 55, 100) == pytest.approx(0.55)
    assert learning_rate(1.0, cosine, 100, 100) == pytest.approx(0.1)
    assert learning_rate(0.3, ScheduleSpec(), 99, 100) == 0.3
    linear = ScheduleSpec(name="linear", warmup_steps=20)
    assert learning_rate(1.0, linear, 40, 100) == pytest.approx(0.75)
    assert learning_rate(1.0, linear, 100, 100) == 0.0


def test_adamw_spares_vectors_from_decay_and_keeps_frozen_parts_out() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False))
    groups = make_optimizer(model, OPTIMIZER).param_groups
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0]
    assert [[p.ndim for p in g["params"]] for g in groups] == [[2], [1]]


def test_frozen_parameters_stay_frozen(tmp_path: Path) -> None:
    task = Regression()
    first = task.players["model"].module[0]  # type: ignore[index]
    first.requires_grad_(False)
    before = first.weight.clone()
    Trainer(task, spec(), tmp_path, seed=0, title="test").run()
    assert torch.equal(first.weight, before) and not first.weight.requires_grad


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler, g++ is not here")
@pytest.mark.filterwarnings("ignore")  # torch's own, of its compiler
def test_a_compiled_model_trains_alike_and_keeps_its_names(tmp_path: Path) -> None:
    found = {}
    for compiled in (False, True):
        task = Regression()
        task.players["model"].module[1].p = 0.0  # dropout draws other numbers where it is compiled
        folder = tmp_path / str(compiled)
        folder.mkdir()
        found[compiled] = Trainer(task, spec(compile=compiled), folder, seed=0, title="test")
        found[compiled].run()
    plain, other = (found[compiled] for compiled in (False, True))
    assert plain.weights().keys() == other.weights().keys()
    assert [r["error"] for r in other.rows] == pytest.approx([r["error"] for r in plain.rows], rel=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0, "it was really compiled"
