"""A codebook that stays as it was made, seen through a trained projector (VQGAN-LC Sec. 3.2).

Letters: K codes of length D before the projector and d behind it, M vectors of a batch.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqbench.artifacts import read_tensors
from vqbench.errors import ArtifactError, SpecError
from vqbench.specs import TokenSpec
from vqbench.tokenizers.quantizers.codebook import VectorQuantizer

CODEBOOK = "codebook.safetensors"  # of step ``codebook``: one tensor ``codebook`` (K, D)


def read_codebook(path: Path) -> Tensor:
    """The (K, D) of a finished step's file.

    Raises:
        ArtifactError: unreadable, or a code is not finite.
    """
    codes = read_tensors(path)["codebook"]
    if not torch.isfinite(codes).all():
        raise ArtifactError(f"{path} holds a code that is not finite; remove it and run again")
    return codes


class ProjectedQuantizer(VectorQuantizer):
    """Nearest projected code by Euclidean distance; what learns is the projector, Linear(D, d).

    Its weights start with deviation d^-0.5 (zh460045050/VQGAN-LC:vqgan-gpt-lc/models/models_vq.py). The codebook is a
    buffer: saved with the weights, moved by nothing. Losses as :class:`VectorQuantizer`'s.

    Args:
        tokens: gives K and d.
        dim: D.
        projector: False leaves it out, and the latents are brought to length 1 as there; the codes keep theirs.
        trainable: the codebook learns too (Table 9).

    Raises:
        SpecError: without a projector, d is not D.
    """

    def __init__(self, tokens: TokenSpec, dim: int, *, projector: bool = True, trainable: bool = False) -> None:
        super().__init__(tokens, init="normal")
        if not projector and dim != tokens.code_dim:
            raise SpecError(f"without a projector codes keep the codebook's {dim} dimensions, code_dim is "
                            f"{tokens.code_dim}; set code_dim: {dim}, or projector: true")  # fmt: skip
        # Until a codebook is taken: normal numbers of length 1 on average.
        codes = torch.empty(tokens.num_codes, dim)
        nn.init.normal_(codes, std=dim**-0.5)
        del self.weight
        self.weight = nn.Parameter(codes) if trainable else nn.Buffer(codes)  # (K, D)
        self.projector = nn.Linear(dim, tokens.code_dim) if projector else None
        if self.projector is not None:
            nn.init.normal_(self.projector.weight, std=tokens.code_dim**-0.5)

    @torch.no_grad()
    def take(self, codes: Tensor) -> None:
        """Start from a codebook (K, D).

        Raises:
            SpecError: it has another shape.
        """
        if codes.shape != self.weight.shape:
            raise SpecError(f"the codebook is {tuple(codes.shape)}, the tokenizer's {tuple(self.weight.shape)}; "
                            "give both the same num_codes and codebook_dim")  # fmt: skip
        self.weight.copy_(codes)

    def codebook(self) -> Tensor:
        """The projected codes (K, d), or without a projector the codes themselves."""
        if self.projector is None:
            return self.weight
        kind = "cpu" if self.weight.is_meta else self.weight.device.type  # autocast does not know the meta device
        with torch.autocast(kind, enabled=False):  # a look-up gives the same bits wherever it is asked for
            projected: Tensor = self.projector(self.weight)
        return projected

    def quantize_vectors(self, z: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """As :meth:`VectorQuantizer.quantize_vectors`."""
        return super().quantize_vectors(z if self.projector is not None else F.normalize(z, dim=1))
