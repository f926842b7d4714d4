"""Real limits: a control group's memory, a full tmpfs, a folder that may not be written, a server that cheats."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NoReturn

import pytest
import yaml
from helpers import ROOT, environment, run_in, snakemake, vqbench

from vqbench.weights import LARGEST

TINY = ("--config", "scale=tiny")
CONTENT = b"weights" * 1000


def cannot(why: str) -> NoReturn:
    """Skip for a user without the rights; in CI that is a failure (tests/conftest.py)."""
    pytest.skip(f"{why}: run as root")


@contextlib.contextmanager
def memory_limit(mb: int) -> Iterator[Path]:
    """A control group of so many MB, version 1 or 2; who writes its pid into the file given is bound by it."""
    one, two = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    top, name = (one, "memory.limit_in_bytes") if one.is_dir() else (two, "memory.max")
    group = top / f"vqbench-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        cannot(f"no control group may be made here ({error})")
    try:
        (group / name).write_text(str(mb << 20))
        if top == two:
            (group / "memory.swap.max").write_text("0")
        yield group / "cgroup.procs"
    finally:
        group.rmdir()


def mount(*words: str) -> None:
    """Mount, where this user may."""
    done = subprocess.run(["mount", *words], capture_output=True, text=True)
    if done.returncode:
        cannot(f"nothing may be mounted here ({done.stderr.strip()})")


@contextlib.contextmanager
def small_disk(folder: Path, mb: int) -> Iterator[None]:
    """`folder` on a tmpfs of so many MB."""
    folder.mkdir(parents=True, exist_ok=True)
    mount("-t", "tmpfs", "-o", f"size={mb}m", "tmpfs", str(folder))
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def rows(folder: Path, name: str) -> dict[str, str]:
    """Row -> status of a table."""
    with (folder / "results" / "tiny" / name).open() as file:
        return {row["row"]: row["status"] for row in csv.DictReader(file)}


@pytest.mark.parametrize(("ci", "ends"), [("1", "1 failed"), ("", "1 skipped")])
def test_ci_does_not_pass_over_what_needs_root(ci: str, ends: str, tmp_path: Path) -> None:
    """Without the right to mount, the read-only test fails where CI says that it is CI."""
    name = "test_results_that_may_not_be_written_are_said_in_a_line"
    words = ("-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path}/t", f"{__file__}::{name}")
    call = [*([] if os.geteuid() else ["setpriv", "--bounding-set=-sys_admin"]), sys.executable, *words]
    done = run_in(ROOT, *call, VQBENCH_CI=ci)
    assert ends in done.stdout, done.stdout + done.stderr


def test_out_of_memory_is_tried_again_and_then_a_row_that_says_so(clone: Path) -> None:
    data = [f"results/tiny/datasets/{name}/manifest.json" for name in ("photos-tiny", "photos-tiny-ood")]
    assert snakemake(clone, *data, *TINY).returncode == 0
    with memory_limit(330) as group:  # Snakemake fits, torch does not
        call = f"-m snakemake --cores 1 --retries 1 --keep-going results/tiny/table6b.csv {' '.join(TINY)}"
        done = run_in(clone, "sh", "-c", f"echo $$ > {group}; exec {sys.executable} {call}")
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert said.count("Error in rule pretrained") == 2 and "mem_mb=2000" in said, said[-3000:]
    log = (clone / "results/tiny/logs/pretrained/tiny-classifier.log").read_text()
    assert "the last attempt of pretrained/tiny-classifier ended without a word: out of memory" in log
    settled = vqbench(
        clone, "settle", "--scale", "tiny"
    )  # without the limit: Snakemake's own call may not have had room
    assert settled.returncode == 0, settled.stderr
    assert set(rows(clone, "table6b.partial.csv").values()) >= {"failed: pretrained/tiny-classifier: out of memory"}


def test_a_full_disk_keeps_the_last_checkpoint_and_the_next_call_goes_on(clone: Path) -> None:
    path = clone / "workflow" / "scales" / "tiny.yaml"
    scale = yaml.safe_load(path.read_text())
    scale["tokenizers"]["training"] |= {"steps": 12, "checkpoint_every": 2}
    path.write_text(yaml.safe_dump(scale, sort_keys=False))
    needed = [f"results/tiny/{p}/manifest.json" for p in ("datasets/photos-tiny", "pretrained/tiny-classifier")]
    assert snakemake(clone, *needed, *TINY).returncode == 0
    words = ("train-tokenizer", "cq-k16384", "--scale", "tiny")
    calm = vqbench(clone, *words)
    assert calm.returncode == 0, calm.stderr
    manifest = clone / "results/tiny/tokenizers/cq-k16384/manifest.json"
    before, (store,) = manifest.read_bytes(), (clone / "results/tiny/store/tokenizer/cq-k16384").iterdir()
    size = sum(p.stat().st_size for p in store.iterdir()) >> 20
    for file in store.iterdir():
        file.unlink()
    manifest.unlink()
    with small_disk(store, 1 + size):  # a checkpoint fits, a second one beside it does not
        full = vqbench(clone, *words)
        assert full.returncode == 1 and "disk full" in full.stderr and "Traceback" not in full.stderr, full.stderr
        assert list((store / "state").glob("checkpoint-*.json"))
        subprocess.run(["mount", "-o", "remount,size=200m", str(store)], check=True)
        again = vqbench(clone, *words)
        assert again.returncode == 0 and "resumed" in again.stdout, again.stderr
    assert manifest.read_bytes() == before


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """A folder of which nothing can be written."""
    mount("--bind", str(folder), str(folder))
    subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_results_that_may_not_be_written_are_said_in_a_line(clone: Path) -> None:
    """By the step, and by Snakemake before it starts one; in the words that docs/cluster.md explains."""
    explained = (ROOT / "docs" / "cluster.md").read_text()
    results = clone / "results" / "tiny"
    target = "results/tiny/datasets/photos-tiny/manifest.json"
    results.mkdir(parents=True)
    with read_only(results):
        by_hand = vqbench(clone, "check-dataset", "photos-tiny", "--scale", "tiny")
        first = snakemake(clone, target)
    assert snakemake(clone, target).returncode == 0
    before = (clone / target).read_bytes()
    data = clone / "workflow" / "datasets.yaml"
    data.write_text(data.read_text().replace("train: 64", "train: 60"))
    with read_only(results):
        again = snakemake(clone, target)
    for done, words in ((by_hand, "Read-only file system"), (first, "Failed to create output directory"),
                        (again, "ProtectedOutputException")):  # fmt: skip
        said = done.stdout + done.stderr
        assert done.returncode == 1 and words in said and "Traceback" not in said, said
        assert words in explained
    assert (clone / target).read_bytes() == before


class Cheat(BaseHTTPRequestHandler):
    """/good, /short (ends early), /down (leads to plain http), /huge (says more than is allowed), /strange and /digits (no
    length that can be), /endless (no length, and no end before the reader hangs up)."""

    def do_GET(self) -> None:
        what = self.path.strip("/")
        self.send_response(302 if what == "down" else 200)
        if what == "down":
            self.send_header("Location", f"http://localhost:{self.server.server_address[1]}/good")
        lengths = {"short": str(2 * len(CONTENT)), "strange": "many", "good": str(len(CONTENT)), "huge": str(LARGEST + 1),
                   "digits": "9" * 5000}  # fmt: skip
        if what in lengths:
            self.send_header("Content-Length", lengths[what])
        self.end_headers()
        self.wfile.write(CONTENT)
        with contextlib.suppress(OSError):  # who reads hung up
            while what == "endless":
                self.wfile.write(bytes(1 << 16))

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """An https server with a certificate of its own, and that certificate."""
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "cert.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out", str(certificate),
                    "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"],
                   check=True, capture_output=True)  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with ThreadingHTTPServer(("localhost", 0), Cheat) as one:
        one.socket = context.wrap_socket(one.socket, server_side=True)
        threading.Thread(target=one.serve_forever, daemon=True).start()
        yield f"https://localhost:{one.server_address[1]}", certificate
        one.shutdown()


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("good", ""),
        ("short", "ended after"),
        ("down", "not https"),
        ("strange", ""),
        ("digits", ""),
        ("wrong", "has SHA-256"),
        ("huge", "is larger than 2 GiB"),
    ],
)
def test_a_download_is_whole_and_https_or_refused(
    server: tuple[str, Path], clone: Path, tmp_path: Path, what: str, says: str
) -> None:
    path = clone / "workflow" / "pretrained.yaml"
    data = yaml.safe_load(path.read_text())
    digest = "0" * 8 if what == "wrong" else hashlib.sha256(CONTENT).hexdigest()[:8]
    entry = data["inception-2015-12-05"] | {"url": f"{server[0]}/{what}", "filename": "w.pth", "sha256_prefix": digest}
    path.write_text(yaml.safe_dump(data | {"inception-2015-12-05": entry}, sort_keys=False))
    command = [sys.executable, "-m", "vqbench.cli", "fetch-weights", "inception-2015-12-05"]
    env = environment(clone, SSL_CERT_FILE=str(server[1]), TORCH_HOME=str(tmp_path / "hub"))
    done = subprocess.run(command, cwd=clone, env=env, capture_output=True, text=True)
    found = list((tmp_path / "hub").rglob("*.pth"))
    assert "Traceback" not in done.stderr
    if says:
        assert done.returncode == 1 and says in done.stderr and not found, done.stderr
        assert not [p for p in (tmp_path / "hub").rglob("*") if p.is_file()], "half a download was left"
    else:
        assert done.returncode == 0 and found[0].read_bytes() == CONTENT, done.stderr
        assert found[0].stat().st_mode & 0o777 == 0o644


def test_a_download_without_an_end_is_left_at_the_limit(server: tuple[str, Path], tmp_path: Path) -> None:
    """At a limit that a test can reach; not a byte more lies on the disk."""
    target, limit = tmp_path / "w.pth", 5 << 20
    code = """if True:
        import pathlib, sys, vqbench.weights
        vqbench.weights._download(sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3]))
    """
    words = (sys.executable, "-c", code, f"{server[0]}/endless", str(target), str(limit))
    done = run_in(tmp_path, *words, PYTHONPATH=str(ROOT), SSL_CERT_FILE=str(server[1]))
    assert done.returncode == 1 and "MissingWeights" in done.stderr and "is larger than 0.00488 GiB" in done.stderr
    assert 0 < target.stat().st_size <= limit


@pytest.mark.parametrize(
    ("change", "says"),
    [({"filename": "../../escaped.pth"}, "filename"), ({"url": "http://example.org/w.pth"}, "url")],
)
def test_weights_that_would_leave_their_folder_or_come_by_http_are_refused(
    clone: Path, change: dict[str, str], says: str
) -> None:
    path = clone / "workflow" / "pretrained.yaml"
    data = yaml.safe_load(path.read_text())
    data["inception-2015-12-05"] |= change
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    done = vqbench(clone, "fetch-weights", "inception-2015-12-05")
    assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr
