"""What a step's ``run(job)`` is given: its resolved spec, a folder for its outputs, and its inputs, verified."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vqbench.artifacts import read_sealed, verify
from vqbench.changes import since
from vqbench.closure import code_digest
from vqbench.errors import ArtifactError, StaleSpec
from vqbench.papers import Bench, Key, Step, bench
from vqbench.specs import digest_of


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
        measured: what the step says of this run of it (seconds an image) for ``run.json``; no number depends on it.
        store: folder for outputs; ``store / "state"`` is for what a resumed job needs and is not an output.
    """

    def __init__(self, key: Key, scale: str, base: Path | None = None) -> None:
        self.bench: Bench = bench(scale)
        self.key, self.scale, self.base = key, scale, base or Path.cwd()
        self.step: Step = self.bench.step(key)
        self.spec: Any = self.step.spec
        self.measured: dict[str, float] = {}
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
        return finished(self.bench, key, self.base, check_files)


def finished(bench: Bench, key: Key, base: Path, check_files: bool = True) -> Finished:
    """Open a finished artifact. A damaged one is unpublished: its own step then looks at its store, and makes again what
    is not whole there.

    Args:
        check_files: compare its files with their digests, too.

    Raises:
        ArtifactError: its manifest or a file is missing or damaged.
        StaleSpec: it was made from another spec or code than `bench` asks for now.
    """
    path = base / bench.manifest(key)
    try:
        return _open(bench, key, base, check_files)
    except ArtifactError as error:
        if not path.is_file():
            raise
        with contextlib.suppress(OSError):  # a read-only folder: its mend is said where something is written
            path.unlink()
        raise ArtifactError(f"{error}; {path} was removed: run again, and {'/'.join(key)} is made again") from None


def _open(bench: Bench, key: Key, base: Path, check_files: bool) -> Finished:
    path = base / bench.manifest(key)
    manifest = read_sealed(path)
    check_owner(manifest, key, path)
    if manifest["digest"] != bench.digest(key):
        raise StaleSpec(
            f"{path} was made from another spec or code ({since(manifest, bench, key)}); "
            f"run it again, or keep it with: vqbench accept {'/'.join(key)} --scale {bench.scale}"
        )
    store = base / manifest["store"]
    if check_files:
        verify(store, manifest["outputs"], path)
    return Finished(key, store, manifest)


def check_owner(manifest: dict[str, Any], key: Key, path: Path) -> None:
    if (manifest["kind"], manifest["name"]) != key:
        raise ArtifactError(f"{path} is damaged: it is the manifest of {manifest['kind']}/{manifest['name']}")
