"""Reads workflow/papers/*.yaml and a scale overlay and resolves them to specs, run ids and the edges between them.

No torch, no pandas: the Snakefile reads this in every job. Everything that a scale replaces is data in
workflow/scales/<scale>.yaml; the shape of the DAG is the papers' alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from vqbench.artifacts import read_json
from vqbench.clone import CLONE, WORKFLOW, read_yaml, scale_of, scale_root, scales
from vqbench.codebooks import check_needs, resolve_codebook
from vqbench.crossings import cross
from vqbench.errors import ArtifactError, SpecError, nearest
from vqbench.graph import KINDS, TRAINED, Key, Step
from vqbench.products import FIRST_PAPER, Crossing, Figure, Products, Row, Table
from vqbench.resolve import KINDS as RUNS
from vqbench.resolve import (
    Overlay,
    resolve_classifier,
    resolve_generator,
    resolve_samples,
    resolve_tokenizer,
    resolve_training,
)
from vqbench.shapes import NAME, check_names, check_paper, understood
from vqbench.specs import (
    ClassifierSpec,
    CodebookSpec,
    DatasetSpec,
    GeneratorSpec,
    PretrainedSpec,
    SampleSpec,
    TokenizerSpec,
    parse,
)

__all__ = [
    "CLONE", "FIRST_PAPER", "KINDS", "TRAINED", "WORKFLOW", "Bench", "Figure", "Key", "Row", "Step", "Table", "bench",
    "read_yaml", "scale_of", "scale_root", "scales", "score_keys",
]  # fmt: skip


class Bench(Products):
    """All papers at one scale, resolved."""

    def __init__(self, scale: str, workflow: Path = WORKFLOW) -> None:
        if not NAME.fullmatch(scale) or not (workflow / "scales" / f"{scale}.yaml").is_file():
            raise SpecError(f"unknown scale '{scale}'; {nearest(scale, scales())}")
        self.scale = scale
        self.root = scale_root(scale)
        self.overlay = Overlay(read_yaml(workflow / "scales" / f"{scale}.yaml"), scale)
        self.recipes = _load_recipes(workflow / "recipes")
        self.papers = {p.stem: read_yaml(p) for p in sorted((workflow / "papers").glob("*.yaml"))}
        check_names(self.papers, "papers")
        shared = read_yaml(workflow / "datasets.yaml")
        pretrained = read_yaml(workflow / "pretrained.yaml")
        check_names(shared, "datasets.yaml")
        check_names(pretrained, "pretrained.yaml")
        self.datasets = {k: parse(DatasetSpec, v, f"data set '{k}'") for k, v in shared.items()}
        self.pretrained = {k: self._pretrained(k, v) for k, v in pretrained.items()}
        self.codebooks: dict[str, CodebookSpec] = {}
        self.tokenizers: dict[str, TokenizerSpec] = {}
        self.generators: dict[str, GeneratorSpec] = {}
        self.samples: dict[str, SampleSpec] = {}
        self.classifiers: dict[str, ClassifierSpec] = {}
        self._owner: dict[str, str] = {}
        for paper, data in self.papers.items():
            check_paper(paper, data)
        for kinds in (("codebooks",), RUNS):  # one paper may use another's codebook
            for paper, data in self.papers.items():
                self._read_runs(paper, data, kinds)
        self.crossings = {key: found for paper, data in self.papers.items() for key, found in self._cross(paper, data)}
        self.accepted = self._read_accepted()
        self._digests: dict[Key, str] = {}
        self._codes: dict[tuple[str, ...], str] = {}
        self._protocols: dict[str, dict[str, Any]] = {}
        self._drawn: dict[Key, str] = {}

    def _pretrained(self, name: str, entry: dict[str, Any]) -> PretrainedSpec:
        where = f"pretrained '{name}'"
        with understood(where):
            return self._resolved_pretrained(dict(entry), where)

    def _resolved_pretrained(self, entry: dict[str, Any], where: str) -> PretrainedSpec:
        dataset = self.datasets.get(entry.get("dataset") or "")
        if "training" in entry:
            entry["training"] = resolve_training(entry["training"], dataset.sizes["train"] if dataset else 0, where)
        return parse(PretrainedSpec, entry, where)

    def _read_runs(self, paper: str, data: dict[str, Any], kinds: tuple[str, ...]) -> None:
        for kind in kinds:
            for run_id, entry in (data.get(kind) or {}).items():
                where = f"{paper}.yaml: {kind[:-1] if kind != 'samples' else kind} '{run_id}'"
                with understood(where):
                    self._add_run(paper, kind, run_id, dict(entry), where)

    def _cross(self, paper: str, data: dict[str, Any]) -> Iterator[tuple[tuple[str, str, str], Crossing]]:
        """The pairs of tokenizer and generator that the paper's tables ask for."""
        return cross(self, paper, data, partial(self._add_run, paper))

    def _add_run(self, paper: str, kind: str, run_id: str, entry: dict[str, Any], where: str) -> None:
        if run_id in self._owner:
            raise SpecError(f"{where}: the id is taken by {self._owner[run_id]}.yaml; ids are unique across papers")
        self._read_run(kind, run_id, entry, where)
        self._owner[run_id] = paper

    def _read_run(self, kind: str, run_id: str, entry: dict[str, Any], where: str) -> None:
        entry.pop("tables", None), entry.pop("label", None)
        if kind == "codebooks":
            self.codebooks[run_id] = resolve_codebook(entry, self.datasets, self.pretrained, self.overlay, where)
        elif kind == "tokenizers":
            found = resolve_tokenizer(entry, self.datasets, self.recipes, self.overlay, where)
            check_needs(found, {"codebook": self.codebooks}, where)
            self.tokenizers[run_id] = found
        elif kind == "generators":
            self.generators[run_id] = resolve_generator(
                entry, self.tokenizers, self.datasets, self.recipes, self.overlay, where
            )
        elif kind == "classifiers":
            self.classifiers[run_id] = resolve_classifier(
                entry, self.tokenizers, self.datasets, self.recipes, self.overlay, where
            )
        else:
            self.samples[run_id] = resolve_samples(entry, self.generators, self.overlay, where)

    def _read_accepted(self) -> dict[str, dict[str, str]]:
        path = CLONE / self.root / "accepted.json"
        found = read_json(path) if path.is_file() else {}
        if not isinstance(found, dict) or not all(isinstance(v, dict) for v in found.values()):
            raise ArtifactError(f"{path} is damaged; remove it, and accept again what you want to keep")
        return found


def score_keys(bench: Bench) -> list[Key]:
    """Every score of every run of a scale: what scores.csv holds."""
    keys: list[Key] = []
    for name in bench.tokenizers:
        keys += [*bench.own_scores("tokenizer", name), ("probe", name)]
    keys += [("sample-scores", name) for name in bench.samples]
    keys += [("classifier-scores", name) for name in bench.classifiers]
    controlled = [name for data in bench.papers.values() for name in data.get("controls", ())]
    return keys + [("controls", name) for name in controlled]


def _load_recipes(folder: Path) -> dict[str, dict[str, Any]]:
    """``<file>/<variant>`` -> recipe; a variant may name its ``base``."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.yaml")):
        for variant, entry in read_yaml(path).items():
            if not isinstance(entry, dict):
                raise SpecError(f"{path.name}: recipe '{variant}' is {entry!r}: expected a mapping")
            found[f"{path.stem}/{variant}"] = entry
    return found


@lru_cache(maxsize=4)
def bench(scale: str) -> Bench:
    """The cached :class:`Bench` of a scale."""
    return Bench(scale)
