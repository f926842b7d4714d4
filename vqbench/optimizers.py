"""Learning rates and optimizers, as recipes name them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from vqbench.specs import OptimizerSpec, ScheduleSpec


def learning_rate(base: float, schedule: ScheduleSpec, step: int, steps: int, scale_final: float = 1.0) -> float:
    """Learning rate at a step: linear warm-up; then constant, or a line or half a cosine to ``final_lr * scale_final``."""
    if step < schedule.warmup_steps:
        return base * (step + 1) / schedule.warmup_steps
    if schedule.name == "constant":
        return base
    final = schedule.final_lr * scale_final
    share = min(1.0, (step - schedule.warmup_steps) / max(1, steps - schedule.warmup_steps))
    left = 1 - share if schedule.name == "linear" else 0.5 * (1 + math.cos(math.pi * share))
    return final + (base - final) * left


def make_optimizer(module: nn.Module, spec: OptimizerSpec) -> torch.optim.Optimizer:
    """Adam or AdamW; AdamW decays matrices only, not biases, norms and embeddings of one dimension."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    settings: dict[str, Any] = {"lr": spec.lr, "betas": spec.betas, "eps": spec.eps}
    if spec.name == "adam":
        return torch.optim.Adam(parameters, weight_decay=spec.weight_decay, **settings)
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": spec.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], **settings)
