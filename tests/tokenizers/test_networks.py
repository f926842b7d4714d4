"""Shapes, structure and gradients of the encoder, decoder and discriminators."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vqbench.errors import SpecError
from vqbench.specs import DiscriminatorSpec, OptimizerSpec
from vqbench.tokenizers.networks.conv import AttentionBlock, Decoder, Downsample, Encoder, ResidualBlock, Upsample
from vqbench.tokenizers.networks.discriminators import PatchGAN, build_discriminator
from vqbench.tokenizers.networks.stylegan2 import Blur, EqualisedConv2d, MinibatchStd, StyleGAN2Discriminator

SMALL: dict[str, Any] = {"resolution": 16, "base_channels": 8, "multipliers": (1, 2, 3), "num_res_blocks": 1,
                         "attention_resolutions": (8,), "mid_attention": True, "latent_channels": 5}  # fmt: skip


def images(batch: int = 2, side: int = 16) -> torch.Tensor:
    return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def count(module: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(m, kind) for m in module.modules())


def discriminator(name: str, **options: Any) -> DiscriminatorSpec:
    optimizer = OptimizerSpec(name="adam", lr=1e-3, betas=(0.0, 0.99))
    return DiscriminatorSpec(name=name, loss="hinge", start_step=0, optimizer=optimizer, **options)


def test_encoder_and_decoder_shapes_and_blocks() -> None:
    encoder, decoder = Encoder(**SMALL), Decoder(**SMALL)
    latents = encoder(images())
    assert latents.shape == (2, 5, 4, 4)
    assert decoder(latents).shape == (2, 3, 16, 16)
    assert (count(encoder, Downsample), count(decoder, Upsample)) == (2, 2)
    assert (count(encoder, ResidualBlock), count(decoder, ResidualBlock)) == (3 + 2, 6 + 2)
    assert (count(encoder, AttentionBlock), count(decoder, AttentionBlock)) == (1 + 1, 2 + 1)


def test_attention_can_be_left_out() -> None:
    bare = {**SMALL, "attention_resolutions": (), "mid_attention": False}
    assert count(Encoder(**bare), AttentionBlock) == count(Decoder(**bare), AttentionBlock) == 0


def test_attention_against_its_formula() -> None:
    block, x = AttentionBlock(8), torch.randn(2, 8, 3, 4)
    q, k, v = block.qkv(block.norm(x)).flatten(2).chunk(3, dim=1)  # (B, C, h*w)
    weights = (q.transpose(1, 2) @ k / math.sqrt(8)).softmax(-1)  # (B, query, key)
    expected = x + block.out((v @ weights.transpose(1, 2)).view(x.shape))
    assert torch.allclose(block(x), expected, atol=1e-5)


def test_downsample_pads_right_and_below_only() -> None:
    layer = Downsample(1)
    for parameter, value in zip(layer.conv.parameters(), (1.0, 0.0), strict=True):  # weight, bias
        parameter.data.fill_(value)
    assert layer(torch.ones(1, 1, 4, 4))[0, 0].tolist() == [[9, 6], [6, 4]]


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_patchgan_gives_a_map_of_logits(layers: int) -> None:
    spec = discriminator("patchgan", base_channels=8, num_layers=layers)
    model, x = build_discriminator(spec, 32), images(2, 32).requires_grad_()
    logits = model(x)
    side = 32 // 2**layers - 2
    assert logits.shape == (2, 1, side, side)
    logits.sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    with pytest.raises(SpecError, match="fewer layers"):
        build_discriminator(spec, 2**layers * 3 - 1)
    assert build_discriminator(spec, 2**layers * 3)(images(2, 2**layers * 3)).shape == (2, 1, 1, 1)


def test_patchgan_at_paper_scale_is_tamings() -> None:
    model = PatchGAN()
    assert sum(p.numel() for p in model.parameters()) == 2_765_633
    assert next(model.parameters()).std().item() == pytest.approx(0.02, rel=0.05)
    assert torch.equal(model(images(2, 32)), model.eval()(images(2, 32)))


@pytest.mark.parametrize("resolution", [8, 32])
def test_stylegan2_gives_one_logit(resolution: int) -> None:
    model = build_discriminator(discriminator("stylegan2", base_channels=4), resolution)
    x = images(4, resolution).requires_grad_()
    logits = model(x)
    assert logits.shape == (4, 1)
    logits.sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_stylegan2_widths_at_paper_scale() -> None:
    """As many parameters as stylegan2-ada-pytorch prints for its paper256 configuration."""
    with torch.device("meta"):
        model = StyleGAN2Discriminator(256, base_channels=64)
    widths = [p.shape[0] for name, p in model.named_parameters() if name.endswith("conv1.weight")]
    assert widths == [128, 256, 512, 512, 512, 512]
    assert sum(p.numel() for p in model.parameters()) == 24_001_089
    for wrong in (4, 48):
        with pytest.raises(SpecError, match="resolution"):
            StyleGAN2Discriminator(wrong)


def test_stylegan2_stays_in_float32_under_autocast() -> None:
    model = StyleGAN2Discriminator(8, base_channels=4)
    expected = model(images(4, 8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model(images(4, 8)), expected)


def test_equalised_layers_keep_unit_variance() -> None:
    rng = torch.Generator().manual_seed(0)
    layer = EqualisedConv2d(64, 64, 3)
    out = layer(torch.randn(4, 64, 8, 8, generator=rng))[:, :, 1:-1, 1:-1]
    assert out.std().item() == pytest.approx(1, rel=0.15)


def test_blur_is_the_binomial_filter_and_halving_keeps_flat_maps() -> None:
    impulse = torch.zeros(1, 1, 9, 9)
    impulse[0, 0, 4, 4] = 64.0
    row = Blur()(impulse, 0)[0, 0].amax(0)
    assert row[row > 0].tolist() == [3, 9, 9, 3]
    layer = EqualisedConv2d(1, 1, 1, down=2, bias=False)
    layer.weight.data.fill_(1.0)
    assert torch.allclose(layer(torch.ones(1, 1, 16, 16))[0, 0, 1:-1, 1:-1], torch.ones(6, 6))
    ramp = torch.arange(16.0).expand(1, 1, 16, 16)  # a symmetric filter halves a ramp between two pixels
    assert torch.allclose(layer(ramp)[0, 0, 3, 1:-1], torch.arange(2.5, 14, 2))


@pytest.mark.parametrize(("batch", "size"), [(1, 1), (2, 2), (5, 1), (6, 3), (8, 4)])
def test_minibatch_std_of_groups(batch: int, size: int) -> None:
    x = torch.randn(batch, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    out = MinibatchStd(4)(x)
    assert out.shape == (batch, 4, 2, 2) and torch.equal(out[:, :3], x)
    for image in range(batch):
        group = x[image % (batch // size) :: batch // size]
        assert len(group) == size
        expected = (group.var(0, correction=0) + 1e-8).sqrt().mean()
        assert torch.allclose(out[image, 3], expected)


def test_discriminators_follow_from_their_seed() -> None:
    spec = discriminator("patchgan", base_channels=8)
    torch.manual_seed(1)
    first, state = build_discriminator(spec, 32, seed=3), torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)  # nothing was drawn from the global generator
    again, other = build_discriminator(spec, 32, seed=3), build_discriminator(spec, 32, seed=4)
    same = [torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)]
    assert all(same)
    x = F.interpolate(images(), size=32)
    assert not torch.equal(first(x), other(x))
