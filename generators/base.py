"""The contract of a generator family. It knows of a tokenizer only its TokenSpec and its tokens.

A family is one file ``generators/<family>.py`` with literals ``OPTIONS``, ``SAMPLER`` (sampling options and defaults) and
``ACCEPTS`` ({TokenSpec field: {values, why}}), optionally ``TERMS`` (its losses, unless it is ``cross_entropy`` alone) and
``READS`` (``tokens``, or ``latents``: the encoder's outputs before quantization), all read without importing it, and
``build(spec) -> Generator``.

Letters: B images, N ids an image, Q slots, K codebook size.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vqbench.artifacts import read_tensors
from vqbench.errors import SpecError
from vqbench.rooms import build
from vqbench.specs import GeneratorSpec, TokenSpec

if TYPE_CHECKING:
    from vqbench.jobs import Finished


class Generator(nn.Module):
    """A prior over tokens, class-conditional."""

    def begin(self, tokens: Tensor) -> None:
        """Before the first step, without gradient: what starts from the data, here the first micro-batch."""

    @abstractmethod
    def losses(self, tokens: Tensor, condition: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """Named, unweighted scalar terms for ids (B, N, Q), or latents (B, C, h, w), and class labels (B,).

        All randomness but dropout comes from `rng`.
        """

    @abstractmethod
    def sample(self, condition: Tensor, rng: torch.Generator, sampler: dict[str, Any]) -> Tensor:
        """Class labels (B,) -> ids (B, N, Q) (or latents, for continuous families)."""

    @abstractmethod
    def check_sampler(self, sampler: dict[str, Any]) -> None:
        """Refuse options of :data:`SAMPLER` that are out of range; asked before it is trained, too.

        Raises:
            SpecError: names the option, its value and what is allowed.
        """

    @abstractmethod
    def parameter_counts(self) -> dict[str, int]:
        """``{"blocks": without vocabulary matrices, "vocabulary": embedding and head matrices over the K codes}``."""

    @abstractmethod
    def forward_flops(self) -> float:
        """Floating-point operations of one pass for one image; called on the meta device."""

    def steps(self, sampler: dict[str, Any]) -> int | str:
        """Runs of the network for a sample, guidance not counted; ``adaptive`` where a solver chooses them."""
        return int(sampler["steps"])

    @abstractmethod
    def passes(self, sampler: dict[str, Any]) -> float:
        """Passes that a sample takes, guidance not counted: what `vqbench plan` multiplies with."""


def check_vocabulary(spec: GeneratorSpec, codes: int, shape: tuple[int, ...], whose: str) -> None:
    """Refuse tokens that are not those of the generator's spec.

    Args:
        codes: K of the tokens.
        shape: of one image's tokens: (N, Q), or (C, h, w) of latents.
        whose: names them in the message.

    Raises:
        SpecError: a generator is asked for a codebook that its vocabulary does not match.
    """
    if (codes, shape) != (spec.tokens.num_codes, wanted := shape_of(spec, spec.tokens)):
        raise SpecError(
            f"the generator of tokenizer '{spec.tokenizer}' is asked for a codebook that its vocabulary does not match: it "
            f"knows {spec.tokens.num_codes} codes and {wanted} an image, {whose} have {codes} codes and {shape}; use the "
            "tokens it was declared for, or train it on these"
        )


def shape_of(spec: GeneratorSpec, tokens: TokenSpec) -> tuple[int, ...]:
    """What a generator's family reads of one image: (N, Q), or (C, h, w)."""
    return tokens.latent_shape if spec.reads == "latents" else (tokens.num_tokens, tokens.num_slots)


def build_generator(spec: GeneratorSpec) -> Generator:
    """The family's untrained model for a spec. Runs on the meta device too."""
    generator: Generator = build("generators", spec)
    return generator


def open_generator(spec: GeneratorSpec, finished: Finished, device: str | torch.device = "cpu") -> Generator:
    """A trained generator in eval mode with frozen weights (the EMA weights where its recipe keeps them)."""
    with torch.device("meta"):
        generator = build_generator(spec)
    generator.to_empty(device=device)
    generator.load_state_dict(read_tensors(finished.file("model.safetensors")))
    return generator.eval().requires_grad_(False)
