"""A recipe's switches: TF32, torch.compile, activation checkpointing. bf16 is autocast, around the model's forward pass."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vqbench.specs import TrainingSpec


def at_least_fp32(values: Tensor) -> Tensor:
    """bf16 becomes float32 where sums would lose too much; float64 stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def switch_on(model: nn.Module, training: TrainingSpec) -> None:
    """Make `model` run as its recipe says; names of parameters and buffers stay.

    A module whose class says ``recomputed = True`` is a block for activation checkpointing: only its input is kept, and
    the backward pass runs it again with the same random numbers. Values do not change.
    """
    if training.tf32:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    if training.recompute:
        for module in model.modules():
            if getattr(module, "recomputed", False):
                module.forward = partial(checkpoint, module.forward, use_reentrant=False)
    if training.compile:
        model.compile()
