"""What people read: the declared tables and figures of the papers, and the scores that each is made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from vqbench.errors import SpecError, nearest
from vqbench.graph import Graph, Key
from vqbench.specs import ClassifierSpec, GeneratorSpec, SampleSpec, Spec, TokenizerSpec, digest_of

FIRST_PAPER = "cq"  # its tables lie at the root: results/table2.csv


@dataclass(frozen=True)
class Crossing:
    """A row's tokenizer with a column's generator: the sample set, or why there can be none.

    Attributes:
        share: of its recipe's steps that the generator trains for; below 1 it is a short run.
    """

    samples: str
    share: float = 1.0
    refused: str = ""


@dataclass(frozen=True)
class Row:
    """One row of a printed table. `run` names what is measured: {} for a row that is only reported; `crossings` what columns
    ``with: NAME`` add."""

    label: str
    run: Mapping[str, str] = field(default_factory=dict)
    status: str = "reported_only"
    crossings: Mapping[str, Crossing] = field(default_factory=dict)


@dataclass(frozen=True)
class RowSpecs:
    """The specs behind a row's run: each is None where the run has no such part."""

    samples: SampleSpec | None = None
    generator: GeneratorSpec | None = None
    tokenizer: TokenizerSpec | None = None
    classifier: ClassifierSpec | None = None

    @property
    def every(self) -> list[Spec]:
        """Those that there are."""
        return [spec for spec in (self.samples, self.generator, self.tokenizer, self.classifier) if spec]

    def facts(self) -> dict[str, Any]:
        """Every fact by name; the sampler's ``steps`` win over all others of that name."""
        found: dict[str, Any] = {}
        if self.tokenizer:
            found |= self.tokenizer.options | self.tokenizer.tokens.model_dump()
        if self.generator:
            found |= self.generator.options
            if {"width", "mlp_ratio"} <= found.keys():
                found["mlp_width"] = round(found["width"] * found["mlp_ratio"])
        if self.classifier:
            found |= self.classifier.network.model_dump()
        return found | (self.samples.sampler if self.samples else {})


def of_training_images(metric: str) -> bool:
    """Whether a tokenizer's number is that of the training images: ``usage_train``, ``perplexity_train``. Sample scores hold
    it too; of a tokenizer it is a step of its own, which a table's column asks for."""
    return metric.endswith("_train")


@dataclass(frozen=True)
class Table:
    paper: str
    id: str
    title: str
    columns: Mapping[str, Mapping[str, Any]]
    rows: tuple[Row, ...]
    ablation: bool = False
    about: str = ""

    @property
    def name(self) -> str:
        """``cq, Table 6b``; a table that bears its paper's name is all that is in it."""
        return self.paper if self.id == self.paper else f"{self.paper}, Table {self.id}"


@dataclass(frozen=True)
class Figure:
    paper: str
    id: str
    title: str
    kind: str
    runs: Mapping[str, tuple[str, ...]]
    tables: tuple[str, ...]
    classes: Mapping[int, str] = field(default_factory=dict)  # that a sheet of samples shows, by label


class Products(Graph):
    """Tables and figures of one scale."""

    crossings: dict[tuple[str, str, str], Crossing]  # (paper, column's ``with``, tokenizer) -> what they make

    @cached_property
    def tables(self) -> dict[str, Table]:
        """``<paper>/<id>`` -> table, rows added by ``tables:`` of a run included."""
        found = {}
        for paper, data in self.papers.items():
            for table_id, entry in (data.get("tables") or {}).items():
                table = self.declared(paper, str(table_id), dict(entry))
                found[f"{paper}/{table_id}"] = replace(
                    table, rows=tuple(self._crossed(table, row) for row in table.rows)
                )
        return found

    def _crossed(self, table: Table, row: Row) -> Row:
        asked = {str(column["with"]) for column in table.columns.values() if "with" in column}
        pairs = {name: self.crossings.get((table.paper, name, row.run.get("tokenizer", ""))) for name in sorted(asked)}
        return replace(row, crossings={name: pair for name, pair in pairs.items() if pair})

    def table(self, name: str) -> Table:
        """A table by ``<paper>/<id>``.

        Raises:
            SpecError: none is declared under that name.
        """
        table: Table = self._get("table", self.tables, name)
        return table

    def figure(self, name: str) -> Figure:
        """A figure by ``<paper>/<id>``.

        Raises:
            SpecError: none is declared under that name.
        """
        figure: Figure = self._get("figure", self.figures, name)
        return figure

    def declared(self, paper: str, table_id: str, entry: dict[str, Any]) -> Table:
        """A table as its entry says, without the crossings of its rows.

        Raises:
            SpecError: unknown or missing key, also of a column; a row that names no run, a column ``with`` what the paper
                does not have.
        """
        where = f"{paper}.yaml: table '{table_id}'"
        for key in entry:
            if key not in (known := {"title", "about", "columns", "rows", "ablation"}):
                raise SpecError(f"{where}: unknown key '{key}'; {nearest(key, known)}")
        for key in ("title", "columns"):
            if key not in entry:
                raise SpecError(f"{where}: key '{key}' is missing")
        for column, source in entry["columns"].items():
            _check_column(source, f"{where}, column '{column}'")
            if "with" in source and source["with"] not in (partners := self.papers[paper].get("partners") or {}):
                raise SpecError(
                    f"{where}: column '{column}' is with '{source['with']}'; {nearest(source['with'], partners)}"
                )
        rows = [self._row(label, dict(run), where) for label, run in (entry.get("rows") or {}).items()]
        for owner, data in self.papers.items():
            for run_id, run in (data.get("tokenizers") or {}).items():
                wanted = [str(t) if "/" in str(t) else f"{owner}/{t}" for t in (run or {}).get("tables", ())]
                if f"{paper}/{table_id}" in wanted:
                    rows.append(Row(str(run.get("label", run_id)), {"tokenizer": run_id}, "measured"))
        return Table(paper, table_id, entry["title"], entry["columns"], tuple(rows), bool(entry.get("ablation")),
                     entry.get("about", ""))  # fmt: skip

    def _row(self, label: str, run: dict[str, str], where: str) -> Row:
        known: dict[str, Mapping[str, object]] = {
            "tokenizer": self.tokenizers,
            "generator": self.generators,
            "samples": self.samples,
            "classifier": self.classifiers,
        }
        if "not_yet" in run:
            return Row(label, {}, f"not yet: {run['not_yet']}")
        for kind, run_id in run.items():
            if kind not in known:
                raise SpecError(f"{where}: row '{label}': unknown key '{kind}'; {nearest(kind, [*known, 'not_yet'])}")
            if run_id not in known[kind]:
                raise SpecError(f"{where}: row '{label}' names {kind} '{run_id}'; {nearest(run_id, known[kind])}")
        return Row(label, run, "measured")

    def table_path(self, table: Table) -> str:
        """``results/table2.csv``; of a table that bears its paper's name ``results/matrix.csv``."""
        if table.id == table.paper:
            return f"{self.root}/{table.paper}.csv"
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
        keys = [self.column_key(row, column) for column in table.columns.values() if "metric" in column]
        return list(dict.fromkeys(key for key in keys if key is not None))

    def column_key(self, row: Row, column: Mapping[str, Any]) -> Key | None:
        """The score artifact that a metric's cell is read from: of the row's samples or classifier where it has one, unless
        the column is ``of: tokenizer``; of the samples by the generator that it is ``with``; None where the row has no such
        scores."""
        if "with" in column:
            pair = row.crossings.get(column["with"])
            return ("sample-scores", pair.samples) if pair and pair.samples else None
        for kind in ("samples", "classifier"):
            if kind in row.run and column.get("of", kind) == kind:
                return f"{kind.removesuffix('s')}-scores", row.run[kind]
        name = self._tokenizer_of(row)
        if name is None or column.get("of", "tokenizer") != "tokenizer":
            return None
        if of_training_images(column["metric"]):
            return "train-usage", name
        own = self.tokenizers[name].dataset
        dataset = self.overlay.dataset(column["on"]) if "on" in column else own
        if dataset not in (own, *self.ood(name)):
            return None
        if "under" in column:
            return "pair-scores", f"{name}/{dataset}/{column['under']}"
        return "tokenizer-scores", f"{name}/{dataset}"

    def _tokenizer_of(self, row: Row) -> str | None:
        """The tokenizer of a row's run, by the generator or classifier that learned from it."""
        if "samples" in row.run or "generator" in row.run:
            generator = row.run.get("generator") or self.samples[row.run["samples"]].generator
            return self.generators[generator].tokenizer
        if "classifier" in row.run:
            return self.classifiers[row.run["classifier"]].tokenizer
        return row.run.get("tokenizer")

    def table_keys(self, table: Table) -> list[Key]:
        return list(dict.fromkeys(k for row in table.rows for k in self.row_keys(table, row)))

    @cached_property
    def _asked(self) -> set[Key]:
        return {key for table in self.tables.values() for key in self.table_keys(table)}

    def own_scores(self, kind: str, name: str) -> list[Key]:
        """The score artifacts of one run; usage over the training images, and pairs under other protocols, where a table
        asks for them."""
        more = sorted(key for key in self._asked if key[0] in ("train-usage", "pair-scores"))
        own = [key for key in more if key[1].split("/")[0] == name] if kind == "tokenizer" else []
        return super().own_scores(kind, name) + own

    def table_digest(self, table: Table) -> str:
        """What a table is made from, its scores aside: its declaration, its runs' specs, and the code that writes it."""
        return self._asked_once(("table", f"{table.paper}/{table.id}"), lambda: self._table_digest(table))

    def _asked_once(self, key: Key, digest: Callable[[], str]) -> str:
        """As with steps, a digest stays what it was when first asked for: a job is given the one that it was planned with."""
        if key not in self._drawn:
            self._drawn[key] = digest()
        return self._drawn[key]

    def _table_digest(self, table: Table) -> str:
        specs = [self.row_specs(r) for r in table.rows]
        parts = [[*self._made(found), *self._crossed_with(r)] for r, found in zip(table.rows, specs, strict=True)]
        rows = [[r.label, dict(r.run), r.status, made] for r, made in zip(table.rows, parts, strict=True)]
        families = sorted({f"vqbench.generators.{found.generator.family}" for found in specs if found.generator})
        code = self._code(("vqbench.eval.tables", *families))
        body = {
            "title": table.title,
            "columns": table.columns,
            "rows": rows,
            "about": [table.about, self.overlay.about],
        }
        return digest_of({"table": body, "code": code, "kept": self.kept(self.table_keys(table))})

    def _made(self, found: RowSpecs) -> list[str]:
        return [digest_of(spec) for spec in found.every]

    def _crossed_with(self, row: Row) -> list[Any]:
        """What a row's columns ``with: NAME`` are made from."""
        return [
            [name, pair.share, pair.refused, *self._made(self.crossing_specs(pair))]
            for name, pair in row.crossings.items()
        ]

    def crossing_specs(self, pair: Crossing) -> RowSpecs:
        """The specs of a crossing's samples and generator; none of one that is refused."""
        if not pair.samples:
            return RowSpecs()
        samples = self.samples[pair.samples]
        return RowSpecs(samples, self.generators[samples.generator])

    def row_specs(self, row: Row) -> RowSpecs:
        """The specs of a row's run, from its samples down to the tokenizer."""
        samples = self.samples[row.run["samples"]] if "samples" in row.run else None
        name = samples.generator if samples else row.run.get("generator")
        generator = self.generators[name] if name else None
        classifier = self.classifiers[row.run["classifier"]] if "classifier" in row.run else None
        tokenizer = self._tokenizer_of(row)
        return RowSpecs(samples, generator, self.tokenizers[tokenizer] if tokenizer else None, classifier)

    def figure_digest(self, name: str) -> str:
        """What a figure is made from, its runs aside."""
        figure = self.figure(name)
        body: dict[str, Any] = {"kind": figure.kind, "title": figure.title, "tables": list(figure.tables),
                "runs": {k: list(v) for k, v in figure.runs.items()}}  # fmt: skip
        body |= {"classes": dict(figure.classes)} if figure.classes else {}
        code = self._code(("vqbench.eval.figures",))
        return self._asked_once(("figure", name), lambda: digest_of({"figure": body, "code": code}))

    def scores_digest(self) -> str:
        """What scores.csv is made from, the scores aside."""
        return self._asked_once(("scores", ""), lambda: self._code(("vqbench.eval.scoreboard",)))

    @cached_property
    def figures(self) -> dict[str, Figure]:
        """``<paper>/<id>`` -> figure."""
        found = {}
        for paper, data in self.papers.items():
            for fig_id, entry in (data.get("figures") or {}).items():
                runs = {k: tuple(v) for k, v in (entry.get("runs") or {}).items()}
                tables = tuple(map(str, entry.get("tables", ())))
                shown = {int(label): str(name) for label, name in (entry.get("classes") or {}).items()}
                found[f"{paper}/{fig_id}"] = Figure(
                    paper, str(fig_id), entry["title"], entry["kind"], runs, tables, shown
                )
        return found

    def figure_path(self, figure: Figure) -> str:
        return f"{self.root}/{figure.paper}/figures/{figure.id}.pdf"


def _check_column(source: Mapping[Any, Any], where: str) -> None:
    """A misspelt key would fill the column from another quantity or data set without a word."""
    for key in source:
        if key not in (known := ("metric", "on", "of", "under", "times", "with", "fact", "printed")):
            hint = '; YAML 1.1 reads a bare on: as true, write "on":' if key is True else f"; {nearest(key, known)}"
            raise SpecError(f"{where}: unknown key '{key}'{hint}")
