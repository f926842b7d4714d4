"""Top-1: how often a classifier's first class is the true one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


@torch.no_grad()
def count_right(logits_of: Callable[[slice], Tensor], labels: np.ndarray, batch: int) -> int:
    """How many of n images are given their own label first; the first of equal logits counts.

    Args:
        logits_of: logits (B, classes) of a run of images, at most `batch` of them.
        labels: (n,) integers.
    """
    right = 0
    for start in range(0, len(labels), batch):
        part = slice(start, min(start + batch, len(labels)))
        right += int((logits_of(part).argmax(1).cpu().numpy() == labels[part]).sum())
    return right
