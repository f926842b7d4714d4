"""The rooms ``tokenizers/``, ``generators/`` and ``eval/``: methods found by file name, literals read unimported.

A family is a file with an ``OPTIONS`` literal. ``family: channel`` means ``tokenizers/channel.py``: no registry.
"""

from __future__ import annotations

import ast
import importlib
import traceback
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from vqbench.closure import PACKAGE
from vqbench.errors import SpecError, is_out_of_memory, nearest
from vqbench.specs import GeneratorSpec, TokenizerSpec

Room = Literal["tokenizers", "generators"]


def family_file(room: Room, family: str) -> Path:
    return PACKAGE / room / f"{family}.py"


def families(room: Room) -> list[str]:
    """Names of all families of a room: the files that declare ``OPTIONS``."""
    files = sorted((PACKAGE / room).glob("*.py"))
    return [f.stem for f in files if "OPTIONS" in literals(f, f.stat().st_mtime_ns)]


def family_literals(room: Room, family: str, where: str) -> dict[str, Any]:
    """The upper-case literals at the top of a family's file, read without importing it.

    Raises:
        SpecError: there is no such family.
    """
    path = family_file(room, family)
    found = literals(path, path.stat().st_mtime_ns) if path.is_file() else {}
    if "OPTIONS" not in found:
        raise SpecError(f"{where}: unknown family '{family}' in {room}/; {nearest(family, families(room))}")
    return found


def needs(family: str) -> dict[str, dict[str, Any]]:
    """The ``NEEDS`` literal of a tokenizer family: option -> the kind of artifact that it names, and what must match."""
    found: dict[str, dict[str, Any]] = family_literals("tokenizers", family, "tokenizer").get("NEEDS", {})
    return found


@lru_cache(maxsize=256)
def literals(path: Path, _mtime: int) -> dict[str, Any]:
    """``NAME = <literal>`` assignments at the top level of a file."""
    found: dict[str, Any] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        target = (
            node.targets[0]
            if isinstance(node, ast.Assign)
            else node.target
            if isinstance(node, ast.AnnAssign)
            else None
        )
        if (
            isinstance(target, ast.Name)
            and target.id.isupper()
            and isinstance(node, ast.Assign | ast.AnnAssign)
            and node.value
        ):
            try:
                found[target.id] = ast.literal_eval(node.value)
            except ValueError:
                continue
    return found


def load(room: str, name: str) -> ModuleType:
    """Import ``vqbench.<room>.<name>``."""
    return importlib.import_module(f"vqbench.{room}.{name}")


def build(room: Room, spec: TokenizerSpec | GeneratorSpec) -> Any:
    """A family's untrained model. Runs on the meta device too.

    Raises:
        SpecError: the family refuses the spec, or fails on it; the message then ends with the error and its place, so
            that a mistake in the family itself is seen as well.
    """
    module = load(room, spec.family)
    try:
        return module.build(spec)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        *_, last = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(str(PACKAGE))]
        place = f"{Path(last.filename).relative_to(PACKAGE)}:{last.lineno}"
        reason = str(error).strip().partition("\n")[0]
        raise SpecError(
            f"family '{spec.family}' in {room}/ cannot be built with options {spec.options} on {spec.tokens!r}: "
            f"{type(error).__name__} at {place}: {reason}"
        ) from error
