"""Which finished steps a figure is drawn from. The Snakefile reads this: no torch, pandas, matplotlib."""

from __future__ import annotations

from collections.abc import Mapping

from vqbench.errors import SpecError, nearest
from vqbench.papers import Bench, Figure, Key
from vqbench.specs import Spec

# kind of figure -> kinds of run that it can show
SHOWS = {
    "usage-and-rfid": ("tokenizer",),
    "downstream": ("tokenizer", "samples", "classifier"),
    "reconstructions": ("tokenizer",),
    "samples": ("samples",),
    "codebook": ("tokenizer",),
    "losses": ("tokenizer", "generator", "classifier"),
    "usage-over-epochs": ("tokenizer",),
    "code-frequency": ("tokenizer",),
    "code-map": ("tokenizer",),
    "nearest-replacement": ("tokenizer",),
}

# kind of figure -> what its reader should know, for the report
ABOUT = {
    "usage-and-rfid": "Codebook usage, over the images that the paper's table counts it on, and rFID against token dimension and "
    "codebook size, with 95% intervals.",
    "downstream": "Tokenizers on every task that learns from their tokens: lower is better for FID, higher for top-1. "
    "At paper scale a diamond is what the paper prints; a question mark, where its reading is uncertain.",
    "reconstructions": "Validation images, spread over the split, and what each tokenizer makes of them, with PSNR.",
    "samples": "The first samples of each set, a row a class, the paper's where this scale has them; of an unconditional set in "
    "their order.",
    "codebook": "Code vectors as maps, spread over the codebook.",
    "losses": "Every term of the training logs; running means over the pale raw values.",
    "usage-over-epochs": "Share of the codebook that the training ids of each epoch hit at least once.",
    "code-frequency": "Above, how often each code occurs in the training images once training is over, in falling order, over "
    "the frequency of an evenly used codebook; below, a pixel a code, the share of training epochs that hit it.",
    "code-map": "t-SNE of the code vectors; active codes occur in the ids of the training images. The share is of all codes; at "
    "paper scale what the paper prints stands beside it.",
    "nearest-replacement": "Each token replaced by the M-th nearest code to its own, which is the first: PSNR over validation "
    "images, and pictures. At a scale with smaller codebooks M is smaller too.",
}


def figure_keys(bench: Bench, figure: Figure) -> list[Key]:
    """The steps that must be finished before `figure` is drawn, each once, in the order of its ``runs``.

    Raises:
        SpecError: unknown kind of figure, a run that does not exist, or one of a kind that this figure cannot show.
    """
    return list(dict.fromkeys(key for run in figure_runs(bench, figure) for key in _needs(bench, figure, run)))


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


def _needs(bench: Bench, figure: Figure, run: Key) -> list[Key]:
    kind, name = figure.kind, run[1]
    if kind == "downstream":
        return [score_of(bench, run)]
    if kind in ("samples", "codebook", "losses", "usage-over-epochs"):
        return [run]
    dataset = bench.tokenizers[name].dataset
    if kind in ("code-frequency", "code-map"):
        return [run, ("tokens", f"{name}/{dataset}/train")]
    if kind == "nearest-replacement":
        return [run, ("tokens", f"{name}/{dataset}/validation"), ("dataset", dataset)]
    if kind == "usage-and-rfid":
        return list(dict.fromkeys((score_of(bench, run), usage_of(bench, figure, name)[0])))
    return [("reconstruction", f"{name}/{dataset}"), ("dataset", dataset)]


def usage_of(bench: Bench, figure: Figure, tokenizer: str) -> tuple[Key, str]:
    """The scores and the metric that a figure takes a tokenizer's usage from: over all training images where a table of the
    figure counts it so, else over the validation images."""
    columns = (c for name in figure.tables for c in bench.table(f"{figure.paper}/{name}").columns.values())
    if any(column.get("metric") == "usage_train" for column in columns):
        return ("train-usage", tokenizer), "usage_train"
    return score_of(bench, ("tokenizer", tokenizer)), "usage"


def score_of(bench: Bench, run: Key) -> Key:
    """The scores of a run on its own data set."""
    kind, name = run
    if kind == "tokenizer":
        return "tokenizer-scores", f"{name}/{bench.tokenizers[name].dataset}"
    return {"samples": "sample-scores", "classifier": "classifier-scores"}[kind], name
