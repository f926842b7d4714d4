"""The contract of a tokenizer family, and how a trained one is opened.

A family is one file ``tokenizers/<family>.py`` with

* literals that are read without importing it: ``OPTIONS`` (every option and its default), ``LAYOUT`` (raster | channel |
  multiscale), optionally ``KIND`` and ``NUM_SLOTS``: from these the family's :class:`~vqbench.specs.TokenSpec` follows;
  optionally ``NEEDS``: option -> {kind, match}, for an option that names what another step makes (a codebook). It is made
  before, given to :meth:`Tokenizer.take`, and refused where an option in ``match`` is not what its spec says;
* ``build(spec) -> Tokenizer``.

Letters: B images, H W pixels, C h w the latent map, N ids an image, Q codes a position (slots), K codebook size.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from vqbench.artifacts import read_tensors
from vqbench.errors import SpecError
from vqbench.rooms import build
from vqbench.specs import TokenizerSpec, TokenSpec

if TYPE_CHECKING:
    from vqbench.jobs import Finished


class Quantized(NamedTuple):
    """What every quantizer returns.

    Attributes:
        latents: (B, C, h, w), the codes themselves, bit for bit; the gradient passes straight through to the input.
        ids: (B, N, Q) int64 in [0, K).
        losses: named, unweighted scalar terms (``codebook``, ``commitment``, ...).
    """

    latents: Tensor
    ids: Tensor
    losses: dict[str, Tensor]


class Output(NamedTuple):
    """A forward pass: reconstruction (B, 3, H, W) in [-1, 1] nominal, and what was quantized."""

    images: Tensor
    quantized: Quantized


class Quantizer(nn.Module):
    """Maps latents to codes and back. ``lookup(forward(z).ids) == forward(z).latents`` holds exactly."""

    @abstractmethod
    def forward(self, latents: Tensor) -> Quantized:
        """(B, C, h, w) -> :class:`Quantized`."""

    @abstractmethod
    def lookup(self, ids: Tensor, steps: int | None = None) -> Tensor:
        """(B, N, Q) -> (B, C, h, w). `steps`: only the first scales of a residual code, or channels of a nested one."""

    @abstractmethod
    def codebook(self) -> Tensor:
        """The K code vectors as they are looked up, (K, code_dim)."""

    def compared(self) -> Tensor:
        """(K, code_dim), the codes as the search for the nearest sees them: at length 1 where it goes by cosine."""
        return self.codebook()

    def end_step(self) -> None:
        """After the micro-batches of a training step: move what learns without a gradient. All processes come here."""


class Tokenizer(nn.Module):
    """Images to ids and back. Images are RGB in [-1, 1], shape (B, 3, H, W)."""

    tokens: TokenSpec
    quantizer: Quantizer

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> latents before quantization (B, C, h, w)."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> images (B, 3, H, W), not clipped."""

    @property
    @abstractmethod
    def last_layer(self) -> Tensor:
        """The weight of the decoder's last layer, where adaptive adversarial weights are measured."""

    def quantize(self, latents: Tensor) -> Quantized:
        """(B, C, h, w) -> :class:`Quantized`."""
        quantized: Quantized = self.quantizer(latents)
        return quantized

    def decode_ids(self, ids: Tensor) -> Tensor:
        """(B, N, Q) -> images (B, 3, H, W)."""
        return self.decode(self.quantizer.lookup(ids))

    def forward(self, images: Tensor) -> Output:
        """(B, 3, H, W) -> :class:`Output`."""
        quantized = self.quantize(self.encode(images))
        return Output(self.decode(quantized.latents), quantized)

    def take(self, option: str, made: Finished) -> None:
        """Before training: what the option that ``NEEDS`` names stands for, finished. What is taken is saved with the
        weights, so a trained tokenizer needs it no more.

        Raises:
            SpecError: the family declares ``NEEDS`` and has no such method.
        """
        raise SpecError(
            f"{type(self).__name__} needs '{option}' and takes nothing: give it a method take(option, made)"
        )

    def end_step(self) -> None:
        """After a training step, see :meth:`Quantizer.end_step`."""
        self.quantizer.end_step()

    def losses(self, images: Tensor, output: Output, step: int) -> dict[str, Tensor]:
        """Named, unweighted terms: both pixel norms and what the quantizer adds. A recipe's ``weights`` choose."""
        error = output.images - images
        return {"l1": error.abs().mean(), "l2": error.square().mean(), **output.quantized.losses}


def build_tokenizer(spec: TokenizerSpec) -> Tokenizer:
    """The family's untrained model for a spec. Runs on the meta device too."""
    tokenizer: Tokenizer = build("tokenizers", spec)
    return tokenizer


def open_tokenizer(spec: TokenizerSpec, finished: Finished, device: str | torch.device = "cpu") -> Tokenizer:
    """A trained tokenizer in eval mode with frozen weights (the EMA weights where its recipe keeps them)."""
    with torch.device("meta"):
        tokenizer = build_tokenizer(spec)
    tokenizer.to_empty(device=device)
    tokenizer.load_state_dict(read_tensors(finished.file("model.safetensors")))
    return tokenizer.eval().requires_grad_(False)
