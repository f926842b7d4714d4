"""Reads workflow/papers/*.yaml and a scale overlay and resolves them to specs, run ids and the edges between them.

No torch, no pandas: the Snakefile reads this in every job. Everything that a scale replaces is data in
workflow/scales/<scale>.yaml; the shape of the DAG is the papers' alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import yaml

from vqbench.closure import PACKAGE, code_digest
from vqbench.errors import SpecError, nearest
from vqbench.resolve import Overlay, resolve_generator, resolve_samples, resolve_tokenizer, resolve_training
from vqbench.specs import (
    DatasetSpec,
    GeneratorSpec,
    PretrainedSpec,
    SampleSpec,
    Spec,
    TokenizerSpec,
    TokensSpec,
    canonical,
    digest_of,
    parse,
)

CLONE = PACKAGE.parent
WORKFLOW = CLONE / "workflow"
FIRST_PAPER = "cq"  # its tables lie at the root: results/table2.csv

Key = tuple[str, str]  # (kind, name), e.g. ("tokenizer", "cq-k16384")

# kind -> (folder under the results root, module whose run(job) does it)
KINDS = {
    "dataset": ("datasets", "vqbench.data"),
    "pretrained": ("pretrained", "vqbench.pretrained"),
    "tokenizer": ("tokenizers", "vqbench.tokenizers.training"),
    "tokens": ("tokens", "vqbench.tokenizers.encoding"),
    "reconstruction": ("reconstructions", "vqbench.tokenizers.decoding"),
    "generator": ("generators", "vqbench.generators.training"),
    "samples": ("samples", "vqbench.generators.sampling"),
    "reference": ("references", "vqbench.eval.reference"),
    "tokenizer-scores": ("scores/tokenizers", "vqbench.eval.score_tokenizer"),
    "sample-scores": ("scores/samples", "vqbench.eval.score_samples"),
    "probe": ("scores/probes", "vqbench.eval.probe"),
    "controls": ("scores/controls", "vqbench.eval.controls"),
}

# Kinds that eval_only never makes: they train or sample.
TRAINED = {"pretrained", "tokenizer", "generator", "samples"}


@dataclass(frozen=True)
class Step:
    """One job: what it makes, from which spec, with which code, after which others."""

    kind: str
    name: str
    spec: Any
    roots: tuple[str, ...]
    upstream: tuple[Key, ...]


@dataclass(frozen=True)
class Row:
    """One row of a printed table. `run` names what is measured: {} for a row that is only reported."""

    label: str
    run: Mapping[str, str] = field(default_factory=dict)
    status: str = "reported_only"


@dataclass(frozen=True)
class Table:
    paper: str
    id: str
    title: str
    columns: Mapping[str, Mapping[str, str]]
    rows: tuple[Row, ...]
    ablation: bool = False


@dataclass(frozen=True)
class Figure:
    paper: str
    id: str
    title: str
    kind: str
    runs: Mapping[str, tuple[str, ...]]
    tables: tuple[str, ...]


def scales() -> list[str]:
    return sorted(p.stem for p in (WORKFLOW / "scales").glob("*.yaml"))


def scale_root(scale: str) -> str:
    """``results`` for paper scale, ``results/<scale>`` for every other."""
    return "results" if scale == "paper" else f"results/{scale}"


def scale_of(path: str | Path) -> str:
    """The scale that a path under results/ belongs to: ``results/demo/table2.csv`` is demo."""
    parts = Path(path).parts
    return parts[1] if len(parts) > 2 and parts[0] == "results" and parts[1] in scales() else "paper"


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping.

    Raises:
        SpecError: missing file, broken YAML, or no mapping at its top.
    """
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError:
        raise SpecError(f"{path.name}: there is no such file in {path.parent.name}/") from None
    except yaml.YAMLError as error:
        raise SpecError(f"{path.name}: not valid YAML: {error}") from None
    if not isinstance(data, dict):
        raise SpecError(f"{path.name}: expected a mapping at the top, found {type(data).__name__}")
    return data


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Safe YAML in which only true and false are booleans: YAML 1.1 would read the key ``on`` as True."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, rule) for tag, rule in rules if tag != "tag:yaml.org,2002:bool"]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(?:true|false)$"), list("tf"))


class Bench:
    """All papers at one scale, resolved."""

    def __init__(self, scale: str, workflow: Path = WORKFLOW) -> None:
        if not (workflow / "scales" / f"{scale}.yaml").is_file():
            raise SpecError(f"unknown scale '{scale}'; {nearest(scale, scales())}")
        self.scale = scale
        self.root = scale_root(scale)
        self.overlay = Overlay(read_yaml(workflow / "scales" / f"{scale}.yaml"), scale)
        self.recipes = _load_recipes(workflow / "recipes")
        self.papers = {p.stem: read_yaml(p) for p in sorted((workflow / "papers").glob("*.yaml"))}
        shared = read_yaml(workflow / "datasets.yaml")
        pretrained = read_yaml(workflow / "pretrained.yaml")
        self.datasets = {k: parse(DatasetSpec, v, f"data set '{k}'") for k, v in shared.items()}
        self.pretrained = {k: self._pretrained(k, v) for k, v in pretrained.items()}
        self.tokenizers: dict[str, TokenizerSpec] = {}
        self.generators: dict[str, GeneratorSpec] = {}
        self.samples: dict[str, SampleSpec] = {}
        self._owner: dict[str, str] = {}
        for paper, data in self.papers.items():
            self._read_runs(paper, data)
        self.accepted = self._read_accepted()
        self._digests: dict[Key, str] = {}

    # ---- reading -------------------------------------------------------------------------------------------------

    def _pretrained(self, name: str, entry: dict[str, Any]) -> PretrainedSpec:
        where = f"pretrained '{name}'"
        entry = dict(entry)
        dataset = self.datasets.get(entry.get("dataset") or "")
        if "training" in entry:
            entry["training"] = resolve_training(entry["training"], dataset.sizes["train"] if dataset else 0, where)
        return parse(PretrainedSpec, entry, where)

    def _read_runs(self, paper: str, data: dict[str, Any]) -> None:
        known = {"paper", "title", "tokenizers", "generators", "samples", "tables", "figures", "controls", "ood"}
        for key in data:
            if key not in known:
                raise SpecError(f"{paper}.yaml: unknown key '{key}'; {nearest(key, known)}")
        for kind in ("tokenizers", "generators", "samples"):
            for run_id, entry in (data.get(kind) or {}).items():
                where = f"{paper}.yaml: {kind[:-1] if kind != 'samples' else kind} '{run_id}'"
                if run_id in self._owner:
                    raise SpecError(
                        f"{where}: the id is taken by {self._owner[run_id]}.yaml; ids are unique across papers"
                    )
                self._owner[run_id] = paper
                self._read_run(kind, run_id, dict(entry or {}), where)

    def _read_run(self, kind: str, run_id: str, entry: dict[str, Any], where: str) -> None:
        entry.pop("tables", None), entry.pop("label", None)
        if kind == "tokenizers":
            self.tokenizers[run_id] = resolve_tokenizer(entry, self.datasets, self.recipes, self.overlay, where)
        elif kind == "generators":
            self.generators[run_id] = resolve_generator(
                entry, self.tokenizers, self.datasets, self.recipes, self.overlay, where
            )
        else:
            self.samples[run_id] = resolve_samples(entry, self.generators, self.overlay, where)

    def _read_accepted(self) -> dict[str, dict[str, str]]:
        path = CLONE / self.root / "accepted.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    # ---- runs and edges --------------------------------------------------------------------------------------------

    def role(self, role: str) -> str:
        """The pretrained network that this scale puts in a role, e.g. ``role("judge")``."""
        return str(self.overlay.roles[role])

    @cached_property
    def protocol(self) -> dict[str, Any]:
        """The scale's evaluation protocol, as data."""
        return read_yaml(PACKAGE / "eval" / "protocols" / f"{self.overlay.protocol}.yaml")

    def ood(self, tokenizer: str) -> tuple[str, ...]:
        """Data sets beside its own on which a tokenizer is scored (MS-COCO in the cq paper)."""
        found = self.papers[self._owner[tokenizer]].get("ood") or {}
        return tuple(self.overlay.dataset(d) for d in found.get(tokenizer, ()))

    def step(self, key: Key) -> Step:
        """The job that makes `key`.

        Raises:
            SpecError: no run of that kind has this name.
        """
        kind, name = key
        if kind not in KINDS:
            raise SpecError(f"unknown kind '{kind}'; {nearest(kind, KINDS)}")
        make = getattr(self, "_step_" + kind.replace("-", "_"))
        spec, families, upstream = make(*name.split("/"))
        return Step(kind, name, spec, (KINDS[kind][1], *families), tuple(upstream))

    def _get(self, kind: str, runs: Mapping[str, Spec], name: str) -> Any:
        if name not in runs:
            raise SpecError(f"unknown {kind} '{name}'; {nearest(name, runs)}")
        return runs[name]

    def _step_dataset(self, name: str) -> Any:
        return self._get("data set", self.datasets, name), (), ()

    def _step_pretrained(self, name: str) -> Any:
        spec = self._get("pretrained network", self.pretrained, name)
        return spec, (), [("dataset", spec.dataset)] if spec.dataset else []

    def _step_tokenizer(self, name: str) -> Any:
        spec = self._get("tokenizer", self.tokenizers, name)
        return (
            spec,
            (f"vqbench.tokenizers.{spec.family}",),
            [("dataset", spec.dataset), ("pretrained", spec.perceptual)],
        )

    def _step_tokens(self, tokenizer: str, dataset: str, split: str) -> Any:
        spec = self._get("tokenizer", self.tokenizers, tokenizer)
        self._get("data set", self.datasets, dataset)
        data = {"tokenizer": tokenizer, "dataset": dataset, "split": split, "threads": spec.threads,
                **self.overlay.tokens, **({} if split == "train" else {"views": 1})}  # fmt: skip
        tokens = parse(TokensSpec, data, f"tokens '{tokenizer}/{dataset}/{split}'")
        return tokens, (f"vqbench.tokenizers.{spec.family}",), [("tokenizer", tokenizer), ("dataset", dataset)]

    def _step_reconstruction(self, tokenizer: str, dataset: str) -> Any:
        spec, families, _ = self._step_tokens(tokenizer, dataset, "validation")
        return spec, families, [("tokenizer", tokenizer), ("tokens", f"{tokenizer}/{dataset}/validation")]

    def _step_generator(self, name: str) -> Any:
        spec = self._get("generator", self.generators, name)
        return spec, (f"vqbench.generators.{spec.family}",), [("tokens", f"{spec.tokenizer}/{spec.dataset}/train")]

    def _step_samples(self, name: str) -> Any:
        spec = self._get("samples", self.samples, name)
        generator = self.generators[spec.generator]
        tokenizer = self.tokenizers[generator.tokenizer]
        families = (f"vqbench.generators.{generator.family}", f"vqbench.tokenizers.{tokenizer.family}")
        return spec, families, [("generator", spec.generator), ("tokenizer", generator.tokenizer)]

    def _step_reference(self, dataset: str, split: str) -> Any:
        self._get("data set", self.datasets, dataset)
        judge = self.role("judge")
        return (
            {"dataset": dataset, "split": split, "judge": judge, "protocol": self.protocol},
            (),
            [("dataset", dataset), ("pretrained", judge)],
        )

    def _step_tokenizer_scores(self, tokenizer: str, dataset: str) -> Any:
        name = f"{tokenizer}/{dataset}"
        spec = {"tokenizer": tokenizer, "dataset": dataset, "judge": self.role("judge"),
                "perceptual": self.role("perceptual"), "protocol": self.protocol,
                "tokens": self._get("tokenizer", self.tokenizers, tokenizer).tokens.model_dump(mode="json")}  # fmt: skip
        upstream = [("reconstruction", name), ("tokens", f"{name}/validation"), ("reference", f"{dataset}/validation"),
                    ("dataset", dataset), *self._roles()]  # fmt: skip
        return spec, (), upstream

    def _step_sample_scores(self, name: str) -> Any:
        spec = self._get("samples", self.samples, name)
        dataset = self.generators[spec.generator].dataset
        plain = {"samples": name, "dataset": dataset, "judge": self.role("judge"), "protocol": self.protocol}
        return plain, (), [("samples", name), ("reference", f"{dataset}/train"), ("pretrained", self.role("judge"))]

    def _step_probe(self, tokenizer: str) -> Any:
        spec = self._get("tokenizer", self.tokenizers, tokenizer)
        data = f"{tokenizer}/{spec.dataset}"
        plain = {"tokenizer": tokenizer, "protocol": self.protocol, "num_classes": self.datasets[spec.dataset].classes}
        return plain, (), [("tokens", f"{data}/train"), ("tokens", f"{data}/validation")]

    def _step_controls(self, tokenizer: str) -> Any:
        spec = self._get("tokenizer", self.tokenizers, tokenizer)
        plain = {"tokenizer": tokenizer, "dataset": spec.dataset, "judge": self.role("judge"),
                 "perceptual": self.role("perceptual"), "protocol": self.protocol}  # fmt: skip
        upstream = [("tokenizer", tokenizer), ("dataset", spec.dataset), ("reference", f"{spec.dataset}/validation"),
                    ("reference", f"{spec.dataset}/train"), *self._roles()]  # fmt: skip
        return plain, (f"vqbench.tokenizers.{spec.family}",), upstream

    def _roles(self) -> list[Key]:
        return [("pretrained", name) for name in dict.fromkeys((self.role("judge"), self.role("perceptual")))]

    # ---- digests and paths -----------------------------------------------------------------------------------------

    def digest(self, key: Key) -> str:
        """What `key` is made from: spec, code closure and the digests upstream. Static: nothing needs to exist.

        A run accepted under changed code (``vqbench accept``) keeps the digest that it was made with.
        """
        if key not in self._digests:
            step = self.step(key)
            now = digest_of({
                "kind": step.kind,
                "spec": json.loads(canonical(step.spec)),
                "code": code_digest(step.roots),
                "upstream": {"/".join(k): self.digest(k) for k in step.upstream},
            })  # fmt: skip
            kept = self.accepted.get("/".join(key), {})
            self._digests[key] = kept["digest"] if kept.get("current") == now else now
        return self._digests[key]

    def folder(self, key: Key) -> str:
        """Folder of a key's manifest, relative to the clone."""
        return f"{self.root}/{KINDS[key[0]][0]}/{key[1]}"

    def manifest(self, key: Key) -> str:
        return f"{self.folder(key)}/manifest.json"

    def with_upstream(self, keys: Iterable[Key]) -> list[Key]:
        """`keys` and all that they need, each once, needs first."""
        order: dict[Key, None] = {}

        def visit(key: Key) -> None:
            if key not in order:
                for need in self.step(key).upstream:
                    visit(need)
                order[key] = None

        for key in keys:
            visit(key)
        return list(order)

    def own_scores(self, kind: str, name: str) -> list[Key]:
        """The score artifacts of one run (none for a generator: its sample sets are scored)."""
        if kind == "tokenizer":
            sets = (self.tokenizers[name].dataset, *self.ood(name))
            return [("tokenizer-scores", f"{name}/{dataset}") for dataset in sets]
        return [("sample-scores", name)] if kind == "samples" else []

    def is_current(self, key: Key, base: Path) -> bool:
        """Whether a finished artifact of this very digest is published (its files are checked when it is read)."""
        path = base / self.manifest(key)
        try:
            return bool(json.loads(path.read_text())["digest"] == self.digest(key))
        except (OSError, ValueError, KeyError):
            return False

    def scorable(self, keys: Iterable[Key], base: Path) -> tuple[list[Key], dict[Key, str]]:
        """Which of the score `keys` need no training or sampling now, and why the others do."""
        ready, missing = [], {}
        for key in keys:
            needs = [k for k in self.with_upstream([key]) if k[0] in TRAINED]
            lacking = [k for k in needs if not self.is_current(k, base)]
            if lacking:
                state = "is out of date" if (base / self.manifest(lacking[0])).exists() else "is missing"
                missing[key] = f"{'/'.join(lacking[0])} {state}"
            else:
                ready.append(key)
        return ready, missing

    # ---- tables and figures ----------------------------------------------------------------------------------------

    @cached_property
    def tables(self) -> dict[str, Table]:
        """``<paper>/<id>`` -> table, rows added by ``tables:`` of a run included."""
        found = {}
        for paper, data in self.papers.items():
            for table_id, entry in (data.get("tables") or {}).items():
                found[f"{paper}/{table_id}"] = self._table(paper, str(table_id), dict(entry))
        return found

    def _table(self, paper: str, table_id: str, entry: dict[str, Any]) -> Table:
        where = f"{paper}.yaml: table '{table_id}'"
        for key in entry:
            if key not in (known := {"title", "columns", "rows", "ablation"}):
                raise SpecError(f"{where}: unknown key '{key}'; {nearest(key, known)}")
        rows = [self._row(label, dict(run), where) for label, run in (entry.get("rows") or {}).items()]
        for owner, data in self.papers.items():
            for run_id, run in (data.get("tokenizers") or {}).items():
                wanted = [str(t) if "/" in str(t) else f"{owner}/{t}" for t in (run or {}).get("tables", ())]
                if f"{paper}/{table_id}" in wanted:
                    rows.append(Row(str(run.get("label", run_id)), {"tokenizer": run_id}, "measured"))
        return Table(paper, table_id, entry["title"], entry["columns"], tuple(rows), bool(entry.get("ablation")))

    def _row(self, label: str, run: dict[str, str], where: str) -> Row:
        known = {"tokenizer": self.tokenizers, "generator": self.generators, "samples": self.samples}
        if "not_yet" in run:
            return Row(label, {}, f"not yet: {run['not_yet']}")
        for kind, run_id in run.items():
            if kind not in known or run_id not in known[kind]:
                raise SpecError(
                    f"{where}: row '{label}' names {kind} '{run_id}'; {nearest(run_id, known.get(kind, {}))}"
                )
        return Row(label, run, "measured")

    def table_path(self, table: Table) -> str:
        return f"{self.paper_root(table.paper)}/table{table.id}.csv"

    def paper_root(self, paper: str) -> str:
        return self.root if paper == FIRST_PAPER else f"{self.root}/{paper}"

    def table_at(self, path: str | Path) -> Table:
        """The table that a CSV path names.

        Raises:
            SpecError: no declared table is written there.
        """
        paths = {self.table_path(t): t for t in self.tables.values()}
        if str(path) not in paths:
            raise SpecError(f"no table is written to '{path}'; {nearest(str(path), paths)}")
        return paths[str(path)]

    def row_keys(self, table: Table, row: Row) -> list[Key]:
        """The score artifacts that one row's cells are read from."""
        keys: list[Key] = []
        metrics = [c for c in table.columns.values() if "metric" in c]
        if "tokenizer" in row.run:
            own = self.tokenizers[row.run["tokenizer"]].dataset
            for column in metrics:
                dataset = self.overlay.dataset(column["on"]) if "on" in column else own
                if dataset in (own, *self.ood(row.run["tokenizer"])):
                    keys.append(("tokenizer-scores", f"{row.run['tokenizer']}/{dataset}"))
        if "samples" in row.run:
            keys.append(("sample-scores", row.run["samples"]))
        return list(dict.fromkeys(keys))

    def table_keys(self, table: Table) -> list[Key]:
        return list(dict.fromkeys(k for row in table.rows for k in self.row_keys(table, row)))

    def table_digest(self, table: Table) -> str:
        """What a table is made from, its scores aside: its declaration and the code that writes it."""
        body = {"columns": table.columns, "rows": [[r.label, dict(r.run), r.status] for r in table.rows]}
        return digest_of({"table": body, "title": table.title, "code": code_digest(["vqbench.eval.tables"])})

    def figure_digest(self, name: str) -> str:
        """What a figure is made from, its runs aside."""
        figure = self.figures[name]
        body = {"kind": figure.kind, "title": figure.title, "runs": {k: list(v) for k, v in figure.runs.items()}}
        return digest_of({"figure": body, "code": code_digest(["vqbench.eval.figures"])})

    def scores_digest(self) -> str:
        """What scores.csv is made from, the scores aside."""
        return code_digest(["vqbench.eval.scoreboard"])

    @cached_property
    def figures(self) -> dict[str, Figure]:
        """``<paper>/<id>`` -> figure."""
        found = {}
        for paper, data in self.papers.items():
            for fig_id, entry in (data.get("figures") or {}).items():
                runs = {k: tuple(v) for k, v in (entry.get("runs") or {}).items()}
                tables = tuple(map(str, entry.get("tables", ())))
                found[f"{paper}/{fig_id}"] = Figure(paper, str(fig_id), entry["title"], entry["kind"], runs, tables)
        return found

    def figure_path(self, figure: Figure) -> str:
        return f"{self.root}/{figure.paper}/figures/{figure.id}.pdf"


def score_keys(bench: Bench) -> list[Key]:
    """Every score of every run of a scale: what scores.csv holds."""
    keys: list[Key] = []
    for name in bench.tokenizers:
        keys += [*bench.own_scores("tokenizer", name), ("probe", name)]
    keys += [("sample-scores", name) for name in bench.samples]
    controlled = [name for data in bench.papers.values() for name in data.get("controls", ())]
    return keys + [("controls", name) for name in controlled]


def _load_recipes(folder: Path) -> dict[str, dict[str, Any]]:
    """``<file>/<variant>`` -> recipe; a variant may name its ``base``."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.yaml")):
        for variant, entry in read_yaml(path).items():
            found[f"{path.stem}/{variant}"] = entry
    return found


@lru_cache(maxsize=4)
def bench(scale: str) -> Bench:
    """The cached :class:`Bench` of a scale."""
    return Bench(scale)
