"""One code for each position of the latent map: VQGAN, MaskGIT's tokenizer and LlamaGen's, which differ by options.

VQGAN (CompVis/taming-transformers: configs/imagenet_vqgan.yaml): the defaults. LlamaGen (FoundationVision/LlamaGen:
tokenizer/tokenizer_image/vq_model.py): code_dim 8, l2_normalize. MaskGIT (google-research/maskgit): entropy_temperature
0.01 with a weight of 0.1 on the term ``entropy``. VQGAN-LC's baselines (Sec. 3.1): VQGAN with similarity cosine; VQGAN-FC with
a code_dim far below latent_channels; VQGAN-EMA with codebook ema.
"""

from __future__ import annotations

from vqbench.errors import SpecError, nearest
from vqbench.specs import TokenizerSpec
from vqbench.tokenizers.base import Tokenizer
from vqbench.tokenizers.networks.autoencoder import ConvTokenizer
from vqbench.tokenizers.networks.initialise import seeded_init
from vqbench.tokenizers.quantizers.codebook import VectorQuantizer
from vqbench.tokenizers.quantizers.ema import EmaQuantizer

LAYOUT = "raster"
OPTIONS = {
    "num_codes": 16384,
    "code_dim": 256,
    "base_channels": 128,
    "multipliers": [1, 1, 2, 2, 4],
    "num_res_blocks": 2,
    "attention_resolutions": [16],
    "mid_attention": True,
    "latent_channels": 256,
    "codebook": "gradient",
    "codebook_decay": 0.99,
    "similarity": "euclidean",
    "l2_normalize": False,
    "entropy_temperature": 0.0,
    "init": "uniform",
}


def build(spec: TokenizerSpec) -> Tokenizer:
    """The untrained tokenizer; its weights follow from ``spec.seed``.

    Raises:
        SpecError: the options do not fit the resolution and grid, name an unknown init, similarity or codebook, ask
            for a codebook by EMA that is looked up by cosine, or for the decay of one that has none.
    """
    options = spec.options
    settings = {k: options[k] for k in ("init", "similarity", "l2_normalize", "entropy_temperature")}
    quantizer: VectorQuantizer
    with seeded_init(spec.seed, "tokenizer"):
        if options["codebook"] == "ema":
            if options["similarity"] == "cosine":
                raise SpecError(
                    "tokenizer: codebook 'ema' cannot be looked up by cosine: averages start at no vector, so a code that "
                    "nobody chose is 1 / epsilon too long, and cosine would choose it; set similarity: euclidean"
                )
            quantizer = EmaQuantizer(spec.tokens, decay=options["codebook_decay"], **settings)
        elif options["codebook"] == "gradient":
            if options["codebook_decay"] != OPTIONS["codebook_decay"]:
                raise SpecError("tokenizer: codebook_decay does nothing to a codebook 'gradient'; set codebook: ema")
            quantizer = VectorQuantizer(spec.tokens, **settings)
        else:
            raise SpecError(
                f"tokenizer: codebook is '{options['codebook']}'; {nearest(options['codebook'], ('gradient', 'ema'))}"
            )
        return ConvTokenizer(
            spec,
            quantizer,
            latent_channels=options["latent_channels"],
            code_channels=options["code_dim"],
            attention_resolutions=tuple(options["attention_resolutions"]),
            mid_attention=options["mid_attention"],
        )
