"""One step of the DAG in this process: check that it is still what was asked for, do it once, publish its manifest.

A module in :data:`vqbench.papers.KINDS` implements a step as ``run(job) -> dict`` (facts for the manifest), writing its
files into ``job.store``. The store is keyed by the step's digest and declared by no rule, so Snakemake never deletes
it: training state, sample shards and finished weights survive a failed or re-run job.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from vqbench import attempts, distributed
from vqbench.artifacts import describe, read_json, read_sealed, sealed, verify, write_json
from vqbench.changes import since_asked
from vqbench.errors import (
    ArtifactError,
    Interrupted,
    OutOfMemory,
    PeerLost,
    StaleSpec,
    UserError,
    WorkerLost,
    is_out_of_memory,
    naming,
)
from vqbench.jobs import Job, check_owner
from vqbench.notice import Notice
from vqbench.papers import KINDS, Bench, Key, score_keys
from vqbench.run_record import run_record
from vqbench.specs import digest_of, plain

# Names in a store that are not outputs.
STATE = ("state", ".lock", "failure.json", "finished.json", "run.json", attempts.NOTE)


def run_step(kind: str, name: str, scale: str, expect: str | None = None, base: Path | None = None) -> Path:
    """Do one step, or re-publish it where its store already holds it finished. Returns the manifest's path.

    Raises:
        StaleSpec: `expect`, the digest at submission, is not the digest now.
        ArtifactError: another process is doing this very step, an input is damaged, or the disk is full.
        UserError: whatever the step itself refuses; recorded as ``failure.json`` for the tables.
    """
    job = Job((kind, name), scale, base)
    if expect is not None and expect != job.digest:
        what = since_asked(job.bench, job.key, expect, job.base)
        raise StaleSpec(f"{kind}/{name} changed between submission and start: {what}; submit again")
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
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if "SLURM_JOB_ID" not in os.environ:
                raise ArtifactError(f"{busy}; wait for it to end") from None
            print(f"vqbench: {busy}; waiting for it to end", file=sys.stderr, flush=True)
            _wait_for(lock)
        yield
    finally:
        lock.release()


def _wait_for(lock: FileLock) -> None:
    """Told to stop meanwhile, a wait ends as a loop does: a Slurm job's time limit queues it again, and spends no retry."""
    with Notice() as notice:
        while not (lock.is_locked or notice.given):
            with contextlib.suppress(Timeout):
                lock.acquire(timeout=0.5)
        if notice.given:
            raise notice.stopped("its wait for that process")


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
        _end(job)
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
    run = run_record(job.spec, began) | job.measured
    write_json(job.store / "run.json", run)
    write_json(job.store / "finished.json", manifest)
    _end(job)
    _publish(job, manifest, run)


def _end(job: Job) -> None:
    """What only an unfinished step needs goes; a kill may have come before, so also where it was finished already."""
    attempts.end(job.store)
    shutil.rmtree(job.store / "state", ignore_errors=True)


def _finished_before(job: Job, inputs: dict[str, str]) -> dict[str, Any] | None:
    """The manifest of what the store holds finished, whole and made from these inputs; None, and why, where it does not."""
    done = job.store / "finished.json"
    if not done.is_file():
        return None
    try:
        manifest = read_sealed(done)
        check_owner(manifest, job.key, done)
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
        with naming("/".join(job.key)):
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
    if is_out_of_memory(error):
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
        "spec": plain(job.spec), "spec_digest": digest_of(job.spec), "code_digest": job.code,
        "inputs": inputs, "outputs": describe(job.store, files), "facts": facts,
        "seed": plain(job.spec).get("seed", 0), "store": str(job.store.relative_to(job.base)),
    }  # fmt: skip
    return sealed(body)


def _publish(job: Job, manifest: dict[str, Any], run: dict[str, Any]) -> None:
    path = job.base / job.bench.manifest(job.key)
    write_json(path.with_name("run.json"), run)
    write_json(path, manifest)
