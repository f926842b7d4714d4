"""Channel-wise quantization (the cq paper, Sec. 3.2): one code for each channel's whole map.

The encoder's latent map has as many channels as there are tokens, and a code is as long as a map, h*w. VQGAN's encoder
and decoder without attention blocks, plain nearest-neighbour codes, no entropy term. How the codebook starts is not
printed: ``samples`` is ours.
"""

from __future__ import annotations

from vqbench.specs import TokenizerSpec
from vqbench.tokenizers.base import Tokenizer
from vqbench.tokenizers.networks.autoencoder import ConvTokenizer
from vqbench.tokenizers.networks.initialise import seeded_init
from vqbench.tokenizers.quantizers.codebook import VectorQuantizer

LAYOUT = "channel"
OPTIONS = {
    "num_codes": 16384,
    "num_tokens": 256,
    "base_channels": 128,
    "multipliers": [1, 1, 2, 2, 4],
    "num_res_blocks": 2,
    "init": "samples",
}


def build(spec: TokenizerSpec) -> Tokenizer:
    """The untrained tokenizer; its weights follow from ``spec.seed``.

    Raises:
        SpecError: the options do not fit the resolution and grid, or name an unknown init.
    """
    with seeded_init(spec.seed, "tokenizer"):
        return ConvTokenizer(
            spec,
            VectorQuantizer(spec.tokens, init=spec.options["init"]),
            latent_channels=spec.tokens.num_tokens,
            code_channels=None,
            attention_resolutions=(),
            mid_attention=False,
        )
