"""What changed about a step: since Snakemake planned its job, or since its artifact was made.

A digest says only that something changed. So Snakemake, when it starts, notes the parts of every digest that it planned
with, and a job that finds another digest than it was given compares.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vqbench.artifacts import read_sealed, sealed, write_json
from vqbench.closure import code_digest, code_parts
from vqbench.errors import ArtifactError
from vqbench.graph import Graph, Key
from vqbench.specs import plain

NOTES = "asked.json"  # below the scale's results
KEPT = 4  # notes of one step: jobs may wait from earlier calls
SHOWN = 3  # changes that a message names
UNKNOWN = "its spec, its code or something that it is made from was edited"


def note(bench: Graph, base: Path) -> None:
    """Note the parts of all digests that `bench` was asked for; a dry-run does not come here."""
    path = base / bench.root / NOTES
    found = _notes(path)
    for key, digest in bench.asked().items():
        name = "/".join(key)
        others = [one for one in found.get(name, []) if one["digest"] != digest]
        found[name] = [*others, {"digest": digest, **_parts(bench, key)}][-KEPT:]
    write_json(path, sealed({"notes": found}))


def since_asked(bench: Graph, key: Key, digest: str, base: Path) -> str:
    """What changed about `key` since its job was planned with `digest`."""
    notes = _notes(base / bench.root / NOTES).get("/".join(key), [])
    before = next((one for one in notes if one["digest"] == digest), None)
    if before is None:
        return UNKNOWN
    now = _parts(bench, key)
    files = [name for name in {**before["code"], **now["code"]} if before["code"].get(name) != now["code"].get(name)]
    needs = [
        name
        for name in {**before["upstream"], **now["upstream"]}
        if before["upstream"].get(name) != now["upstream"].get(name)
    ]
    return _told(_settings(before["spec"], now["spec"]), files, needs)


def since(manifest: dict[str, Any], bench: Graph, key: Key) -> str:
    """What changed about `key` since the artifact of `manifest` was made."""
    step = bench.step(key)
    edited = manifest["code_digest"] != code_digest(step.roots)
    files = [root.removeprefix("vqbench.") + " or an import of it" for root in step.roots] if edited else []
    return _told(_settings(manifest["spec"], plain(step.spec)), files, [])


def _notes(path: Path) -> dict[str, Any]:
    """Empty where there are none: they only serve messages."""
    try:
        return dict(read_sealed(path)["notes"]) if path.is_file() else {}
    except ArtifactError:
        return {}


def _parts(bench: Graph, key: Key) -> dict[str, Any]:
    step = bench.step(key)
    code = {module.removeprefix("vqbench."): digest[:12] for module, digest in code_parts(step.roots).items()}
    return {"spec": plain(step.spec), "code": code, "upstream": {"/".join(k): bench.digest(k) for k in step.upstream}}


def _settings(before: Any, now: Any, path: str = "") -> Iterator[str]:
    """Settings that differ, e.g. ``training.lr: 0.1, now 0.2``."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in {**before, **now}:
            yield from _settings(before.get(name), now.get(name), f"{path}.{name}" if path else name)
    elif before != now:
        yield f"{path}: {before}, now {now}"


def _told(settings: Iterator[str], files: list[str], needs: list[str]) -> str:
    parts = [("its spec", list(settings)), ("its code", files), ("what it is made from", needs)]
    told = [f"{what} ({_few(names)})" for what, names in parts if names]
    return " and ".join(told) or "what it is made from"


def _few(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
