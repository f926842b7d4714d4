"""Markdown and LaTeX of a table that :func:`vqbench.eval.tables.build_table` has built."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vqbench.papers import Table

if TYPE_CHECKING:
    import pandas as pd

# Printed strings hold these; pdfLaTeX has no glyph for some of them in its default fonts.
LATEX = {
    "†": r"\dag{}", "‡": r"\ddag{}", "\N{MULTIPLICATION SIGN}": r"$\times$", "±": r"$\pm$", "β": r"$\beta$",
    "→": r"$\to$", "✓": r"\checkmark{}", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "≥": r"$\geq$", "≤": r"$\leq$",
}  # fmt: skip


INTERVAL = "95%"  # ends the name of a column of intervals
MERGED = ("warnings", "scale")  # columns that people read once for all rows, beside the table

Warned = Mapping[str, Sequence[str]]  # warning -> labels of the rows that it is about


def with_intervals(frame: pd.DataFrame) -> pd.DataFrame:
    """For people: each interval behind its value, ``2.31 [2.28, 2.35]``, instead of in a column of its own."""
    shown = frame.copy()
    names = [str(name) for name in shown]
    for column in [name for name in names if name.endswith(f" {INTERVAL}")]:
        start = column.removesuffix(INTERVAL) + "measured"
        measured = next(name for name in names if name.startswith(start))
        shown[measured] = (shown[measured] + " " + shown[column]).str.strip()
        shown = shown.drop(columns=column)
    return shown


def to_markdown(
    frame: pd.DataFrame, table: Table, note: str, folder: Path, base: Path, warned: Warned | None = None
) -> str:
    """Title, what the scale replaced, a pipe table whose manifests are links relative to `folder`, and the warnings."""
    shown = with_intervals(frame).drop(columns=list(MERGED)).map(lambda text: text.replace("|", r"\|"))
    shown["manifest"] = [_links(cell, folder, base) for cell in shown["manifest"]]
    shown.columns = [name.replace("|", r"\|") for name in shown.columns]
    body = shown.to_markdown(index=False, disable_numparse=True)
    head = f"# {table.name}: {table.title}\n\n"
    lines = [f"- {warning} ({', '.join(f'`{label}`' for label in rows)})\n" for warning, rows in (warned or {}).items()]
    below = f"\nWarnings:\n\n{''.join(lines)}" if lines else ""
    return head + (f"{note}\n\n" if note else "") + f"{body}\n{below}"


def _links(cell: str, folder: Path, base: Path) -> str:
    paths = [os.path.relpath(base / path, folder) for path in cell.split()]
    # scores/tokenizers/<run>/<data set>/manifest.json -> <run>/<data set>
    names = ["/".join(Path(path).parts[Path(path).parts.index("scores") + 2 : -1]) for path in paths]
    return ", ".join(f"[{name}]({path})" for name, path in zip(names, paths, strict=True))


def to_latex(frame: pd.DataFrame, table: Table, note: str, warned: Warned | None = None) -> str:
    """A ``table`` environment for booktabs and graphicx, scaled down to the line's width where it is wider.

    Manifests are left out (they are in the CSV); protocols go to the caption, what the scale replaced and warnings below
    the table.
    """
    protocols = "; ".join(sorted({p for p in frame["protocol"] if p}))
    shown = with_intervals(frame).drop(columns=["manifest", "protocol", *MERGED])
    if not shown["notes"].any():
        shown = shown.drop(columns="notes")
    words = [f"{table.title}.", f"Protocol: {protocols}." if protocols else ""]
    lines = [note] if note else []
    lines += [f"Warning: {warning} ({', '.join(rows)})." for warning, rows in (warned or {}).items()]
    below = "".join(f"\\par\\smallskip\\footnotesize {_escape(line)}\n" for line in lines)
    body = shown.to_latex(index=False, escape=True, column_format="l" + "r" * (shown.shape[1] - 1))
    text = (
        f"% needs the packages booktabs, graphicx and amssymb\n\\begin{{table}}\n\\centering\n"
        f"\\caption{{{_escape(' '.join(filter(None, words)))}}}\n\\label{{tab:{table.paper}-{table.id}}}\n"
        f"\\resizebox{{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}}{{!}}{{%\n{body}}}\n{below}\\end{{table}}\n"
    )
    return "".join(LATEX.get(char, char) for char in text)


def _escape(text: str) -> str:
    special = {c: f"\\{c}" for c in "&%$#_{}"} | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
                                                    "\\": r"\textbackslash{}"}  # fmt: skip
    return "".join(special.get(char, char) for char in text).replace("->", r"$\to$")
