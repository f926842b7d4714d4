"""Resumable training state: safetensors plus a digest, written atomically, the last two kept."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vqbench.artifacts import read_sealed, read_tensors, sha256_file, write_json, write_tensors
from vqbench.errors import ArtifactError
from vqbench.specs import digest_of

KEEP = 2


def save_checkpoint(folder: Path, step: int, tensors: dict[str, Tensor], extra: dict[str, Any]) -> None:
    """Write ``checkpoint-<step>.safetensors`` and its JSON; older ones beyond the last two are removed afterwards."""
    path = folder / f"checkpoint-{step:09d}.safetensors"
    write_tensors(path, tensors)
    body = {"step": step, "run": folder.parent.name, "sha256": sha256_file(path), "extra": extra}
    write_json(path.with_suffix(".json"), body | {"self": digest_of(body)})
    for old in sorted(folder.glob("checkpoint-*.json"))[:-KEEP]:
        old.unlink()
        old.with_suffix(".safetensors").unlink(missing_ok=True)


def load_checkpoint(folder: Path) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
    """(step, tensors, extra) of the newest checkpoint that is whole and this run's; others are named and passed over."""
    for record in sorted(folder.glob("checkpoint-*.json"), reverse=True):
        path = record.with_suffix(".safetensors")
        try:
            listed = _record(record)
            if sha256_file(path) != listed["sha256"]:
                raise ArtifactError(f"{path} does not match its digest")
            return listed["step"], read_tensors(path), listed["extra"]
        except ArtifactError as error:
            print(f"vqbench: checkpoint passed over: {error}", file=sys.stderr)
    return None


def _record(path: Path) -> dict[str, Any]:
    """What stands beside a checkpoint.

    Raises:
        ArtifactError: damaged, or another run's or step's under this name.
    """
    found = read_sealed(path)
    if f"checkpoint-{found['step']:09d}" != path.stem or found["run"] != path.parent.parent.name:
        raise ArtifactError(f"{path} is of another run or step")
    return found


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
