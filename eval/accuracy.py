"""Top-1 accuracy as a table's number: of linear probes and of token classifiers."""

from __future__ import annotations

from vqbench.eval.base import Estimate, Facts
from vqbench.eval.intervals import wilson


class TopOne(Facts):
    """The facts of a top-1 accuracy."""

    unit = "%"
    higher_is_better = True
    interval = "Wilson score over validation images, the probe taken as fixed"
    not_finite = "refused"


def share_right(right: int, count: int) -> Estimate:
    """Top-1 in % of so many images, with its Wilson interval."""
    low, high = wilson(right, count)
    return Estimate(100 * right / count, 100 * low, 100 * high, count)
