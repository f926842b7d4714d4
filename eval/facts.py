"""Facts of a run at this scale (sizes, steps, parameter counts) and how numbers are written in tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from vqbench.errors import SpecError, nearest
from vqbench.products import RowSpecs
from vqbench.specs import GeneratorSpec

# Digits of a metric where the paper prints fewer or none. Full precision is in scores.csv.
DECIMALS = {"fid": 2, "rfid": 2, "psnr": 2, "ssim": 3, "lpips": 3, "lpips_alex": 3, "is": 1}


def fact_text(specs: RowSpecs, fact: str, where: str) -> str:
    """A fact of the run at this scale: ``parameters`` as ``305M``, everything else as it stands in the spec.

    Raises:
        SpecError: the run has no such fact.
    """
    if fact == "parameters" and specs.generator:
        return count_text(parameter_count(specs.generator))
    facts = specs.facts()
    if fact not in facts:
        raise SpecError(f"{where}: unknown fact '{fact}'; {nearest(fact, [*facts, 'parameters'])}")
    return str(facts[fact])


def parameter_count(spec: GeneratorSpec) -> int:
    """Parameters of a generator's blocks, without the vocabulary matrices; counted on the meta device."""
    import torch

    from vqbench.generators.base import build_generator

    with torch.device("meta"):
        return build_generator(spec).parameter_counts()["blocks"]


def count_text(count: int) -> str:
    """305000000 -> ``305M``, as the papers print it; one decimal below ten of a unit.

    >>> count_text(1_020_000_000), count_text(634_400_000), count_text(350_000), count_text(12)
    ('1.0B', '634M', '350K', '12')
    """
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        # 999.6M rounds to 1000M: hand it to the next unit instead.
        if count >= 0.9995 * size:
            scaled = count / size
            return f"{scaled:.1f}{unit}" if scaled < 9.95 else f"{scaled:.0f}{unit}"
    return str(count)


def value_text(base: str, entry: Mapping[str, Any], printed: list[str]) -> str:
    """A measured value with at least the digits that its column prints, and three that count; percentages as ``97.0%``."""
    return f"{entry['value']:.{_digits(base, entry, printed)}f}{'%' if entry['unit'] == '%' else ''}"


def interval_text(base: str, entry: Mapping[str, Any], printed: list[str]) -> str:
    """Its 95% interval with the same digits, ``[2.28, 2.35]``; "" where it has none."""
    if entry.get("low") is None or entry.get("high") is None:
        return ""
    digits = _digits(base, entry, printed)
    return f"[{entry['low']:.{digits}f}, {entry['high']:.{digits}f}]"


def _digits(base: str, entry: Mapping[str, Any], printed: list[str]) -> int:
    percent = entry["unit"] == "%"
    digits = max([DECIMALS.get(base, 1 if percent else 3), *map(_decimals, printed)])
    if not percent and 0 < abs(entry["value"]) < 1:
        digits = max(digits, 2 - math.floor(math.log10(abs(entry["value"]))))
    return digits


def _decimals(printed: str) -> int:
    number = printed.rstrip("%")
    return len(number.partition(".")[2]) if number.replace(".", "", 1).isdigit() else 0
