"""Commands of vqbench in processes that start at once: a server that imported everything forks one for each.

Importing torch and resolving the papers takes seconds, a step of the tiny scale a fraction of one: a kill at a random
moment would nearly always hit the former. So the clone is read once and must not be edited afterwards. The forked process
is a real one, in a session of its own, and runs ``vqbench.cli.main``.
Run as a script, this file is the server; imported, it is the tests' end.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, NoReturn

import warm
from helpers import copy_clone, environment

from vqbench.artifacts import read_json

# In the order in which one needs the other.
STAGES = {
    "check-dataset": ("check-dataset", "photos-tiny"),
    "pretrained": ("pretrained", "tiny-classifier"),
    "reference": ("reference", "photos-tiny", "--split", "train"),
    "reference-validation": ("reference", "photos-tiny", "--split", "validation"),
    "train-tokenizer": ("train-tokenizer", "cq-k16384"),
    "tokenize": ("tokenize", "cq-k16384", "--split", "train"),
    "tokenize-validation": ("tokenize", "cq-k16384", "--split", "validation"),
    "reconstruct": ("reconstruct", "cq-k16384"),
    "train-generator": ("train-generator", "cq-b-k16384"),
    "sample": ("sample", "cq-b-k16384-s10"),
    "score-tokenizer": ("score", "cq-k16384"),
    "score-samples": ("score", "cq-b-k16384-s10"),
    "probe": ("probe", "cq-k16384"),
    "controls": ("controls", "cq-k16384"),
}


class Done(NamedTuple):
    """How a command ended: its exit status (minus the signal, where one killed it) and all that it printed."""

    status: int
    text: str


def longer_clone(target: Path) -> Path:
    """A clone whose runs are long enough to be hit between any two checkpoints or blocks."""
    clone = copy_clone(target)
    scale = clone / "workflow" / "scales" / "tiny.yaml"
    text = scale.read_text().replace("steps: 3\n", "steps: 24\n").replace("checkpoint_every: 2", "checkpoint_every: 5")
    scale.write_text(text.replace("count: 40\n", "count: 80\n"))
    return clone


def store_of(manifest: Path) -> Path:
    """The folder that a manifest's files lie in."""
    results = next(p for p in manifest.parents if p.name == "results")
    return results.parent / str(read_json(manifest)["store"])


def made(manifest: Path) -> dict[str, bytes]:
    """The manifest and all of its store, but for the record of time and machine, and the lock."""
    store = store_of(manifest)
    files = [p for p in store.rglob("*") if p.is_file() and p.name not in ("run.json", ".lock")]
    return {"published": manifest.read_bytes()} | {str(p.relative_to(store)): p.read_bytes() for p in files}


class Forks:
    """``with Forks(clone) as forks:`` around commands; one at a time."""

    def __init__(self, folder: Path) -> None:
        tests = f"{folder}{os.pathsep}{Path(__file__).parent.parent}"
        self.folder, self.log = folder, folder.parent / "output.txt"
        self.server = subprocess.Popen([warm.python(), __file__], cwd=folder, env=environment(folder, PYTHONPATH=tests),
                                       stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # fmt: skip
        assert self._answer() == "ready"

    def __enter__(self) -> Forks:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.server.communicate(timeout=60)
        assert self.server.returncode == 0

    def start(self, *words: str) -> int:
        """Start ``vqbench WORDS --scale tiny``; returns its process id."""
        return int(self._ask(json.dumps([str(self.log), *words, "--scale", "tiny"])))

    def wait(self) -> Done:
        """Wait for the command that was started."""
        return Done(int(self._ask("wait")), self.log.read_text())

    def run(self, *words: str) -> Done:
        """Start a command and wait for it."""
        self.start(*words)
        return self.wait()

    def finish(self, *words: str) -> Path:
        """Run a command that must succeed; returns the manifest that it published."""
        done = self.run(*words)
        assert done.status == 0, done.text
        return self.folder / done.text.splitlines()[-1]

    def killed(self, moment: float, *words: str) -> bool:
        """Start a command and send it SIGKILL after `moment` seconds; whether it still ran. Nothing of it is left over."""
        pid = self.start(*words)
        time.sleep(moment)
        os.kill(pid, signal.SIGKILL)  # until the server waits for it, its id is its own
        status = self.wait().status
        _assert_gone(pid)
        return status == -signal.SIGKILL

    def _ask(self, line: str) -> str:
        assert self.server.stdin is not None
        self.server.stdin.write(line + "\n")
        self.server.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        assert self.server.stdout is not None
        return self.server.stdout.readline().strip()


def _assert_gone(session: int) -> None:
    """The loader's processes end by themselves, within seconds, when the one that reads them is gone."""
    left = ""
    for _ in range(100):
        left = subprocess.run(["pgrep", "-s", str(session)], capture_output=True, text=True).stdout
        if not left:
            return
        time.sleep(0.1)
    raise AssertionError(f"processes were left over: {left}")


def serve() -> None:
    """Fork a process for each command on standard input and answer with its id; when asked, with its exit status."""
    from vqbench.papers import KINDS, bench, score_keys

    for _, module in KINDS.values():
        import_module(module)
    for key in score_keys(bench("tiny")):
        bench("tiny").digest(key)  # kept, as are those of all that it needs
    print("ready", flush=True)
    for line in sys.stdin:
        log, *words = json.loads(line)
        pid = os.fork()
        if not pid:
            _command(log, words)
        print(pid, flush=True)
        sys.stdin.readline()
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def _command(log: str, words: list[str]) -> NoReturn:
    from vqbench.cli import main

    os.setsid()
    for stream, path, flags in ((0, os.devnull, os.O_RDONLY), (1, log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)):
        os.dup2(os.open(path, flags), stream)
    os.dup2(1, 2)
    warm.finish(partial(main, words))


if __name__ == "__main__":
    serve()
