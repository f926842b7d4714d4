"""A step that dies without a word: for its memory, by SIGKILL, with its node. What is left is a note that it had begun."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

from filelock import FileLock, Timeout

from vqbench.artifacts import read_json, write_json
from vqbench.errors import ArtifactError

NOTE = "attempt.json"


def begin(store: Path) -> None:
    """Note that a step began in `store`; :func:`end` takes the note away, however the step ends by itself."""
    job = os.environ.get("SLURM_JOB_ID", "")
    write_json(store / NOTE, {"host": platform.node(), "oom_kills": _oom_kills(), "slurm_job": job})


def end(store: Path) -> None:
    """The step said itself how it ended."""
    (store / NOTE).unlink(missing_ok=True)


def death_of(store: Path) -> str:
    """How the last attempt in `store` died, see :func:`last_word`; "" where one still runs."""
    return "" if not (store / NOTE).is_file() or _runs(store) else last_word(store)


def last_word(store: Path) -> str:
    """``out of memory``, or ``killed ...``, of an attempt that runs no more; "" where none died."""
    if not (store / NOTE).is_file():
        return ""
    try:
        note = read_json(store / NOTE)
        state = _slurm_state(note["slurm_job"])
        killed = note["host"] == platform.node() and _oom_kills() > note["oom_kills"]
    except (ArtifactError, KeyError, TypeError):
        state, killed = "", False
    if state == "OUT_OF_MEMORY" or killed:
        return "out of memory"
    return f"killed ({state or 'a signal, or its node'}); its log may say more"


def _runs(store: Path) -> bool:
    lock = FileLock(store / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def _oom_kills() -> int:
    """Processes that this machine's kernel killed for memory since it booted, in whichever control group; 0 if not told."""
    try:
        found = re.search(r"^oom_kill (\d+)$", Path("/proc/vmstat").read_text(), re.M)
    except OSError:
        found = None
    return int(found[1]) if found else 0


def _slurm_state(job: str) -> str:
    """Slurm's word for a job's end, as long as Slurm remembers it (MinJobAge).

    Where memory is polled and not a control group's, Slurm calls it FAILED and says why in the job's own log alone.
    """
    if not job or not shutil.which("scontrol"):
        return ""
    told = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True).stdout
    state, log = (re.search(rf"\b{name}=(.+?)$", told, re.M) for name in ("JobState", "StdErr"))
    if log and Path(log[1]).is_file() and "exceeded memory limit" in Path(log[1]).read_text(errors="replace"):
        return "OUT_OF_MEMORY"
    return state[1].split()[0] if state else ""
