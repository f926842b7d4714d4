"""One step of the DAG in this process: check that it is still what was asked for, do it once, publish its manifest.

A module in :data:`vqbench.papers.KINDS` implements a step as ``run(job) -> dict`` (facts for the manifest), writing its
files into ``job.store``. The store is keyed by the step's digest and declared by no rule, so Snakemake never deletes
it: training state, sample shards and finished weights survive a failed or re-run job.
"""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from vqbench import attempts, distributed
from vqbench.artifacts import describe, read_json, read_sealed, sealed, verify, write_json
from vqbench.closure import code_digest
from vqbench.errors import ArtifactError, Interrupted, OutOfMemory, PeerLost, StaleSpec, UserError, WorkerLost
from vqbench.papers import KINDS, Bench, Key, Step, bench, score_keys
from vqbench.specs import canonical, digest_of

# Names in a store that are not outputs.
STATE = ("state", ".lock", "failure.json", "finished.json", "run.json", attempts.NOTE)


@dataclass(frozen=True)
class Finished:
    """A finished artifact that a job reads: its files, facts and spec, verified against its manifest."""

    key: Key
    store: Path
    manifest: dict[str, Any]

    @property
    def facts(self) -> dict[str, Any]:
        """What the step recorded in its manifest, e.g. ``parameters``."""
        return dict(self.manifest["facts"])

    def file(self, name: str) -> Path:
        """Path of an output by its name in the manifest."""
        if name not in self.manifest["outputs"]:
            raise ArtifactError(f"{'/'.join(self.key)} has no file '{name}'; it has {sorted(self.manifest['outputs'])}")
        return self.store / name


class Job:
    """What ``run(job)`` is given: the resolved step, its inputs and the folder for its outputs.

    Attributes:
        spec: the step's spec (a frozen :class:`vqbench.specs.Spec`, or a dict for scores).
        bench: all specs of the scale, to look up e.g. the tokenizer that tokens came from.
        store: folder for outputs; ``store / "state"`` is for what a resumed job needs and is not an output.
    """

    def __init__(self, key: Key, scale: str, base: Path | None = None) -> None:
        self.bench: Bench = bench(scale)
        self.key, self.scale, self.base = key, scale, base or Path.cwd()
        self.step: Step = self.bench.step(key)
        self.spec: Any = self.step.spec
        self.digest = self.bench.digest(key)
        self.store = self.base / self.bench.root / "store" / key[0] / key[1] / self.digest[:16]
        # As it is when the job starts: an edit made while it runs must not be recorded as what ran.
        self.code = code_digest(self.step.roots)

    @cached_property
    def state(self) -> Path:
        """Folder for what only a resumed job reads (checkpoints, shards)."""
        folder = self.store / "state"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def upstream(self, kind: str, name: str) -> Finished:
        """A declared input, its digests checked.

        Raises:
            ArtifactError: not there, damaged, or not declared upstream of this step.
            StaleSpec: it was made from another spec or code than the one asked for now.
        """
        if (kind, name) not in self.step.upstream:
            raise ArtifactError(f"{'/'.join(self.key)} does not declare {kind}/{name} as an input")
        return self._open((kind, name))

    def inputs(self) -> dict[str, str]:
        """Digests of the contents of all inputs, for the manifest."""
        done = [self._open(key, check_files=False) for key in self.step.upstream]
        return {"/".join(f.key): digest_of(f.manifest["outputs"]) for f in done}

    def _open(self, key: Key, check_files: bool = True) -> Finished:
        """A damaged input is unpublished. Its own step then looks at its store, and makes again what is not whole there."""
        path = self.base / self.bench.manifest(key)
        try:
            return _open(self.bench, key, self.base, check_files)
        except ArtifactError as error:
            if not path.is_file():
                raise
            with contextlib.suppress(OSError):  # a read-only folder: its mend is said where something is written
                path.unlink()
            raise ArtifactError(f"{error}; {path} was removed: run again, and {'/'.join(key)} is made again") from None


def finished(bench: Bench, key: Key, base: Path) -> Finished:
    """Open a finished artifact, its files checked.

    Raises:
        ArtifactError: its manifest or a file is missing or damaged.
        StaleSpec: it was made from another spec or code than `bench` asks for now.
    """
    path = base / bench.manifest(key)
    try:
        return _open(bench, key, base)
    except ArtifactError as error:
        raise ArtifactError(f"{error}; remove {path} and run again" if path.is_file() else str(error)) from None


def _open(bench: Bench, key: Key, base: Path, check_files: bool = True) -> Finished:
    path = base / bench.manifest(key)
    manifest = read_sealed(path)
    _check_owner(manifest, key, path)
    if manifest["digest"] != bench.digest(key):
        raise StaleSpec(
            f"{path} was made from another spec or code ({manifest['digest'][:12]}, wanted {bench.digest(key)[:12]}); "
            f"run it again, or keep it with: vqbench accept {'/'.join(key)} --scale {bench.scale}"
        )
    store = base / manifest["store"]
    if check_files:
        verify(store, manifest["outputs"], path)
    return Finished(key, store, manifest)


def _check_owner(manifest: dict[str, Any], key: Key, path: Path) -> None:
    if (manifest["kind"], manifest["name"]) != key:
        raise ArtifactError(f"{path} is damaged: it is the manifest of {manifest['kind']}/{manifest['name']}")


def run_step(kind: str, name: str, scale: str, expect: str | None = None, base: Path | None = None) -> Path:
    """Do one step, or re-publish it where its store already holds it finished. Returns the manifest's path.

    Raises:
        StaleSpec: `expect`, the digest at submission, is not the digest now.
        ArtifactError: another process is doing this very step, an input is damaged, or the disk is full.
        UserError: whatever the step itself refuses; recorded as ``failure.json`` for the tables.
    """
    job = Job((kind, name), scale, base)
    if expect is not None and expect != job.digest:
        raise StaleSpec(
            f"{kind}/{name} changed between submission and start ({expect[:12]} -> {job.digest[:12]}): its spec, its "
            "code or something upstream was edited; submit again"
        )
    distributed.join()
    if distributed.rank():
        _follow(job)
    else:
        job.store.mkdir(parents=True, exist_ok=True)
        with _held(job):
            _locked(job)
    distributed.leave()
    return job.base / job.bench.manifest(job.key)


def _follow(job: Job) -> None:
    """A process other than the first: does its share where there is work at all, and publishes nothing."""
    if distributed.agreed(True):
        with _recorded(job):
            _implementation(job.key[0])(job)


@contextlib.contextmanager
def _held(job: Job) -> Iterator[None]:
    """The step's lock. A job on a cluster waits for it: the other may be left from a node or a Snakemake that died."""
    lock, busy = FileLock(job.store / ".lock"), f"{'/'.join(job.key)} is being made by another process right now"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if "SLURM_JOB_ID" not in os.environ:
            raise ArtifactError(f"{busy}; wait for it to end") from None
        print(f"vqbench: {busy}; waiting for it to end", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def accept(key: Key, scale: str, reason: str, base: Path | None = None) -> str:
    """Keep a finished run, and all that was made from it, under changed code or spec; tables name what was kept.

    Raises:
        ArtifactError: the run is not finished.
        UserError: nothing changed.
    """
    base = base or Path.cwd()
    found = Bench(scale)
    manifest = read_json(base / found.manifest(key))
    if manifest["digest"] == found.digest(key):
        raise UserError(f"{'/'.join(key)} is current; there is nothing to accept")
    kept = []
    for one in found.with_upstream(score_keys(found)):  # needs first: what follows depends on what was kept before
        if key in found.with_upstream([one]) and (base / found.manifest(one)).is_file():
            made = read_json(base / found.manifest(one))["digest"]
            if made != found.digest(one):
                found.keep(one, made, reason)
                kept.append("/".join(one))
    write_json(base / found.root / "accepted.json", found.accepted)
    return f"accepted under changed code or spec ({reason}): {', '.join(kept)}"


def _locked(job: Job) -> None:
    for leftover in job.store.rglob(".*"):  # half-written files of a killed process; we hold the lock
        if leftover.name != ".lock" and leftover.is_file():
            leftover.unlink()
    inputs = job.inputs()
    manifest = _finished_before(job, inputs)
    if manifest is not None:
        print(f"vqbench: {'/'.join(job.key)} is finished already; published again", file=sys.stderr)
        distributed.agreed(False)
        _publish(job, manifest, _run_record_before(job))
        return
    (job.store / "failure.json").unlink(missing_ok=True)
    if died := attempts.last_word(job.store):
        print(f"vqbench: the last attempt of {'/'.join(job.key)} ended without a word: {died}", file=sys.stderr)
    began = time.time()
    attempts.begin(job.store)
    with _recorded(job):
        _keep_state_of_these_inputs(job, inputs)
        distributed.agreed(True)
        facts = _implementation(job.key[0])(job)
    manifest = _manifest(job, facts, inputs)
    run = _run_record(job, began)
    write_json(job.store / "run.json", run)
    write_json(job.store / "finished.json", manifest)
    attempts.end(job.store)
    shutil.rmtree(job.store / "state", ignore_errors=True)
    _publish(job, manifest, run)


def _finished_before(job: Job, inputs: dict[str, str]) -> dict[str, Any] | None:
    """The manifest of what the store holds finished, whole and made from these inputs; None, and why, where it does not."""
    done = job.store / "finished.json"
    if not done.is_file():
        return None
    try:
        manifest = read_sealed(done)
        _check_owner(manifest, job.key, done)
        verify(job.store, manifest["outputs"], done)
        if (manifest["digest"], manifest["inputs"]) != (job.digest, inputs):
            raise ArtifactError(f"{done} was made from other inputs than there are now")
    except ArtifactError as error:
        print(f"vqbench: {error}; making it again", file=sys.stderr)
        done.unlink()
        return None
    return manifest


def _run_record_before(job: Job) -> dict[str, Any]:
    """No number depends on it, so its loss makes nothing again."""
    try:
        return dict(read_json(job.store / "run.json"))
    except (ArtifactError, TypeError, ValueError) as error:
        print(f"vqbench: the record of time and machine is lost: {error}", file=sys.stderr)
        return {"lost": "damaged after the run"}


@contextlib.contextmanager
def _recorded(job: Job) -> Iterator[None]:
    """What goes wrong in here becomes ``failure.json``, the reason in the tables' rows; being told to stop is no failure."""
    try:
        yield
    except (Interrupted, PeerLost):
        attempts.end(job.store)
        raise
    except Exception as error:
        reason = _reason(error, job.store)
        attempts.end(job.store)
        with contextlib.suppress(ArtifactError):  # a full disk must not hide the error itself
            write_json(job.store / "failure.json", {"reason": reason, "key": "/".join(job.key)})
        if reason == "out of memory":
            raise OutOfMemory("out of memory: give the job more, or lower micro_batch or block in its spec") from error
        raise


def _keep_state_of_these_inputs(job: Job, inputs: dict[str, str]) -> None:
    """Training state made from other bytes (an input was made again) is not resumed: old and new would mix."""
    record = job.state / "inputs.json"
    try:
        if record.is_file() and read_json(record) == inputs:
            return
        why = f"the inputs of {'/'.join(job.key)} changed"
    except ArtifactError as error:
        why = str(error)
    if any(job.state.iterdir()):
        print(f"vqbench: {why}; its unfinished state is dropped", file=sys.stderr)
        shutil.rmtree(job.state)
        job.state.mkdir()
    write_json(record, inputs)


def _reason(error: Exception, store: Path) -> str:
    """What a table's row says of a failed run."""
    if isinstance(error, WorkerLost) and attempts.last_word(store) == "out of memory":
        return "out of memory"
    if isinstance(error, UserError):
        return str(error)
    out_of_memory = isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__
    if out_of_memory or "allocate memory" in str(error):
        return "out of memory"
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _implementation(kind: str) -> Callable[[Job], dict[str, Any]]:
    function: Callable[[Job], dict[str, Any]] = import_module(KINDS[kind][1]).run
    return function


def _manifest(job: Job, facts: dict[str, Any], inputs: dict[str, str]) -> dict[str, Any]:
    files = [
        str(p.relative_to(job.store))
        for p in job.store.rglob("*")
        if p.is_file() and p.relative_to(job.store).parts[0] not in STATE and not p.name.startswith(".")
    ]
    body = {
        "kind": job.key[0], "name": job.key[1], "scale": job.scale, "digest": job.digest,
        "spec": read_spec(job.spec), "spec_digest": digest_of(job.spec), "code_digest": job.code,
        "inputs": inputs, "outputs": describe(job.store, files), "facts": facts,
        "seed": read_spec(job.spec).get("seed", 0), "store": str(job.store.relative_to(job.base)),
    }  # fmt: skip
    return sealed(body)


def read_spec(spec: Any) -> dict[str, Any]:
    """A spec as plain JSON data, as manifests hold it."""
    import json

    return dict(json.loads(canonical(spec)))


def _publish(job: Job, manifest: dict[str, Any], run: dict[str, Any]) -> None:
    path = job.base / job.bench.manifest(job.key)
    write_json(path.with_name("run.json"), run)
    write_json(path, manifest)


def _run_record(job: Job, began: float) -> dict[str, Any]:
    names = ("torch", "torchvision", "torch-fidelity", "numpy", "scikit-image", "lpips", "pandas", "snakemake")
    return {
        "seconds": round(time.time() - began, 2),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "git_commit": _git_commit(), "host": platform.node(), "python": platform.python_version(),
        "platform": platform.platform(), "cpus": os.cpu_count(), "processes": distributed.world(), "device": _device(),
        "versions": {n: v for n in names if (v := _version(n))},
        "dataset_path": getattr(job.spec, "path", None),
    }  # fmt: skip


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _device() -> str:
    torch = sys.modules.get("torch")
    return (
        torch.cuda.get_device_name()
        if torch is not None and torch.cuda.is_available()
        else platform.processor() or "cpu"
    )
