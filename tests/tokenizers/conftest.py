"""Small specs for the tokenizers' tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from vqbench.resolve import Overlay, resolve_tokenizer
from vqbench.specs import DatasetSpec, TokenizerSpec

SMALL = {"num_codes": 32, "num_tokens": 8, "code_dim": 8, "latent_channels": 8, "base_channels": 8,
         "multipliers": [1, 2, 2], "num_res_blocks": 1, "attention_resolutions": [4]}  # fmt: skip
RECIPE = {"steps": 10, "batch_size": 4, "optimizer": {"name": "adam", "lr": 1e-3, "betas": (0.9, 0.99)}}


@pytest.fixture
def make_spec() -> Callable[..., TokenizerSpec]:
    """``make_spec(family, resolution=16, downsample=4, small=True, seed=0, **options)``: resolved as YAML would be."""

    def make(
        family: str, resolution: int = 16, downsample: int = 4, small: bool = True, seed: int = 0, **options: Any
    ) -> TokenizerSpec:
        data = DatasetSpec(kind="embedded", resolution=resolution, classes=2, sizes={"train": 8})
        layer = {"set": {k: v for k, v in SMALL.items() if k not in options} if small else {}}
        overlay = Overlay({"protocol": "p", "roles": {"perceptual": "none"}, "tokenizers": layer}, "test")
        entry = {"family": family, "dataset": "images", "recipe": "r/paper", "downsample": downsample, "seed": seed}
        return resolve_tokenizer({**entry, **options}, {"images": data}, {"r/paper": RECIPE}, overlay, "test")

    return make
