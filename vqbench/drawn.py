"""What tables, figures and scores.csv were made from: they carry no manifest, so their digests lie beside the stores.

With them a job that waited refuses under another digest than it was given, and what was made from another one is made
again, whether or not Snakemake still has its own record.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vqbench.artifacts import write_text
from vqbench.errors import StaleSpec
from vqbench.graph import Graph

FOLDER = "store/drawn"  # below the scale's results


@contextmanager
def drawing(bench: Graph, name: str, output: str, digest: str, expect: str | None) -> Iterator[None]:
    """The block writes `output`; then what it was made from is noted and its path printed.

    Args:
        output: relative to the clone.
        digest: what `name` is made from now.
        expect: the digest at submission, if it was submitted.

    Raises:
        StaleSpec: they differ; nothing is written.
    """
    if expect is not None and expect != digest:
        raise StaleSpec(
            f"{name} changed between submission and start: its declaration, its runs or the code that writes it was edited; "
            "run the same command again"
        )
    yield
    write_text(_place(bench, output), digest + "\n")
    print(output)


def is_drawn_from(bench: Graph, output: str, digest: str) -> bool:
    """Whether an output was made from this digest; one that nothing is known of was not."""
    try:
        return _place(bench, output).read_text(encoding="utf-8") == digest + "\n"
    except (OSError, ValueError):
        return False


def _place(bench: Graph, output: str) -> Path:
    return Path(bench.root) / FOLDER / (output.removeprefix(f"{bench.root}/") + ".digest")
