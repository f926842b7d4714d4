"""CLIP through open_clip, with the weights of a file: OpenAI's TorchScript, or a state dict as open_clip saves it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.factory import load_state_dict
from torch import Tensor

from vqbench.errors import MissingWeights, SpecError, nearest
from vqbench.weights import UNREADABLE, fetch_again

SCRIPTED = ("input_resolution", "context_length", "vocab_size")  # what OpenAI's files hold beside weights


def open_clip_network(weights: Path, architecture: str, kind: str) -> Any:
    """open_clip's model in float32 with the weights of a file; nothing is fetched.

    Args:
        kind: in workflow/pretrained.yaml, for the error.

    Raises:
        SpecError: open_clip has no such architecture.
        MissingWeights: the file cannot be read, or is another network's.
    """
    if architecture not in open_clip.list_models():
        raise SpecError(f"open_clip has no '{architecture}'; {nearest(architecture, open_clip.list_models())}")
    network = open_clip.create_model(architecture, pretrained=None, load_weights=False)
    try:
        network.load_state_dict({k: v.float() for k, v in _read(weights).items()})
    except UNREADABLE as error:
        reason = str(error).partition("\n")[0]
        raise MissingWeights(
            f"{weights} does not hold the weights of {architecture} ({reason}); {fetch_again(kind)}"
        ) from None
    return network.eval().requires_grad_(False)


def _read(weights: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is deprecated; OpenAI's files are what they are
            state = torch.jit.load(str(weights), map_location="cpu").state_dict()
    except (RuntimeError, ValueError):
        state = load_state_dict(str(weights))
    return {k: v for k, v in state.items() if k not in SCRIPTED}
