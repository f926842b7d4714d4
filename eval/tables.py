"""A paper's table, every printed row, the printed value beside the measured one; as CSV, Markdown and LaTeX.

``results/table2.csv`` (and .md, .tex beside it) exists only while every cell that it should measure is finished under
the specs and the code of now. Otherwise it gives way to ``table2.partial.csv``, whose rows say what is wrong.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vqbench.artifacts import write_text
from vqbench.errors import ArtifactError, UserError
from vqbench.eval.cells import MeasuredRow, measure_row
from vqbench.eval.printed import also_printed, printed_table, table_columns, table_rows
from vqbench.eval.protocols import metric_name
from vqbench.eval.scale_notes import header_note, row_note
from vqbench.eval.table_formats import INTERVAL, to_latex, to_markdown
from vqbench.papers import Bench, Table
from vqbench.papers import bench as bench_of
from vqbench.specs import digest_of

if TYPE_CHECKING:
    import pandas as pd


def build_table(
    bench: Bench, table: Table, base: Path, partial: bool = False, paper: Bench | None = None
) -> pd.DataFrame:
    """One line a row, all cells strings, "" where there is no value.

    Columns: ``row``; for each column ``<col> printed`` (unless no paper prints the table) and, where the table declares
    how to measure it, ``<col> measured`` (with the judge's name: ``FID measured [demo-judge]``) and ``<col> 95%``, its
    interval; then ``N``, ``protocol``, ``status``, ``manifest``, ``notes``, ``warnings`` and ``scale``.

    Args:
        base: folder that holds ``results/``.
        partial: keep rows whose scores are not finished; their status says why.
        paper: the specs at paper scale, for what this scale replaced (read from the workflow by default).

    Raises:
        ArtifactError: scores are not finished (names them and the command), or cells mix protocols (names the cells).
    """
    return _frame_of(bench, table, _rows_of(bench, table, base, partial), base, paper or _paper_of(bench))


def _paper_of(bench: Bench) -> Bench:
    return bench if bench.scale == "paper" else bench_of("paper")


def _rows_of(bench: Bench, table: Table, base: Path, partial: bool) -> list[MeasuredRow]:
    measured = measure_rows(bench, table, base)
    if not partial:
        _refuse_unfinished(bench, table, measured)
    return measured


def _frame_of(bench: Bench, table: Table, measured: list[MeasuredRow], base: Path, paper: Bench) -> pd.DataFrame:
    import pandas as pd

    lines = [_line(bench, table, row, base) | {"scale": row_note(paper, bench, row.row)} for row in measured]
    return pd.DataFrame(lines, columns=list(lines[0]) if lines else None, dtype=str)


def measure_rows(bench: Bench, table: Table, base: Path) -> list[MeasuredRow]:
    """All rows with what this scale has measured for them.

    Raises:
        ArtifactError: two cells were scored under different protocols, or one under another than its column names.
    """
    printed = {column: printed_table(table).column(column) for column in table_columns(table)}
    rows = [measure_row(bench, table, row, printed, base) for row in table_rows(table)]
    _refuse_mixed(bench, table, rows)
    return rows


def _refuse_mixed(bench: Bench, table: Table, rows: list[MeasuredRow]) -> None:
    cells: dict[str, list[str]] = {}
    for row in rows:
        for column, scores in row.scores.items():
            under, cell = f"{scores.protocol.get('name')} {scores.protocol_digest[:12]}", f"'{row.row.label}' {column}"
            declared = table.columns[column].get("under")
            if declared is None:
                cells.setdefault(under, []).append(cell)
            else:  # a column that names its protocol, in its header as well: all columns of that name agree with it
                _refuse_another(bench, declared, under, f"{bench.table_path(table)}: {cell}")
    if len(cells) > 1:
        groups = "; ".join(f"protocol {under}: {', '.join(names)}" for under, names in cells.items())
        raise ArtifactError(
            f"{bench.table_path(table)} would mix protocols ({groups}); score them under one protocol again"
        )


def _refuse_another(bench: Bench, declared: str, under: str, cell: str) -> None:
    wanted = f"{declared} {digest_of(bench.protocol_of(declared))[:12]}"
    if under != wanted:
        raise ArtifactError(f"{cell} was scored under protocol {under}, its column names {wanted}; score it again")


def _refuse_unfinished(bench: Bench, table: Table, rows: list[MeasuredRow]) -> None:
    wanting = {f"'{row.row.label}' ({'/'.join(key)}: {state})" for row in rows for key, state in row.wanting.items()}
    if wanting:
        path = bench.table_path(table)
        raise ArtifactError(f"{path} lacks the scores of {', '.join(sorted(wanting))}; make them: snakemake {path}")


def _line(bench: Bench, table: Table, found: MeasuredRow, base: Path) -> dict[str, str]:
    label, printed = found.row.label, printed_table(table)
    line = {"row": label}
    for column in table_columns(table):
        if printed.cells:  # else no paper prints it
            line[f"{column} printed"] = printed.value(label, column)
        if {"metric", "fact"} & table.columns.get(column, {}).keys():
            line[measured_header(bench, table, column)] = found.cells.get(column, "")
        if "metric" in table.columns.get(column, {}):
            line[f"{column} {INTERVAL}"] = found.intervals.get(column, "")
    scores = list({s.manifest: s for s in found.scores.values()}.values())
    return line | {
        "N": _counts_text(found.counts),
        "protocol": ", ".join(
            dict.fromkeys(f"{s.protocol.get('name', '')} {s.protocol_digest[:8]}".strip() for s in scores)
        ),
        "status": found.status,
        "manifest": " ".join(s.manifest for s in scores),
        "notes": "; ".join(_notes(bench, table, found)),
        "warnings": " | ".join(found.warnings),
    }


def measured_header(bench: Bench, table: Table, column: str) -> str:
    """``rFID measured [demo-judge]``: a metric that a stand-in judges never goes by its plain name."""
    source = table.columns[column]
    base, protocol = (
        source.get("metric", ""),
        bench.protocol_of(source["under"]) if "under" in source else bench.protocol,
    )
    suffix = metric_name(base, protocol).removeprefix(base) if base else ""
    return f"{column} measured {suffix}".rstrip()


def _counts_text(counts: dict[str, int]) -> str:
    """``50000``, or ``50000 (rFID), 5000 (rFID(MS-COCO))`` where the cells of a row differ."""
    columns: dict[int, list[str]] = {}
    for column, count in counts.items():
        columns.setdefault(count, []).append(column)
    return ", ".join(str(n) if len(columns) == 1 else f"{n} ({', '.join(names)})" for n, names in columns.items())


def _notes(bench: Bench, table: Table, found: MeasuredRow) -> list[str]:
    notes, printed = list(found.notes), printed_table(table)
    for column in table_columns(table):
        cell = printed.cells.get((found.row.label, column))
        if cell and not cell.certain:
            notes.append(f"{column}: reading of the printed cell is uncertain{f' ({cell.note})' if cell.note else ''}")
        notes += [f"{column} also printed as {other}" for other in also_printed(bench, table, found.row, column)]
    accepted = dict.fromkeys(key for scores in found.scores.values() for key in scores.accepted)
    return notes + ([f"accepted under changed code or spec: {', '.join(accepted)}"] if accepted else [])


def write_table(bench: Bench, table: Table, base: Path, partial: bool = False, paper: Bench | None = None) -> Path:
    """Write the table, whole or not at all, and return its CSV. The same results give the same bytes.

    With `partial` the old whole table is removed and ``table<k>.partial.csv`` written; a whole table removes that.

    Raises:
        ArtifactError: as :func:`build_table`; what was on disk is then untouched.
    """
    measured, paper = _rows_of(bench, table, base, partial), paper or _paper_of(bench)
    frame = _frame_of(bench, table, measured, base, paper)
    whole = base / bench.table_path(table)
    if partial:
        return _write_partial(frame, whole)
    note = " ".join(filter(None, (table.about, header_note(paper, bench, table_rows(table)))))
    warned = warned_rows(measured)
    write_text(whole.with_suffix(".md"), to_markdown(frame, table, note, whole.parent, base, warned))
    write_text(whole.with_suffix(".tex"), to_latex(frame, table, note, warned))
    write_text(whole, frame.to_csv(index=False, lineterminator="\n"))
    whole.with_suffix(".partial.csv").unlink(missing_ok=True)
    return whole


def warned_rows(rows: list[MeasuredRow]) -> dict[str, list[str]]:
    """``{warning: labels of the rows whose scores bear it}``, in the table's order."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for warning in row.warnings:
            found.setdefault(warning, []).append(row.row.label)
    return found


def _write_partial(frame: pd.DataFrame, whole: Path) -> Path:
    # Removed first: a reader may find no table for a moment, but never a stale one.
    for suffix in (".csv", ".md", ".tex"):
        whole.with_suffix(suffix).unlink(missing_ok=True)
    write_text(partial := whole.with_suffix(".partial.csv"), frame.to_csv(index=False, lineterminator="\n"))
    return partial


def check_tables(bench: Bench, base: Path, paper: Bench | None = None) -> list[Path]:
    """After a failure: replace each table that is no longer backed by finished scores with its partial one.

    A table that was never written becomes a partial one if one of its rows failed. Returns what was written.
    """
    written = []
    for table in bench.tables.values():
        whole = base / bench.table_path(table)
        try:
            rows = measure_rows(bench, table, base)
            failed = any(row.status.startswith("failed") for row in rows)
            unfinished = any(row.wanting for row in rows)
            if unfinished and (failed or whole.exists() or whole.with_suffix(".partial.csv").exists()):
                written.append(write_table(bench, table, base, partial=True, paper=paper))
        except UserError as error:
            print(f"vqbench: {error}", file=sys.stderr)
            for suffix in (".csv", ".md", ".tex"):
                whole.with_suffix(suffix).unlink(missing_ok=True)
    return written
