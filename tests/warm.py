"""Python commands whose processes have imported the libraries already: a server forks one for each.

Importing torch, torchvision and Snakemake takes seconds, a step of the tiny scale a fraction of one, and the tests start
hundreds of steps. ``python()`` is a program that takes Python's arguments (``-m MODULE ...`` or ``SCRIPT ...``) and stands
for such a process: same directory, environment, streams and exit status; signals are passed on, and who kills it kills the
process. The project's own modules are imported anew in each, from the clone that the command runs in. The jobs of a
Snakemake that was started so start so, too: they take ``vqbench`` from beside its Python.

`make demo` and the tests on Slurm run plain processes. Run as a script, this file is the server, or a client of it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, NoReturn

LIBRARIES = ("torch", "torch._dynamo", "torch.distributed.run", "torchvision.models", "lpips", "matplotlib.pyplot", "pandas",
             "scipy.linalg", "scipy.ndimage", "skimage.metrics", "pydantic", "safetensors.torch", "snakemake.cli")  # fmt: skip
EARLY = ("PYTHON", "OMP_", "MKL_", "CUDA_")  # the interpreter or a library reads such variables before a command could
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGURG)
_started: list[str] = []


class Request(NamedTuple):
    """A command: Python's arguments, where it runs, and its standard input, output and error."""

    words: list[str]
    directory: str
    environment: dict[str, str]
    streams: list[int]


# ---- the tests' end ---------------------------------------------------------------------------------------------------


def python() -> str:
    """The program's path. The server starts at the first call and ends with this process, however that ends."""
    import atexit
    import tempfile

    if not hasattr(os, "pidfd_open"):  # not Linux
        return sys.executable
    if not _started:
        folder = Path(tempfile.mkdtemp(prefix="warm-"))
        this = Path(__file__).resolve()
        for name, words in {"python": "", "vqbench": "-m vqbench.cli "}.items():
            program = folder / name
            program.write_text(
                f'#!/bin/sh\nexec "{sys.executable}" -IS "{this}" "{folder}" "{sys.executable}" {words}"$@"\n'
            )
            program.chmod(0o755)
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}
        env.pop("PYTHONPATH", None)
        server = subprocess.Popen([sys.executable, str(this), str(folder)], env=env, text=True,
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
        atexit.register(server.communicate)  # the end of its input is its end
        assert server.stdout is not None and server.stdout.readline() == "ready\n", "the server did not start"
        _started.append(str(folder / "python"))
    return _started[0]


# ---- the server -------------------------------------------------------------------------------------------------------


class Server:
    """Forks a process for each client, tells it the process' id and, at its end, its exit status."""

    def __init__(self, folder: Path) -> None:
        import selectors

        self.folder, self.waiting = folder, selectors.DefaultSelector()
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(str(folder / "socket"))
        self.listener.listen(64)
        self._when_readable(self.listener, self._accept)
        self._when_readable(sys.stdin, self._end)

    def serve(self) -> Request:
        """Returns in a forked process only: what was asked of it."""
        while True:
            for key, _ in self.waiting.select():
                if request := key.data():
                    return request

    def _when_readable(self, what: Any, then: Callable[[], Request | None]) -> None:
        self.waiting.register(what, 1, then)  # selectors.EVENT_READ

    def _accept(self) -> Request | None:
        client, _ = self.listener.accept()
        message, streams, _, _ = socket.recv_fds(client, 1 << 20, 3)
        request = Request(**json.loads(message), streams=streams)
        pid = os.fork() if _early(request.environment) == _early(dict(os.environ)) else -1
        if pid == 0:
            self._forget(client)
            return request
        for stream in streams:
            os.close(stream)
        client.sendall(str(pid).encode())
        if pid > 0:
            watched = os.pidfd_open(pid)
            self._when_readable(client, partial(self._left, client, pid))
            self._when_readable(watched, partial(self._ended, client, watched, pid))
        return None

    def _forget(self, client: socket.socket) -> None:
        """In a forked process: close what is the server's. Its input becomes the command's."""
        for key in list(self.waiting.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
            elif key.fileobj is not sys.stdin:
                os.close(key.fd)
        self.waiting.close()
        client.close()

    def _left(self, client: socket.socket, pid: int) -> None:
        """Who stood for the process was killed."""
        with suppress(ProcessLookupError, KeyError):  # both came to their end at once
            self.waiting.unregister(client)
            os.kill(pid, signal.SIGKILL)

    def _ended(self, client: socket.socket, watched: int, pid: int) -> None:
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with suppress(KeyError):  # it left before
            self.waiting.unregister(client)
        with suppress(OSError):
            client.sendall(str(status).encode())
        client.close()
        self.waiting.unregister(watched)
        os.close(watched)

    def _end(self) -> NoReturn:
        """The tests are over, or were killed."""
        import shutil

        shutil.rmtree(self.folder)
        sys.exit()


def _early(environment: dict[str, str]) -> dict[str, str]:
    """What of an environment must be the server's own. One thread it has anyway, and PYTHONPATH is looked at again."""
    early = {name: value for name, value in environment.items() if name.startswith(EARLY) and name != "PYTHONPATH"}
    return {name: value for name, value in early.items() if not (name.endswith("_NUM_THREADS") and value == "1")}


def become(folder: Path, request: Request) -> NoReturn:
    """Run what was asked, as the interpreter would."""
    import runpy

    for number, stream in enumerate(request.streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request.directory)
    os.environ.clear()
    os.environ.update(request.environment)
    words = request.words
    if words[0] == "-u":
        words.pop(0)
        sys.stdout.reconfigure(line_buffering=True)
    module = words[0] == "-m"
    sys.argv = words[1:] if module else words
    beside = request.directory if module else str(Path(words[0]).resolve().parent)
    sys.path[:1] = [beside, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    sys.executable = str(folder / "python")
    if module:
        finish(partial(runpy.run_module, sys.argv[0], run_name="__main__", alter_sys=True))
    finish(partial(runpy.run_path, words[0], run_name="__main__"))


def finish(command: Callable[[], object]) -> NoReturn:
    """Run a command and end as the interpreter would, but for taking every library's objects apart: 0.7 s."""
    import atexit
    import threading
    import traceback

    status = 0
    try:
        command()
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status & 0xFF)


# ---- a client ---------------------------------------------------------------------------------------------------------


def ask(folder: Path, interpreter: str, words: list[str]) -> NoReturn:
    """Stand for a process of the server's; for what it cannot be asked, become the interpreter itself."""
    plain = words[1:] if words[:1] == ["-u"] else words
    if plain[:1] != ["-m"] and not (plain and plain[0].endswith(".py")):
        os.execv(interpreter, [interpreter, *words])
    request = {"words": words, "directory": str(Path.cwd()), "environment": dict(os.environ)}
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.connect(str(folder / "socket"))
        socket.send_fds(server, [json.dumps(request).encode()], [0, 1, 2])
        pid = int(server.recv(32))
        if pid < 0:
            os.execv(interpreter, [interpreter, *words])

        def pass_on(number: int, _frame: FrameType | None) -> None:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

        for number in SIGNALS:
            signal.signal(number, pass_on)
        status = int(server.recv(32) or -signal.SIGKILL)
    if status < 0:
        with suppress(OSError):  # SIGKILL does what it always does
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


if __name__ == "__main__":
    place = Path(sys.argv[1])
    if sys.argv[2:]:
        ask(place, sys.argv[2], sys.argv[3:])
    else:
        import gc
        from importlib import import_module

        for library in LIBRARIES:
            import_module(library)
        assert "vqbench" not in sys.modules, "a clone has its own"
        assert len(list(Path("/proc/self/task").iterdir())) == 1, "a fork has the one thread that forked"
        gc.freeze()
        server = Server(place)
        print("ready", flush=True)
        become(place, server.serve())
