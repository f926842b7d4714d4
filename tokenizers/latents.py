"""Step ``latents``: the encoder's outputs of one split before quantization, written once for the generators that learn them."""

from __future__ import annotations

from typing import Any

from vqbench.jobs import Job
from vqbench.tokenizers.encoding import encode


def run(job: Job) -> dict[str, Any]:
    """Write ``latents.npy`` float32 (n * views, C, h, w) and ``labels.npy`` int64; rows as in step ``tokens``."""
    return encode(job, ("latents",), lambda _, latents: (latents.float(),))
