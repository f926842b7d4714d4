"""VQGAN-LC (Sec. 3.2): VQGAN's networks around a large codebook that was made beforehand and stays as it is.

What learns is a linear projector from the codebook's dimension to the code's. The codebook is an entry of a paper's section
``codebooks:``; it may come from another data set than the tokenizer's (Table 8). ``projector: false`` and
``trainable: true`` are Table 9. ``standardize: true`` (ours) centres codes that came from a teacher's features and brings them to
a mean length of 1, before a projector: where they share a large mean, one is the nearest to all latents at the start, and stays it.
Of 256 x 256 images, downsample 16 gives 256 tokens; 8, with ``multipliers: [1, 2, 2, 4]``, 1,024
(zh460045050/VQGAN-LC:vqgan-gpt-lc/vqgan_configs).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vqbench.specs import TokenizerSpec
from vqbench.tokenizers.base import Tokenizer
from vqbench.tokenizers.networks.autoencoder import ConvTokenizer
from vqbench.tokenizers.networks.initialise import seeded_init
from vqbench.tokenizers.quantizers.projected import CODEBOOK, ProjectedQuantizer, read_codebook

if TYPE_CHECKING:
    from vqbench.jobs import Finished

LAYOUT = "raster"
OPTIONS = {
    "codebook": "",
    "num_codes": 100_000,
    "codebook_dim": 768,
    "code_dim": 8,
    "projector": True,
    "trainable": False,
    "standardize": False,
    "base_channels": 128,
    "multipliers": [1, 1, 2, 2, 4],
    "num_res_blocks": 2,
    "attention_resolutions": [16],
    "mid_attention": True,
    "latent_channels": 256,
}
NEEDS = {"codebook": {"kind": "codebook", "match": {"num_codes": "num_codes", "codebook_dim": "code_dim"}}}


class LargeCodebookTokenizer(ConvTokenizer):
    """A :class:`ConvTokenizer` that starts from a codebook."""

    quantizer: ProjectedQuantizer
    standardize = False

    def take(self, option: str, made: Finished) -> None:
        """Take the codebook of a finished step ``codebook``."""
        codes = read_codebook(made.file(CODEBOOK))
        of_features = "features" in made.facts  # random numbers stay as they were drawn (Table 6)
        projected = self.quantizer.projector is not None  # without one, latents are held against raw codes
        self.quantizer.take(standardized(codes) if self.standardize and of_features and projected else codes)


def build(spec: TokenizerSpec) -> Tokenizer:
    """The untrained tokenizer; its weights follow from ``spec.seed``, its codebook is still random.

    Raises:
        SpecError: the options do not fit the resolution and grid, or the code does not fit the codebook.
    """
    options = spec.options
    with seeded_init(spec.seed, "tokenizer"):
        model = LargeCodebookTokenizer(
            spec,
            ProjectedQuantizer(
                spec.tokens, options["codebook_dim"], projector=options["projector"], trainable=options["trainable"]
            ),
            latent_channels=options["latent_channels"],
            code_channels=options["code_dim"],
            attention_resolutions=tuple(options["attention_resolutions"]),
            mid_attention=options["mid_attention"],
        )
    model.standardize = options["standardize"]
    return model


def standardized(codes: Tensor) -> Tensor:
    """Codes (K, D) without their mean, at a mean length of 1; codes that are all alike stay at 0."""
    centred = codes - codes.mean(0)
    length: Tensor = centred.norm(dim=1).mean().clamp_min(torch.finfo(codes.dtype).tiny)
    return centred / length
