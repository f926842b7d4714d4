"""A code digest changes with the code that a step reaches, and with nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vqbench import closure
from vqbench.errors import SpecError


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "vqbench"
    (folder / "tokenizers").mkdir(parents=True)
    (folder / "tokenizers" / "mine.py").write_text('"""Mine."""\nfrom vqbench.helper import two\nx = two()\n')
    (folder / "tokenizers" / "other.py").write_text("y = 1\n")
    (folder / "helper.py").write_text('def two():\n    """Two."""\n    return 2\n')
    monkeypatch.setattr(closure, "PACKAGE", folder)
    closure._scan.cache_clear()
    return folder


def digest() -> str:
    closure._scan.cache_clear()
    return closure.code_digest(["vqbench.tokenizers.mine"])


def test_comments_docstrings_and_blank_lines_do_not_count(package: Path) -> None:
    before = digest()
    (package / "helper.py").write_text('# why\ndef two():\n    """Another text."""\n\n    return 2  # two\n')
    os.utime(package / "tokenizers" / "mine.py")
    assert digest() == before


def test_code_that_is_reached_counts(package: Path) -> None:
    before = digest()
    (package / "helper.py").write_text("def two():\n    return 3\n")
    assert digest() != before


def test_code_that_is_not_reached_does_not_count(package: Path) -> None:
    before = digest()
    (package / "tokenizers" / "other.py").write_text("y = 2\n")
    assert digest() == before


def test_a_relative_import_is_refused_as_it_would_escape_the_digest(package: Path) -> None:
    (package / "tokenizers" / "mine.py").write_text("from .other import y\n")
    with pytest.raises(SpecError, match=r"write 'from vqbench\.\.\.' \(line 1\)"):
        digest()


def test_what_is_no_python_is_named(package: Path) -> None:
    for content in (b"def f(:\n", b"\0", "x = 'ä'\n".encode("latin-1")):
        (package / "tokenizers" / "mine.py").write_bytes(content)
        with pytest.raises(SpecError, match=r"mine\.py is no Python"):
            digest()


def test_a_family_reaches_its_own_quantizer_but_no_other_family() -> None:
    reached = closure.closure(["vqbench.tokenizers.training", "vqbench.tokenizers.channel"])
    assert "vqbench.tokenizers.quantizers.codebook" in reached and "vqbench.training" in reached
    assert "vqbench.tokenizers.vq" not in reached
    assert not any(name.startswith(("vqbench.eval", "vqbench.generators")) for name in reached)
