"""Tokenizers x generators: a table's column ``with: NAME`` pairs each row's tokenizer with one generator of its ``partners:``.

A pair that a paper declares in the same words is that paper's run: nothing is trained twice. Every other one becomes a run
of its own. Words are compared, not specs, so that all scales have the same runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from vqbench.errors import Impossible, SpecError
from vqbench.products import Crossing, Products
from vqbench.rooms import family_literals
from vqbench.shapes import understood

Read = Callable[[str, str, dict[str, Any], str], None]  # adds one run to the bench: kind, id, entry, where
Words = Mapping[str, Any]


def cross(
    bench: Products, paper: str, data: dict[str, Any], read: Read
) -> Iterator[tuple[tuple[str, str, str], Crossing]]:
    """``(paper, NAME, tokenizer) -> crossing`` for each row and column of the paper's tables that ask for one.

    Args:
        read: resolves a run that no paper declares and adds it to `bench`.

    Raises:
        SpecError: an entry of ``partners:`` is wrong. A tokenizer that its family does not accept is no error: the crossing
            says why.
    """
    tables = [bench.declared(paper, str(name), dict(entry)) for name, entry in (data.get("tables") or {}).items()]
    asked = {(column["with"], row.run["tokenizer"]) for table in tables for row in table.rows if "tokenizer" in row.run
             for column in table.columns.values() if "with" in column}  # fmt: skip
    for name, tokenizer in sorted(asked):
        where = f"{paper}.yaml: partner '{name}' of tokenizer '{tokenizer}'"
        with understood(where):
            yield (
                (paper, name, tokenizer),
                _crossing(bench, paper, name, tokenizer, data["partners"][name], read, where),
            )


def _crossing(bench: Products, paper: str, name: str, tokenizer: str, entry: Words, read: Read, where: str) -> Crossing:
    wanted = {**entry["generator"], "tokenizer": tokenizer}
    try:
        generator, share = _generator(bench, name, wanted, read, where)
        return Crossing(_samples(bench, paper, generator, entry.get("samples", {}), read, where), share)
    except Impossible as error:
        return Crossing("", refused=error.reason)


def _generator(bench: Products, name: str, wanted: dict[str, Any], read: Read, where: str) -> tuple[str, float]:
    """The id of the declared generator, or of a new one, and the share of its recipe's steps that it trains for."""
    training = dict(wanted.get("training", {}))
    share = training.pop("share", 1.0)
    defaults = _defaults(wanted, "OPTIONS", where) | {"recipe": wanted["family"], "training": {}, "seed": 0}
    whole = defaults | wanted | {"training": training}
    for run_id, entry in _declared(bench, "generators"):
        if defaults | entry == whole:
            return run_id, 1.0
    run_id = f"{name}-{wanted['tokenizer']}{'' if share == 1 else '-short'}"
    read("generators", run_id, wanted, f"{where}, generator '{run_id}'")
    return run_id, share


def _samples(bench: Products, paper: str, generator: str, sampler: Words, read: Read, where: str) -> str:
    """The id of the declared sample set, or of a new one."""
    defaults = _defaults({"family": bench.generators[generator].family}, "SAMPLER", where)
    for run_id, entry in _declared(bench, "samples"):
        if defaults | entry == defaults | {**sampler, "generator": generator}:
            return run_id
    run_id = f"{generator}-{paper}"
    read("samples", run_id, {**sampler, "generator": generator}, f"{where}, samples '{run_id}'")
    return run_id


def _defaults(entry: Words, literal: str, where: str) -> dict[str, Any]:
    if "family" not in entry:
        raise SpecError(f"{where}: key 'family' is missing")
    return dict(family_literals("generators", entry["family"], where)[literal])


def _declared(bench: Products, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The entries of all papers, in their order."""
    for data in bench.papers.values():
        yield from (data.get(kind) or {}).items()
