"""The one training loop: players in turn, micro-batches, schedule, EMA, checkpoints, and a stop at the first NaN.

A run killed at any step resumes from its last checkpoint and ends bit-identical to one never killed (CPU): every random
number is seeded by (seed, step, player, micro-batch), and every example by its position in the stream.

Several processes (:mod:`vqbench.distributed`) take a share of each step's micro-batches. Gradients and logged terms are
sums over micro-batches, whoever computed them, and every process then makes the same update. So the statistics of a batch
(batch norm, minibatch deviation, adaptive weight) are those of a micro-batch, and what outlives a step (LeCam's averages,
a codebook's first codes) is global: :meth:`Task.begin` and :meth:`Task.end_step`. DistributedDataParallel would not do:
its hooks expect one backward pass a step, and here players take turns, micro-batches accumulate, and the adaptive weight
differentiates halfway through.
"""

from __future__ import annotations

import csv
import io
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from vqbench import distributed
from vqbench.artifacts import write_tensors, write_text
from vqbench.checkpoints import (
    below,
    load_checkpoint,
    module_state,
    optimizer_state,
    restore_optimizer,
    save_checkpoint,
)
from vqbench.errors import ArtifactError, Diverged, SpecError, UserError, WorkerLost
from vqbench.notice import Notice, ignore_in_worker
from vqbench.optimizers import learning_rate, make_optimizer
from vqbench.progress import Progress
from vqbench.seeds import derive, torch_rng
from vqbench.specs import OptimizerSpec, TrainingSpec
from vqbench.switches import switch_on

Batch = tuple[Tensor, ...]


class Terms(NamedTuple):
    """One player's objective on one micro-batch: the weighted sum, and each named term unweighted for the log."""

    total: Tensor
    named: dict[str, Tensor]


class Player(NamedTuple):
    """A module with its own optimizer and turn: the model, or the discriminator once it has started."""

    module: nn.Module
    optimizer: OptimizerSpec
    start_step: int = 0


class Task(ABC):
    """What the loop trains. `players` take turns in order; `extras` are saved with them but not optimized."""

    players: dict[str, Player]
    extras: dict[str, nn.Module]
    workers = 0  # loader processes; 0 reads in this one

    @abstractmethod
    def examples(self, start: int, count: int) -> Batch:
        """Training examples ``start .. start + count`` of the endless stream, on the CPU."""

    @abstractmethod
    def terms(self, player: str, batch: Batch, step: int, micro: int, rng: torch.Generator) -> Terms:
        """The player's objective; `rng` is seeded for this step, player and micro-batch, as is torch's global one."""

    def begin(self, batch: Batch) -> None:  # noqa: B027
        """Before the first step, without gradient: what starts from data. Every process is given the first micro-batch."""

    def end_step(self, micro_batches: int) -> None:  # noqa: B027
        """After a step of so many micro-batches in all processes: move what is global."""


def device() -> torch.device:
    """The process' GPU where there is one, else the CPU. TF32 is off, or numbers would depend on the card; a recipe's
    ``tf32`` turns it on for its own training."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class _Stream(Dataset[Batch | UserError]):
    """Micro-batch i of the run, made whole by one worker. A user's mistake comes back as a value: torch would wrap what
    a worker raises in its own traceback."""

    def __init__(self, task: Task, micro_batch: int) -> None:
        self.task, self.micro_batch = task, micro_batch

    def __getitem__(self, index: int) -> Batch | UserError:
        try:
            return self.task.examples(index * self.micro_batch, self.micro_batch)
        except UserError as error:
            return error


class Trainer:
    """Runs a :class:`Task` for ``training.steps`` steps in `folder`, resuming what is there.

    Args:
        task: players, data and objectives.
        training: the resolved recipe.
        folder: state folder; checkpoints and nothing else.
        seed: of the run.
        title: for the progress bar.
    """

    def __init__(self, task: Task, training: TrainingSpec, folder: Path, seed: int, title: str) -> None:
        self.task, self.training, self.folder, self.seed, self.title = task, training, folder, seed, title
        self.device = device()
        self.per_step = training.batch_size // training.micro_batch
        self.micros = distributed.share(range(self.per_step))  # this process' micro-batches of each step
        if distributed.world() > self.per_step:
            raise SpecError(f"{title}: {self.per_step} micro-batches a step are too few for {distributed.world()} processes; "
                            "lower micro_batch, or the processes")  # fmt: skip
        for part in (*(p.module for p in task.players.values()), *task.extras.values()):
            part.to(self.device).train()
        switch_on(task.players["model"].module, training)
        self.optimizers = {n: make_optimizer(p.module, p.optimizer) for n, p in task.players.items()}
        # What a task froze before the loop (a phase with parts fixed) stays frozen on every turn.
        self.trainable = {
            n: [p for p in player.module.parameters() if p.requires_grad] for n, player in task.players.items()
        }
        model = task.players["model"].module
        self.ema = {k: v.detach().clone() for k, v in model.named_parameters()} if training.ema_decay else {}
        self.rows: list[dict[str, float]] = []
        self.step, self.saved = 0, 0

    def run(self) -> None:
        """Train to the end.

        Raises:
            Diverged: a term is NaN or infinite; the last checkpoint is kept.
            Interrupted: a signal asked to stop; the step was ended and saved.
            WorkerLost: a loader process was killed; the last checkpoint is kept.
        """
        self._resume()
        if self.step == 0:
            self._begin()
        with Notice() as notice, self._workers_named():
            self._loop(notice)

    def _begin(self) -> None:
        torch.manual_seed(derive(self.seed, "begin"))
        with torch.no_grad():
            self.task.begin(self._moved(self.task.examples(0, self.training.micro_batch)))
        for player in self.task.players.values():
            distributed.from_first([*player.module.parameters(), *player.module.buffers()])

    def _loop(self, notice: Notice) -> None:
        progress = Progress(self.training.steps, self.title, "step", start=self.step)
        steps = range(self.step, self.training.steps)
        batches = self._batches(step * self.per_step + micro for step in steps for micro in self.micros)
        while self.step < self.training.steps:
            named = self._one_step([next(batches) for _ in self.micros])
            self._log(named)
            self.step += 1
            progress.update(1, **{k: v for k, v in named.items() if k != "lr"})
            last = self.step == self.training.steps
            told = notice.given_to_any()
            if self.step % self.training.checkpoint_every == 0 or last or told:
                self._save()
            if told and not last:
                raise notice.stopped(f"step {self.step}")

    def weights(self) -> dict[str, Tensor]:
        """The model's state with EMA weights in place of the parameters, where the recipe keeps them."""
        return {**self.task.players["model"].module.state_dict(), **self.ema}

    def losses_csv(self) -> str:
        """The log as CSV: step, lr, then every named term by name; empty where a term was not active."""
        terms = {k for row in self.rows for k in row}
        names = ["step", "lr", *sorted(terms - {"step", "lr"})]
        text = io.StringIO()
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" for k, v in row.items()} for row in self.rows)
        return text.getvalue()

    def _batches(self, places: Iterable[int]) -> Iterator[Batch]:
        """The micro-batches at those places of the run."""
        stream = _Stream(self.task, self.training.micro_batch)
        workers = self.task.workers
        loader = DataLoader(stream, batch_size=None, sampler=places, num_workers=workers,
                            pin_memory=self.device.type == "cuda", prefetch_factor=4 if workers else None,
                            worker_init_fn=ignore_in_worker)  # fmt: skip
        for batch in loader:
            if isinstance(batch, UserError):
                raise batch
            yield self._moved(batch)

    def _moved(self, batch: Batch) -> Batch:
        return tuple(t.to(self.device, non_blocking=True) for t in batch)

    def _one_step(self, batches: list[Batch]) -> dict[str, float]:
        sums: dict[str, float] = {}
        for name, player in self.task.players.items():
            if self.step < player.start_step:
                continue
            optimizer = self.optimizers[name]
            rate = learning_rate(player.optimizer.lr, self.training.schedule, self.step, self.training.steps,
                                 player.optimizer.lr / self.training.optimizer.lr)  # fmt: skip
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad(set_to_none=True)
            self._only(name)
            sums |= self._accumulate(name, batches)
            self._clip(name)
            optimizer.step()
            sums.setdefault("lr", rate)
        self._update_ema()
        self.task.end_step(self.per_step)
        return sums

    def _accumulate(self, name: str, batches: list[Batch]) -> dict[str, float]:
        """The player's gradients and terms, averaged over the micro-batches of all processes."""
        sums: dict[str, float] = {}
        with distributed.erring_together():
            for micro, batch in zip(self.micros, batches, strict=True):
                for key, value in self._backward(name, batch, micro).items():
                    sums[key] = sums.get(key, 0.0) + value / self.per_step
        totals = torch.tensor(list(sums.values()), dtype=torch.float64).to(self.device)
        distributed.add_up([*(p.grad for p in self.trainable[name] if p.grad is not None), totals])
        return dict(zip(sums, totals.tolist(), strict=True))

    def _clip(self, name: str) -> None:
        """Clip where the recipe does; a gradient that is not finite stops the run before it reaches the weights."""
        gradients = [p.grad for p in self.trainable[name] if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if not torch.isfinite(norm):
            raise self._diverged("gradient norm", name, float(norm))
        if self.training.clip_norm:
            nn.utils.clip_grads_with_norm_(self.trainable[name], self.training.clip_norm, norm)

    @contextmanager
    def _workers_named(self) -> Iterator[None]:
        """torch raises from a signal handler where a loader process dies, wherever the loop is then."""
        try:
            yield
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            raise WorkerLost(
                f"{self.title}: {str(error).strip().rstrip('.')}, at step {self.step}; {self._last_good()}. Run the same "
                "command again; if it happens again, give the job more memory"
            ) from None

    def _last_good(self) -> str:
        return f"the last good checkpoint is step {self.saved} in {self.folder}" if self.saved else "no checkpoint yet"

    def _diverged(self, term: str, player: str, value: float) -> Diverged:
        return Diverged(
            f"{self.title}: the term '{term}' of the {player} is {value} at step {self.step}; training stopped, "
            f"{self._last_good()}. Lower the learning rate or its weight"
        )

    def _only(self, active: str) -> None:
        """Gradients for the player whose turn it is, none for the others' weights."""
        for name, parameters in self.trainable.items():
            for parameter in parameters:
                parameter.requires_grad_(name == active)

    def _backward(self, name: str, batch: Batch, micro: int) -> dict[str, float]:
        path = ("train", self.step, name, micro)
        torch.manual_seed(derive(self.seed, *path))
        rng = torch_rng(self.seed, *path, "rng", device=self.device)
        terms = self.task.terms(name, batch, self.step, micro, rng)
        values = {k: float(v.detach()) for k, v in {**terms.named, f"{name}_total": terms.total}.items()}
        for key, value in values.items():
            if not math.isfinite(value):
                raise self._diverged(key, name, value)
        (terms.total / self.per_step).backward()
        return {k: v for k, v in values.items() if k in terms.named}

    def _update_ema(self) -> None:
        if self.ema:
            live = dict(self.task.players["model"].module.named_parameters())
            with torch.no_grad():
                torch._foreach_lerp_(list(self.ema.values()), [live[k].detach() for k in self.ema],
                                     1 - self.training.ema_decay)  # fmt: skip

    def _log(self, named: dict[str, float]) -> None:
        every = max(1, self.training.steps // 2000)
        if self.step % every == 0 or self.step + 1 == self.training.steps:
            self.rows.append({"step": self.step, **named})

    def _save(self) -> None:
        tensors: dict[str, Tensor] = {f"ema/{k}": v for k, v in self.ema.items()}
        for name, player in self.task.players.items():
            tensors |= module_state(f"player/{name}", player.module)
            tensors |= optimizer_state(f"optimizer/{name}", self.optimizers[name])
        for name, extra in self.task.extras.items():
            tensors |= module_state(f"extra/{name}", extra)
        self.saved = self.step
        if distributed.rank() == 0:
            save_checkpoint(self.folder, self.step, tensors, {"rows": self.rows})

    def _resume(self) -> None:
        found = load_checkpoint(self.folder)
        if len(set(distributed.gathered(found and found[0]))) > 1:
            raise ArtifactError(
                f"{self.title}: processes read different checkpoints; {self.folder} must be one folder for all"
            )
        if found is None:
            return
        self.step, tensors, extra = found
        self.saved = self.step
        self.rows = extra["rows"]
        for name, player in self.task.players.items():
            player.module.load_state_dict(below(f"player/{name}", tensors))
            restore_optimizer(f"optimizer/{name}", self.optimizers[name], tensors)
        for name, module in self.task.extras.items():
            module.load_state_dict(below(f"extra/{name}", tensors))
        self.ema = {k: v.to(self.device) for k, v in below("ema", tensors).items()}
        if distributed.rank() == 0:
            print(f"vqbench: resumed {self.title} at step {self.step}", flush=True)


def finish(trainer: Trainer, store: Path) -> None:
    """Write the trained weights (``model.safetensors``) and the log (``losses.csv``); of several processes the first does."""
    if distributed.rank():
        return
    write_tensors(store / "model.safetensors", trainer.weights())
    write_text(store / "losses.csv", trainer.losses_csv())
