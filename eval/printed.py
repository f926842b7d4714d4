"""What the papers print: workflow/papers/reported.csv, every cell verbatim, and cells that are printed twice."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from vqbench.papers import WORKFLOW, Bench, Figure, Row, Table

REPORTED = WORKFLOW / "papers" / "reported.csv"


class PrintedCell(NamedTuple):
    """One printed cell: the string as printed, whether its reading is certain, and a remark on it."""

    value: str
    certain: bool
    note: str


@dataclass
class PrintedTable:
    """One printed table: rows and columns in printed order; ``cells[(row, column)]``."""

    rows: dict[str, None] = field(default_factory=dict)
    columns: dict[str, None] = field(default_factory=dict)
    cells: dict[tuple[str, str], PrintedCell] = field(default_factory=dict)

    def value(self, row: str, column: str) -> str:
        """The printed string, "" where the paper prints no such cell."""
        cell = self.cells.get((row, column))
        return cell.value if cell else ""

    def column(self, column: str) -> list[str]:
        """All printed strings of a column."""
        return [cell.value for (_, name), cell in self.cells.items() if name == column]


@lru_cache(maxsize=4)
def reported(path: Path = REPORTED) -> dict[tuple[str, str], PrintedTable]:
    """``(paper, table id)`` -> :class:`PrintedTable`, in the order of the file."""
    found: dict[tuple[str, str], PrintedTable] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            table = found.setdefault((line["paper"], line["table"]), PrintedTable())
            table.rows.setdefault(line["row"])
            table.columns.setdefault(line["col"])
            cell = PrintedCell(line["value"], line["certain"] == "yes", line["note"])
            table.cells[line["row"], line["col"]] = cell
    return found


def printed_table(table: Table) -> PrintedTable:
    """The printed cells of a declared table; empty for one that no paper prints."""
    return reported().get((table.paper, table.id), PrintedTable())


def printed_figure(figure: Figure) -> PrintedTable:
    """The numbers that stand in a paper's figure, all of whose parts (``fig1a``, ``fig3-epochs``) share one id; often none."""
    number = re.match(r"fig[0-9]+", figure.id)
    return reported().get((figure.paper, number[0] if number else figure.id), PrintedTable())


def printed_usage(bench: Bench, figure: Figure, series: str, codes: int) -> str:
    """What stands in a ``code-map`` figure's panel of a model at that codebook size, with its sign, only at paper scale; ""
    where there is none."""
    cells = printed_figure(figure).cells if bench.scale == "paper" else {}
    for (row, column), cell in cells.items():
        size = cell.value.replace(",", "")
        if column == "Codebook Size" and row.startswith(f"{series}/") and size == str(codes):
            return cells[row, "Utilization Rate"].value
    return ""


def table_rows(table: Table) -> list[Row]:
    """All rows: the printed ones in printed order, those that are only cited included, then the added ones."""
    declared = {row.label: row for row in table.rows}
    printed = [declared.get(label, Row(label)) for label in printed_table(table).rows]
    added = [row for row in table.rows if row.label not in printed_table(table).rows]
    return printed + added


def table_columns(table: Table) -> list[str]:
    """All columns: the printed ones in printed order, then declared ones that the paper does not print."""
    return list(printed_table(table).columns | dict.fromkeys(table.columns))


def also_printed(bench: Bench, table: Table, row: Row, column: str) -> list[str]:
    """Other tables' different printed values for the same run and quantity, e.g. ``302.4 in Table 7 (634M/...)``."""
    mine, notes = printed_table(table).value(row.label, column), []
    quantity = _quantity(bench, row, table, column)
    for other in bench.tables.values():
        if mine in ("", "-") or quantity is None or other == table:
            continue
        for twin in (r for r in other.rows if r.run and r.run == row.run):
            for name in (c for c in other.columns if _quantity(bench, twin, other, c) == quantity):
                value = printed_table(other).value(twin.label, name)
                if value not in ("", "-", mine):
                    paper = "" if other.paper == table.paper else f"{other.paper} "
                    notes.append(f"{value} in {paper}Table {other.id} ({twin.label})")
    return notes


def _quantity(bench: Bench, row: Row, table: Table, column: str) -> tuple[str, ...] | None:
    """What a declared cell measures: (metric or fact, its name, protocol, the data set as the paper names it)."""
    source = table.columns.get(column)
    if source is None or not row.run:
        return None
    if "fact" in source:
        return "fact", source["fact"]
    if "metric" not in source:
        return None
    return "metric", source["metric"], str(source.get("under", "")), source.get("on") or _own_dataset(bench, row)


def _own_dataset(bench: Bench, row: Row) -> str:
    """The data set of a tokenizer's entry before a scale replaces it; two data sets may share one stand-in."""
    run = row.run.get("tokenizer", "")
    entries = [(paper.get("tokenizers") or {}).get(run) for paper in bench.papers.values()]
    return next((str(entry.get("dataset", "")) for entry in entries if entry), "")
