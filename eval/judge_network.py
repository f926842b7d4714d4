"""What every judge's network is: layers by name out of images in levels, over weights from a checked file.

Letters: B images, S side, d feature length.
"""

from __future__ import annotations

import warnings
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Collection
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from vqbench.errors import MissingWeights
from vqbench.weights import UNREADABLE, fetch_again

Found = dict[str, Tensor]  # layer -> (B, d) float32


class JudgeNetwork(nn.Module, ABC):
    """A frozen network, its scaling of levels included.

    Attributes:
        layers: names of what it can give.
        size: S, the side it takes; None: any.
        chunk: images that run together on a CPU; bounds memory and hardly moves the values.
    """

    layers: ClassVar[tuple[str, ...]]
    size: ClassVar[int | None]
    chunk: ClassVar[int]

    @abstractmethod
    def forward(self, levels: Tensor, wanted: Collection[str]) -> Found:
        """(B, 3, S, S) float32 in [0, 255] -> the `wanted` layers; what only others need is not computed."""


class Normalize(nn.Module):
    """(levels / 255 - mean) / std, channel by channel, as networks trained on ImageNet want it."""

    def __init__(self, mean: Collection[float], std: Collection[float]) -> None:
        super().__init__()
        self.mean = nn.Buffer(torch.tensor(list(mean), dtype=torch.float64).mul(255).float().view(1, 3, 1, 1))
        self.std = nn.Buffer(torch.tensor(list(std), dtype=torch.float64).mul(255).float().view(1, 3, 1, 1))

    def forward(self, levels: Tensor) -> Tensor:
        return (levels - self.mean) / self.std


class Weights:
    """A state dict that is taken apart by name and shape, so that another network's is refused.

    Args:
        inside: key of the state dict in a file that holds more.

    Raises:
        MissingWeights: the file cannot be read, or is not that network's.
    """

    def __init__(self, path: Path, kind: str, inside: str = "") -> None:
        self.path, self.kind = path, kind
        try:
            with warnings.catch_warnings(action="ignore"):  # of TorchScript, which is then refused
                # Mapped, the file's pages go when the network has its own copy; the format before 2020 cannot be.
                state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        except UNREADABLE as error:
            raise self.refusal(f"it cannot be read: {_first_line(error)}") from None
        if inside:
            state = state.get(inside) if isinstance(state, dict) else None
        if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
            raise self.refusal(f"it holds no state dict under '{inside}'" if inside else "it is no state dict")
        self.state: dict[str, Tensor] = state

    def take(self, name: str, *shape: int) -> Tensor:
        """The tensor of that name, checked; mapped from the file, so copy what is to be kept."""
        found = self.state.pop(name, None)
        if found is None or found.shape != shape:
            has = "is missing" if found is None else f"has shape {tuple(found.shape)}"
            raise self.refusal(f"'{name}' {has}, expected {shape}")
        return found

    def end(self) -> None:
        """Refuse what nothing took; batch norm's counters are of no use here."""
        left = sorted(name for name in self.state if not name.endswith("num_batches_tracked"))
        if left:
            raise self.refusal(f"it holds {len(left)} more tensors, e.g. '{left[0]}'")

    def fill(self, module: nn.Module) -> None:
        """Load everything into a module that was built on the meta device."""
        try:
            module.load_state_dict({k: v.clone() for k, v in self.state.items()}, assign=True)
        except RuntimeError as error:
            raise self.refusal(_first_line(error, after=":")) from None

    def refusal(self, reason: str) -> MissingWeights:
        """The error that says what is wrong and what to do."""
        return MissingWeights(
            f"{self.path} does not hold the weights of '{self.kind}' ({reason}); {fetch_again(self.kind)}"
        )


def _first_line(error: Exception, after: str = "") -> str:
    """What an error says, cut to a line; torch heads a list of differences with a line that ends in a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    line = lines[1] if after and lines[0].endswith(after) and len(lines) > 1 else lines[0]
    return line[:200]
