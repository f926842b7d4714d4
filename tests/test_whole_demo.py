"""What `snakemake --profile demo vqgan_lc matrix` wrote: every table whole, every figure there. Fails where that was not run."""

from __future__ import annotations

import csv

import pytest
from helpers import ROOT

from vqbench.eval.cells import REFUSED
from vqbench.papers import Table, bench

pytestmark = pytest.mark.whole

DEMO = bench("demo")
TABLES = [name for name, table in DEMO.tables.items() if table.paper in ("vqgan_lc", "matrix")]
FIGURES = [name for name, figure in DEMO.figures.items() if figure.paper == "vqgan_lc"]


def read(table: Table) -> dict[str, dict[str, str]]:
    """Row -> column -> cell."""
    with (ROOT / DEMO.table_path(table)).open(encoding="utf-8", newline="") as file:
        return {line["row"]: line for line in csv.DictReader(file)}


def measured(line: dict[str, str], column: str) -> str:
    """A column's cell; the header may go on with the protocol's name."""
    return next(cell for name, cell in line.items() if name.startswith(f"{column} measured"))


def test_all_of_the_paper_is_asked_for() -> None:
    assert len([name for name in TABLES if name.startswith("vqgan_lc/")]) == 10 and len(FIGURES) == 12


@pytest.mark.parametrize("name", TABLES)
def test_every_row_with_a_run_is_measured_in_every_column(name: str) -> None:
    table = DEMO.tables[name]
    lines = read(table)
    assert {row.label for row in table.rows} <= lines.keys()
    for row in table.rows:
        line = lines[row.label]
        assert line["status"] == ("measured" if row.run else "reported_only"), row.label
        for column, source in table.columns.items():
            if row.run and "printed" not in source:
                cell = measured(line, column)
                assert cell == REFUSED or float(cell.replace(",", "").rstrip("%")) >= 0, (row.label, column, cell)


@pytest.mark.parametrize("name", TABLES)
def test_rows_of_cited_systems_are_reported_alone(name: str) -> None:
    table = DEMO.tables[name]
    cited = {label: line for label, line in read(table).items() if label not in {r.label for r in table.rows if r.run}}
    for label, line in cited.items():
        assert line["status"] == "reported_only" and not line["manifest"], label
        assert not any(cell for column, cell in line.items() if " measured" in column), label


@pytest.mark.parametrize("column", ["Utilization(%)"])
@pytest.mark.parametrize("name", [n for n in TABLES if n in {f"vqgan_lc/{i}" for i in (2, 3, 4, 5, 6, 7, 8, 9, 10)}])
def test_utilization_is_a_share(name: str, column: str) -> None:
    table = DEMO.tables[name]
    cells = [
        measured(line, column) for label, line in read(table).items() if label in {r.label for r in table.rows if r.run}
    ]
    assert cells and all(0 < float(cell.rstrip("%")) <= 100 for cell in cells)


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_drawn(name: str) -> None:
    path = ROOT / DEMO.figure_path(DEMO.figures[name])
    assert path.read_bytes().startswith(b"%PDF") and path.with_suffix(".png").stat().st_size > 5000
