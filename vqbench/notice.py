"""Told to stop: by preemption, by a time limit ahead, by whoever sends SIGTERM. Work that keeps its state stops at its
next boundary instead of losing what it did since the last checkpoint; a Slurm job then queues itself again.

SIGURG is what ``sbatch --signal=URG@300`` sends: Slurm signals every process of a job, and SIGURG, unlike SIGUSR1, does
not end a shell or a Snakemake that stands between Slurm and this process.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from types import FrameType
from typing import Any

from vqbench.distributed import gathered
from vqbench.errors import Interrupted

CALLER = "VQBENCH_CALLER"  # process id of the Snakemake that runs this step on this machine
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGURG)


class Notice:
    """``with Notice() as notice:`` around a loop; between two of its steps, ask ``notice.given``.

    Outside of it the signals do what they always do. In a thread other than the main one it never is given.
    """

    def __init__(self) -> None:
        self.given = False
        self._name = ""
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Notice:
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._take) for s in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def given_to_any(self) -> bool:
        """Whether any process of this step was told; the same answer in all of them."""
        names = [name for name in gathered(self._name) if name]
        self.given, self._name = bool(names), next(iter(names), "")
        return self.given

    def stopped(self, where: str) -> Interrupted:
        """The error that ends a loop whose state is saved."""
        return Interrupted(
            f"stopped by {self._name} at {where}; its state is kept: the same command goes on from there"
        )

    def _take(self, number: int, _frame: FrameType | None) -> None:
        self.given, self._name = True, signal.Signals(number).name


def end_with_caller() -> None:
    """Take the death of the Snakemake that runs this step as SIGTERM: else it would go on, unseen, and hold its lock.

    The rules export CALLER; a step by hand has none. Linux only: elsewhere the step goes on to its end.
    """
    caller = os.environ.get(CALLER, "")
    if not caller or not hasattr(os, "pidfd_open"):
        return
    try:
        watched = os.pidfd_open(int(caller))
    except ProcessLookupError:  # it died while this process started
        os.kill(os.getpid(), signal.SIGTERM)
        return
    except OSError:  # a container that does not show it
        return
    threading.Thread(target=_end_when, args=(watched,), daemon=True).start()


def _end_when(watched: int) -> None:
    select.select([watched], [], [])  # readable once that process has ended
    print("vqbench: Snakemake was killed; stopping", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)


def ignore_in_worker(_worker: int) -> None:
    """For a loader's processes: Slurm signals them too, but the process that reads them decides when they end."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def queue_again() -> None:
    """In a Slurm job that still runs, put it back into the queue under its own id, and wait for Slurm to end it.

    Snakemake sees the job pending, so this spends no retry. A cancelled job is left alone, and so is one that Slurm
    does not let its owner queue again (``JobRequeue=0`` and no ``--requeue``): it ends with this process' status.
    """
    job = os.environ.get("SLURM_JOB_ID", "")
    if not job or not shutil.which("scontrol") or _state(job) != "RUNNING":
        return
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
    if done.returncode:
        print(f"vqbench: Slurm does not queue job {job} again: {done.stderr.strip()}", file=sys.stderr)
        return
    print(f"vqbench: job {job} is queued again", file=sys.stderr, flush=True)
    time.sleep(120)  # Slurm ends the job within seconds; ending first would read as a failure


def _state(job: str) -> str:
    done = subprocess.run(["squeue", "-h", "-j", job, "-o", "%T"], capture_output=True, text=True)
    return done.stdout.strip()
