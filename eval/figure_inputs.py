"""Which finished steps a figure is drawn from. The Snakefile reads this: no torch, pandas, matplotlib."""

from __future__ import annotations

from collections.abc import Mapping

from vqbench.errors import SpecError, nearest
from vqbench.papers import Bench, Figure, Key
from vqbench.specs import Spec

# kind of figure -> kinds of run that it can show
SHOWS = {
    "usage-and-rfid": ("tokenizer",),
    "reconstructions": ("tokenizer",),
    "samples": ("samples",),
    "codebook": ("tokenizer",),
    "losses": ("tokenizer", "generator", "classifier"),
}


def figure_keys(bench: Bench, figure: Figure) -> list[Key]:
    """The steps that must be finished before `figure` is drawn, each once, in the order of its ``runs``.

    Raises:
        SpecError: unknown kind of figure, a run that does not exist, or one of a kind that this figure cannot show.
    """
    return list(dict.fromkeys(key for run in figure_runs(bench, figure) for key in _needs(bench, figure.kind, run)))


def figure_runs(bench: Bench, figure: Figure) -> list[Key]:
    """The runs that a figure shows, as (tokenizer | generator | samples, id)."""
    where = f"{figure.paper}.yaml: figure '{figure.id}'"
    if figure.kind not in SHOWS:
        raise SpecError(f"{where}: unknown kind '{figure.kind}'; {nearest(figure.kind, SHOWS)}")
    return [run_key(bench, figure, run) for group in figure.runs.values() for run in group]


def run_key(bench: Bench, figure: Figure, run: str) -> Key:
    """The kind of a run by its id, which is unique across kinds and papers."""
    kinds: dict[str, Mapping[str, Spec]] = {
        "tokenizer": bench.tokenizers,
        "generator": bench.generators,
        "samples": bench.samples,
        "classifier": bench.classifiers,
    }
    found = next((kind for kind, runs in kinds.items() if run in runs), None)
    if found not in SHOWS[figure.kind]:
        known = [name for kind in SHOWS[figure.kind] for name in kinds[kind]]
        raise SpecError(
            f"{figure.paper}.yaml: figure '{figure.id}' ({figure.kind}) cannot show '{run}'; {nearest(run, known)}"
        )
    return str(found), run


def _needs(bench: Bench, kind: str, run: Key) -> list[Key]:
    name = run[1]
    if kind in ("samples", "codebook", "losses"):
        return [run]
    dataset = bench.tokenizers[name].dataset
    if kind == "usage-and-rfid":
        return [("tokenizer-scores", f"{name}/{dataset}")]
    return [("reconstruction", f"{name}/{dataset}"), ("dataset", dataset)]
