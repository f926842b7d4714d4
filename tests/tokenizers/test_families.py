"""What is particular to the families `vq` and `channel`; what all share is in tests/test_contract.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from vqbench.errors import SpecError
from vqbench.specs import TokenizerSpec
from vqbench.tokenizers.base import Tokenizer, build_tokenizer
from vqbench.tokenizers.networks.conv import AttentionBlock
from vqbench.tokenizers.quantizers.codebook import VectorQuantizer

MakeSpec = Callable[..., TokenizerSpec]


def on_meta(spec: TokenizerSpec) -> Tokenizer:
    with torch.device("meta"):
        return build_tokenizer(spec)


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_llamagens_tokenizer_has_the_released_number_of_parameters(make_spec: MakeSpec) -> None:
    """71,883,403, as LlamaGen's code prints for VQ-16."""
    spec = make_spec("vq", 256, 16, small=False, code_dim=8, l2_normalize=True)
    assert parameters(on_meta(spec)) == 71_883_403


@pytest.mark.parametrize(
    ("family", "options", "code_dim"),
    [("vq", {}, 256), ("channel", {}, 256), ("channel", {"num_tokens": 512}, 256)],
)
def test_paper_scale_with_the_largest_codebook(
    make_spec: MakeSpec, family: str, options: dict[str, int], code_dim: int
) -> None:
    model = on_meta(make_spec(family, 256, 16, small=False, num_codes=131_072, **options))
    assert model.quantizer.codebook().shape == (131_072, code_dim)
    latents = model.encode(torch.empty(1, 3, 256, 256, device="meta"))
    assert latents.shape == (1, options.get("num_tokens", 256), 16, 16)
    assert model.decode(latents).shape == (1, 3, 256, 256)


def test_attention_blocks(make_spec: MakeSpec) -> None:
    """cq Sec. 3.2: none. VQGAN at 256 px: two in the encoder and three in the decoder at 16 x 16, and the middle ones."""

    def attentions(family: str) -> int:
        model = on_meta(make_spec(family, 256, 16, small=False))
        return sum(isinstance(m, AttentionBlock) for m in model.modules())

    assert attentions("channel") == 0
    assert attentions("vq") == 2 + 3 + 2


def test_a_channel_keeps_its_own_code(make_spec: MakeSpec) -> None:
    """Latents of one channel decide about one id and nothing else; for vq it is one position."""
    for family, index in (("channel", (0, 3)), ("vq", (0, slice(None), 2, 1))):
        model = build_tokenizer(make_spec(family, init="normal")).eval()
        z = torch.randn(1, 8, 4, 4, generator=torch.Generator().manual_seed(0))
        moved = z.clone()
        moved[index] = -5 * moved[index]
        changed = (model.quantize(z).ids != model.quantize(moved).ids).nonzero()
        assert changed[:, 1].tolist() == [3 if family == "channel" else 2 * 4 + 1]


def test_options_reach_the_quantizer(make_spec: MakeSpec) -> None:
    spec = make_spec("vq", l2_normalize=True, entropy_temperature=0.01, init="normal")
    quantizer = build_tokenizer(spec).quantizer
    assert isinstance(quantizer, VectorQuantizer)
    assert (quantizer.l2_normalize, quantizer.entropy_temperature) == (True, 0.01)
    assert quantizer.initialised
    samples = build_tokenizer(make_spec("channel")).quantizer
    assert isinstance(samples, VectorQuantizer) and not samples.initialised


def test_mid_attention_is_an_option(make_spec: MakeSpec) -> None:
    spec = make_spec("vq", mid_attention=False, attention_resolutions=[])
    assert not any(isinstance(m, AttentionBlock) for m in build_tokenizer(spec).modules())


def test_misfits_are_user_errors(make_spec: MakeSpec) -> None:
    spec = make_spec("vq")
    wrong = spec.model_copy(update={"options": {**spec.options, "multipliers": [1, 2]}})
    with pytest.raises(SpecError, match="2 multipliers lead from 16 px to a side of 8"):
        build_tokenizer(wrong)
    with pytest.raises(SpecError, match="init is 'kmeans'"):
        build_tokenizer(make_spec("vq", init="kmeans"))


@pytest.mark.parametrize("family", ["vq", "channel"])
def test_an_image_of_another_size_is_refused(make_spec: MakeSpec, family: str) -> None:
    model = build_tokenizer(make_spec(family))
    with pytest.raises(ValueError, match="resolution"):
        model(torch.zeros(1, 3, 32, 32))


def test_a_family_that_declares_a_need_must_take_it(make_spec: MakeSpec) -> None:
    made: Any = None  # nothing is read from it
    with pytest.raises(SpecError, match=r"needs 'codebook' and takes nothing: give it a method take"):
        on_meta(make_spec("vq", 32, 4)).take("codebook", made)
