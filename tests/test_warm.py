"""What stands for a Python process in the other tests behaves as one, and publishes what a plain one publishes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import warm
from helpers import environment, run_in

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="plain processes elsewhere than on Linux")
SCRIPT = """
import os, signal, sys, time
sys.stdout.write(f"out {os.getcwd()} {sys.argv[1:]} {os.environ['MARK']} {sys.stdin.read()}")
sys.stderr.write("err")
what = sys.argv[1]
if what == "exit":
    sys.exit(3)
if what == "say":
    sys.exit("said")
if what == "raise":
    raise ValueError("raised")
if what == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if what == "wait":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    print(f" pid {os.getpid()}", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


@pytest.mark.parametrize("what", ["exit", "say", "raise", "kill", "nothing"])
def test_a_command_ends_and_speaks_as_in_a_plain_process(script: Path, what: str) -> None:
    def ran(program: str) -> tuple[int, str, str]:
        done = subprocess.run([program, str(script), what, "x"], cwd=script.parent, env=environment(script.parent, MARK="m"),
                              input="in", capture_output=True, text=True)  # fmt: skip
        return done.returncode, done.stdout, done.stderr.splitlines()[-1]

    assert ran(warm.python()) == ran(sys.executable)


def started(script: Path) -> tuple[subprocess.Popen[str], psutil.Process]:
    """A command that waits, and the process that the server forked for it."""
    process = subprocess.Popen([warm.python(), str(script), "wait"], cwd=script.parent, env=environment(script.parent, MARK=""),
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert process.stdout is not None
    with process.stdout:
        said = process.stdout.readline()
    forked = psutil.Process(int(said.split()[-1]))
    assert forked.pid != process.pid
    return process, forked


def test_a_signal_is_passed_on(script: Path) -> None:
    process, forked = started(script)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 75 and not forked.is_running()


def test_who_kills_it_kills_the_process(script: Path) -> None:
    process, forked = started(script)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while forked.is_running():
        assert time.monotonic() < deadline, "it outlived what stood for it"
        time.sleep(0.05)


def test_what_a_library_reads_at_import_makes_a_plain_process(script: Path) -> None:
    script.write_text("import sys; print('torch' in sys.modules, sys.executable)")
    assert run_in(script.parent, warm.python(), str(script)).stdout == f"True {warm.python()}\n"
    for env in ({"OMP_NUM_THREADS": "2"}, {"CUDA_VISIBLE_DEVICES": ""}):
        assert run_in(script.parent, warm.python(), str(script), **env).stdout == f"False {sys.executable}\n"


def test_a_plain_process_publishes_the_same(clone: Path) -> None:
    published = {}
    for program in (warm.python(), sys.executable):
        for words in (("check-dataset", "photos-tiny"), ("pretrained", "tiny-classifier")):
            done = run_in(clone, program, "-m", "vqbench.cli", *words, "--scale", "tiny")
            assert done.returncode == 0, done.stderr
        manifest = clone / done.stdout.splitlines()[-1]
        published[program] = manifest.read_bytes()
        shutil.rmtree(clone / "results")
    first, other = published.values()
    assert first == other and json.loads(first)["outputs"]


def test_commands_run_at_once(script: Path) -> None:
    running = [started(script) for _ in range(3)]
    for process, forked in reversed(running):
        os.kill(forked.pid, signal.SIGKILL)
        assert process.wait(20) == -signal.SIGKILL


def test_the_server_ends_with_the_tests_that_are_killed() -> None:
    code = "import time, warm; print(warm.python(), flush=True); time.sleep(60)"
    tests = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
                             stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert tests.stdout is not None
    with tests.stdout:
        folder = Path(tests.stdout.readline().strip()).parent
    (server,) = (p for p in psutil.Process(tests.pid).children() if str(folder) in p.cmdline())
    tests.kill()
    tests.wait()
    server.wait(20)
    assert not folder.exists()
