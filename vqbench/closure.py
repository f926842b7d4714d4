"""What code a step depends on: its import closure, followed statically, hashed as syntax trees.

Comments, docstrings and formatting do not count, so a remark in a docstring never re-trains weeks of GPU time; an
edit in one family's file changes the digest of that family only. No module is imported to find this out.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

from vqbench.errors import SpecError

PACKAGE = Path(__file__).resolve().parent

# Modules that cannot change a number: they report, name files or check them. Left out of every digest.
NEUTRAL = frozenset({"vqbench.errors", "vqbench.progress", "vqbench.artifacts", "vqbench.closure", "vqbench.cli",
                     "vqbench.notice", "vqbench.papers", "vqbench.graph", "vqbench.clone", "vqbench.resolve", "vqbench.codebooks",
                     "vqbench.steps", "vqbench.jobs", "vqbench.changes", "vqbench.run_record",
                     "vqbench.rooms", "vqbench"})  # fmt: skip


def module_file(module: str) -> Path | None:
    """The file of a ``vqbench...`` module, or None where there is none (``vqbench.tokenizers`` is a bare folder)."""
    path = PACKAGE.joinpath(*module.split(".")[1:])
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def closure(roots: Iterable[str]) -> dict[str, Path]:
    """All ``vqbench...`` modules reachable from `roots` by import statements, with their files."""
    found: dict[str, Path] = {}
    todo = list(roots)
    while todo:
        module = todo.pop()
        if module in found or module in NEUTRAL or (path := module_file(module)) is None:
            continue
        found[module] = path
        todo.extend(_scan(path, path.stat().st_mtime_ns)[1])
    return dict(sorted(found.items()))


def code_digest(roots: Iterable[str]) -> str:
    """SHA-256 over the syntax trees of :func:`closure`, without comments and docstrings."""
    whole = hashlib.sha256()
    for module, digest in code_parts(roots).items():
        whole.update(f"{module}:{digest}\n".encode())
    return whole.hexdigest()


def code_parts(roots: Iterable[str]) -> dict[str, str]:
    """Module -> SHA-256 of its syntax tree, of all in :func:`closure`."""
    return {module: _scan(path, path.stat().st_mtime_ns)[0] for module, path in closure(roots).items()}


@lru_cache(maxsize=1024)
def _scan(path: Path, _mtime: int) -> tuple[str, tuple[str, ...]]:
    """(digest of the syntax tree, modules it imports). Cached by modification time."""
    try:
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except (SyntaxError, ValueError) as error:
        raise SpecError(f"{path} is no Python ({error}); mend it and run again") from None
    imports = tuple(sorted(set(_imports(tree))))
    _strip_docstrings(tree)
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest(), imports


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in _statements(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] == "vqbench")
        elif isinstance(node, ast.ImportFrom) and node.level:
            raise SpecError(f"relative imports are not followed: write 'from vqbench...' (line {node.lineno})")
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "vqbench":
            yield node.module
            yield from (f"{node.module}.{a.name}" for a in node.names)


def _statements(tree: ast.AST) -> Iterator[ast.AST]:
    """The tree and its statements, at any depth. Not their expressions: they hold none, and are most of a tree."""
    todo = [tree]
    while todo:
        yield (node := todo.pop())
        parts = ast.iter_child_nodes(node)
        todo.extend(part for part in parts if isinstance(part, ast.stmt | ast.ExceptHandler | ast.match_case))


def _strip_docstrings(tree: ast.AST) -> None:
    for node in _statements(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:]
