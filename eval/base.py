"""The contract of a metric: one file, one class, one definition.

Images are compared as uint8 RGB, shape (B, H, W, 3), the way they would be saved: rounded and clipped once, at decoding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal


class Metric(ABC):
    """Accumulates over batches and computes once.

    Class attributes state the facts a table needs: `unit` (e.g. "dB", "%", ""), `higher_is_better`, `needs`
    ("pairs" of images, "sets" of features, "ids", "labels").
    """

    unit: ClassVar[str]
    higher_is_better: ClassVar[bool]
    needs: ClassVar[Literal["pairs", "sets", "ids"]]

    @abstractmethod
    def update(self, *batch: Any) -> None:
        """Add one batch."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """``{name: value}`` over everything added."""
