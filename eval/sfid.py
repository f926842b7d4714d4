"""sFID: FID on spatial features (Nash et al. 2021)."""

from __future__ import annotations

from typing import ClassVar

import torch

from vqbench.eval.base import Layer
from vqbench.eval.fid import Fid


class Sfid(Fid):
    """Frechet distance of the first 7 channels of an intermediate 17x17 map, 2,023 values an image.

    Source: openai/guided-diffusion:evaluations/evaluator.py.
    """

    rows: ClassVar[frozenset[Layer]] = frozenset({"spatial"})
    moments: ClassVar[frozenset[Layer]] = frozenset({"spatial"})
    layer: ClassVar[Layer] = "spatial"

    def __init__(self, device: torch.device | None = None) -> None:
        super().__init__("sfid", device)
