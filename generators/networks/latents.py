"""What generators of latents share: their scale, their first noise, classes dropped in training, guidance.

They learn the encoder's outputs before quantization; their samples are quantized, then decoded.

Letters: B images, C channels, h w the latent map.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vqbench.generators.base import Generator
from vqbench.generators.networks.guided import guided
from vqbench.generators.networks.scale import Scale
from vqbench.specs import GeneratorSpec
from vqbench.switches import at_least_fp32


class LatentGenerator(Generator):
    """A prior over latents.

    Args:
        spec: ``options["scale"]``, see :class:`Scale`; ``training.class_drop`` is the probability that a class is
            replaced by none.
    """

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__()
        self.channels, self.side, _ = spec.tokens.latent_shape
        self.null_class, self.class_drop = spec.num_classes, spec.training.class_drop
        self.scale = Scale(spec.options["scale"])

    @abstractmethod
    def predict(self, latents: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """The network: (B, C, h, w), times (B,), class labels (B,) -> (B, outputs, h, w)."""

    def begin(self, tokens: Tensor) -> None:
        self.scale.measure(tokens)

    def drawn(self, shape: torch.Size, condition: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Of a training step: normal noise of `shape`, and the classes, some of them dropped."""
        noise = torch.randn(shape, generator=rng, device=rng.device).to(condition.device)
        dropped = torch.rand(len(condition), generator=rng, device=rng.device).to(condition.device) < self.class_drop
        return noise, condition.masked_fill(dropped, self.null_class)

    def start(
        self, condition: Tensor, rng: torch.Generator, sampler: dict[str, Any]
    ) -> tuple[Tensor, Callable[[Tensor, Tensor], Tensor]]:
        """Of a sampling: the first noise, (B, C, h, w), and the guided network of latents and one time, in fp32."""
        network = guided(self.predict, condition, self.null_class, sampler, self.channels)
        shape = (len(condition), self.channels, self.side, self.side)
        return torch.randn(shape, generator=rng, device=rng.device), lambda x, time: at_least_fp32(network(x, time))

    def parameter_counts(self) -> dict[str, int]:
        """``blocks``: all; there is no vocabulary."""
        return {"blocks": sum(p.numel() for p in self.parameters()), "vocabulary": 0}

    def forward_flops(self) -> float:
        """Counted on the layers as they run: a parameter works as often as its layer has positions. Two a multiplication."""
        place = next(self.parameters()).device
        latents = torch.empty(1, self.channels, self.side, self.side, device=place)
        with FlopCounterMode(display=False) as counter:
            self.predict(latents, torch.zeros(1, device=place), torch.zeros(1, dtype=torch.int64, device=place))
        return float(counter.get_total_flops())

    def passes(self, sampler: dict[str, Any]) -> float:
        """One a step."""
        return float(sampler["steps"])
