"""Resumable training state: safetensors plus a digest, written atomically, the last two kept.

The record names the run by the folder that holds its state, which is the run's own digest: a checkpoint that came from
another run is as good as a damaged one.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vqbench.artifacts import read_sealed, read_tensors, sealed, sha256_file, write_json, write_tensors
from vqbench.errors import ArtifactError

KEEP = 2


def save_checkpoint(folder: Path, step: int, tensors: dict[str, Tensor], extra: dict[str, Any]) -> None:
    """Write ``checkpoint-<step>.safetensors`` and its JSON; older ones beyond the last two are removed afterwards."""
    path = folder / f"checkpoint-{step:09d}.safetensors"
    write_tensors(path, tensors)
    record = {"run": folder.parent.name, "step": step, "sha256": sha256_file(path), "extra": extra}
    write_json(path.with_suffix(".json"), sealed(record))
    for old in sorted(folder.glob("checkpoint-*.json"))[:-KEEP]:
        old.unlink()
        old.with_suffix(".safetensors").unlink(missing_ok=True)


def load_checkpoint(folder: Path) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
    """(step, tensors, extra) of the newest checkpoint that is this run's and whole; others are named and passed over."""
    for record in sorted(folder.glob("checkpoint-*.json"), reverse=True):
        path = record.with_suffix(".safetensors")
        try:
            listed = read_sealed(record)
            if (listed["run"], f"checkpoint-{listed['step']:09d}") != (folder.parent.name, record.stem):
                raise ArtifactError(f"{record} is that of step {listed['step']} of another run or file")
            if sha256_file(path) != listed["sha256"]:
                raise ArtifactError(f"{path} does not match its digest")
            return listed["step"], read_tensors(path), listed["extra"]
        except ArtifactError as error:
            print(f"vqbench: checkpoint passed over: {error}", file=sys.stderr)
    return None


def module_state(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    """All persistent tensors of a module, names prefixed."""
    return {f"{prefix}/{k}": v for k, v in module.state_dict().items()}


def optimizer_state(prefix: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's tensors, flat: ``<prefix>/<parameter index>/<name>``."""
    state = optimizer.state_dict()["state"]
    return {f"{prefix}/{i}/{k}": v for i, slots in state.items() for k, v in slots.items()}


def below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The entries under a prefix, the prefix removed."""
    return {k[len(prefix) + 1 :]: v for k, v in tensors.items() if k.startswith(prefix + "/")}


def restore_optimizer(prefix: str, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Undo :func:`optimizer_state`."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in below(prefix, tensors).items():
        index, key = name.split("/")
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
