"""The shape of the YAML files, checked before anything is read out of them: what a run means is :mod:`vqbench.resolve`'s.

A name becomes a part of paths and of shell commands, so it is letters, digits, dots, dashes and underscores.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from pydantic import Field

from vqbench.errors import SpecError
from vqbench.specs import Spec, parse

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
Scalar = int | float | str
Entries = dict[str, dict[str, Any]]


class TableShape(Spec):
    """``tables:`` of a paper."""

    title: str
    about: str = ""
    columns: dict[str, dict[str, str | float]]
    rows: dict[str, dict[str, str]] | None = None
    ablation: bool = False


class FigureShape(Spec):
    """``figures:`` of a paper."""

    title: str
    kind: str
    runs: dict[str, list[str]] | None = None
    tables: list[Scalar] = Field(default_factory=list)
    classes: dict[int, str] | None = None


class PartnerShape(Spec):
    """``partners:`` of a paper: the generator that a column ``with: NAME`` pairs each row's tokenizer with, and its sampler."""

    generator: dict[str, Any]
    samples: dict[str, Any] = Field(default_factory=dict)


class PaperShape(Spec):
    """workflow/papers/<paper>.yaml."""

    paper: Any = None
    title: str = ""
    codebooks: Entries | None = None
    tokenizers: Entries | None = None
    generators: Entries | None = None
    samples: Entries | None = None
    classifiers: Entries | None = None
    partners: dict[str, PartnerShape] | None = None
    tables: dict[Scalar, TableShape] | None = None
    figures: dict[Scalar, FigureShape] | None = None
    controls: list[str] = Field(default_factory=list)
    ood: dict[str, list[str]] | None = None


class Asked(Spec):
    """What a scale asks for one kind of job."""

    gpu: int = Field(ge=0)
    mem_mb: int = Field(gt=0)
    runtime: Literal["plan"] | int


class Layer(Spec):
    """What a scale does to one kind of run."""

    replace: dict[str, dict[Scalar, Scalar]] = Field(default_factory=dict)
    set: dict[str, Any] = Field(default_factory=dict)
    families: Entries = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)
    family_training: Entries = Field(default_factory=dict)


class ScaleShape(Spec):
    """workflow/scales/<scale>.yaml."""

    about: str = ""
    protocol: str
    roles: dict[Literal["judge", "perceptual", "teacher"], str]
    datasets: dict[str, str] | None = None
    teachers: dict[str, str] | None = None
    threads: int = Field(default=1, gt=0)
    tokens: dict[str, Any] = Field(default_factory=dict)
    resources: dict[str, Asked] | None = None
    tokenizers: Layer | None = None
    generators: Layer | None = None
    samples: Layer | None = None
    classifiers: Layer | None = None


def check_paper(paper: str, data: dict[str, Any]) -> None:
    """Refuse a paper's file that is not of its shape, or a name that cannot be a path.

    Raises:
        SpecError: names file, entry, key and value.
    """
    for part, shape in (("partners", PartnerShape), ("tables", TableShape), ("figures", FigureShape)):
        entries = data.get(part)
        for name, entry in entries.items() if isinstance(entries, dict) else ():
            if isinstance(entry, dict):  # by itself first, so that a wrong key in it is named with the nearest
                parse(shape, entry, f"{paper}.yaml: {part[:-1]} '{name}'")
    parse(PaperShape, data, f"{paper}.yaml")
    for part in ("codebooks", "tokenizers", "generators", "samples", "classifiers", "partners", "tables", "figures"):
        check_names(data.get(part) or {}, f"{paper}.yaml: {part}")


def check_names(names: Mapping[Any, Any], where: str) -> None:
    """Refuse what cannot be a part of a path or of a command.

    Raises:
        SpecError: a name with another character than letters, digits, dots, dashes and underscores, or one of those first.
    """
    for name in names:
        if not NAME.fullmatch(str(name)):
            raise SpecError(
                f"{where}: {name!r} is not a name: letters, digits, dots, dashes and underscores, a letter or digit first"
            )


@contextmanager
def understood(where: str) -> Iterator[None]:
    """What no check foresaw in an entry ends as a line that names the entry, not as a traceback."""
    try:
        yield
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise SpecError(
            f"{where}: cannot be understood ({type(error).__name__}: {error}); compare it with the entries beside it"
        ) from None
