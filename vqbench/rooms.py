"""The rooms ``tokenizers/``, ``generators/`` and ``eval/``: methods found by file name, literals read unimported.

A family is a file with an ``OPTIONS`` literal. ``family: channel`` means ``tokenizers/channel.py``: no registry.
"""

from __future__ import annotations

import ast
import importlib
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from vqbench.closure import PACKAGE
from vqbench.errors import SpecError, nearest

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
