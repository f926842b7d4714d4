"""What every tokenizer family holds, whatever it is: run over each file of the room that declares OPTIONS.

A new family is covered without an entry here; options that it shares with others are made small by name.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vqbench.resolve import Overlay, resolve_tokenizer
from vqbench.rooms import families, family_literals
from vqbench.specs import DatasetSpec, TokenizerSpec
from vqbench.tokenizers.base import Tokenizer, build_tokenizer

SMALL = {"num_codes": 32, "num_tokens": 8, "code_dim": 8, "latent_channels": 8, "base_channels": 8,
         "multipliers": [1, 2, 2], "num_res_blocks": 1, "attention_resolutions": [4]}  # fmt: skip
RECIPE = {"steps": 10, "batch_size": 4, "optimizer": {"name": "adam", "lr": 1e-3, "betas": (0.9, 0.99)}}


def resolve(family: str, resolution: int, downsample: int, replaced: dict[str, Any], seed: int = 0) -> TokenizerSpec:
    data = DatasetSpec(kind="embedded", resolution=resolution, classes=2, sizes={"train": 8})
    overlay = Overlay({"protocol": "p", "roles": {"perceptual": "none"}, "tokenizers": {"set": replaced}}, "test")
    entry = {"family": family, "dataset": "images", "recipe": "r/paper", "downsample": downsample, "seed": seed}
    return resolve_tokenizer(entry, {"images": data}, {"r/paper": RECIPE}, overlay, "test")


# Options of a family that make another quantizer of it.
VARIANTS = [("vq", {"codebook": "ema"}), ("vq", {"similarity": "cosine"}), ("vq", {"l2_normalize": True}),
            ("large_codebook", {"projector": False, "codebook_dim": 8}), ("large_codebook", {"trainable": True})]  # fmt: skip


@pytest.fixture(params=families("tokenizers"))
def spec(request: pytest.FixtureRequest) -> TokenizerSpec:
    return resolve(request.param, 16, 4, SMALL)


@pytest.fixture
def images() -> torch.Tensor:
    """(4, 3, 16, 16) in [-1, 1]: smooth, so that a small model can learn them."""
    rng = torch.Generator().manual_seed(0)
    coarse = torch.rand(4, 3, 4, 4, generator=rng) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=16, mode="bilinear", align_corners=False)


def total(model: Tokenizer, images: torch.Tensor) -> torch.Tensor:
    losses = model.losses(images, model(images), step=0)
    return losses["l2"] + sum(losses[k] for k in losses if k in ("codebook", "commitment"))


def train(model: Tokenizer, images: torch.Tensor, steps: int) -> list[float]:
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    history = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = total(model.train(), images)
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    return history


def test_there_are_families() -> None:
    assert {"vq", "channel"} <= set(families("tokenizers"))


def test_literals_are_readable_without_importing(spec: TokenizerSpec) -> None:
    found = family_literals("tokenizers", spec.family, "test")
    assert found["LAYOUT"] in ("raster", "channel", "multiscale")
    assert set(spec.options) == set(found["OPTIONS"])


def test_ids_have_the_shape_and_range_of_the_token_spec(spec: TokenizerSpec, images: torch.Tensor) -> None:
    model, tokens = build_tokenizer(spec).eval(), spec.tokens
    quantized = model.quantize(model.encode(images))
    assert model.tokens == tokens
    assert quantized.ids.shape == (4, tokens.num_tokens, tokens.num_slots)
    assert quantized.ids.dtype == torch.int64
    assert quantized.ids.min() >= 0 and quantized.ids.max() < tokens.num_codes
    assert model.quantizer.codebook().shape == (tokens.num_codes, tokens.code_dim)
    assert quantized.latents.shape[2:] == (tokens.grid, tokens.grid)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_lookup_is_exact(spec: TokenizerSpec, images: torch.Tensor, precision: str) -> None:
    """In training and in evaluation, under autocast too: ids stand for exactly what was decoded."""
    assert_lookup_is_exact(build_tokenizer(spec), images, precision)


def assert_lookup_is_exact(model: Tokenizer, images: torch.Tensor, precision: str) -> None:
    for mode in (model.train(), model.eval()):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            quantized = mode.quantize(mode.encode(images))
            assert torch.equal(mode.quantizer.lookup(quantized.ids), quantized.latents)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("family", "options"), VARIANTS)
def test_lookup_is_exact_for_every_variant(
    family: str, options: dict[str, Any], images: torch.Tensor, precision: str
) -> None:
    """At the start, and with a codebook that three steps have moved."""
    spec = resolve(family, 16, 4, {**SMALL, **options})
    assert options.items() <= spec.options.items()
    model = build_tokenizer(spec)
    assert_lookup_is_exact(model, images, precision)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    before = model.quantizer.codebook().clone()
    for _ in range(3):
        optimizer.zero_grad()
        total(model.train(), images).backward()
        optimizer.step()
        model.end_step()
    moves = options.get("projector", True)  # a static codebook without a projector stays
    assert torch.equal(model.quantizer.codebook(), before) != moves
    assert_lookup_is_exact(model, images, precision)


def test_decoding_ids_is_reconstructing(spec: TokenizerSpec, images: torch.Tensor) -> None:
    model = build_tokenizer(spec).eval()
    output = model(images)
    assert output.images.shape == images.shape
    assert torch.equal(model.decode_ids(output.quantized.ids), output.images)


def test_evaluation_repeats_itself_and_images_do_not_mix(spec: TokenizerSpec, images: torch.Tensor) -> None:
    model = build_tokenizer(spec).eval()
    ids, state = model(images).quantized.ids, {k: v.clone() for k, v in model.state_dict().items()}
    assert torch.equal(model(images).quantized.ids, ids)
    assert torch.equal(torch.cat([model(one[None]).quantized.ids for one in images]), ids)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_losses_are_finite_scalars_and_reach_all_weights(spec: TokenizerSpec, images: torch.Tensor) -> None:
    model = build_tokenizer(spec).train()
    losses = model.losses(images, model(images), step=0)
    assert {"l1", "l2"} <= set(losses)
    assert all(v.ndim == 0 and v.isfinite() for v in losses.values())
    sum(losses.values()).backward()  # type: ignore[union-attr]
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing


def test_the_pixels_alone_reach_encoder_and_last_layer(spec: TokenizerSpec, images: torch.Tensor) -> None:
    model = build_tokenizer(spec).train()
    latents = model.encode(images)
    loss = (model.decode(model.quantize(latents).latents) - images).square().mean()
    grads = torch.autograd.grad(loss, [latents, model.last_layer])
    assert all(g.abs().sum() > 0 for g in grads)
    assert any(p is model.last_layer for p in model.parameters())


def test_training_lowers_the_loss_and_repeats_itself(spec: TokenizerSpec, images: torch.Tensor) -> None:
    first = train(build_tokenizer(spec), images, 25)
    assert first[-1] < 0.8 * first[0]
    assert train(build_tokenizer(spec), images, 3) == first[:3]


def test_one_small_step_goes_downhill(spec: TokenizerSpec, images: torch.Tensor) -> None:
    """The step is along the straight-through gradient of the decoder, which is exact."""
    model = build_tokenizer(spec).train()
    model(images)  # codebooks that start from data do so now
    before = total(model, images)
    grad = torch.autograd.grad(before, model.last_layer)[0]
    with torch.no_grad():
        model.last_layer.sub_(1e-2 * grad)
        assert total(model, images) < before


def test_all_state_is_saved(spec: TokenizerSpec, images: torch.Tensor) -> None:
    """A model built on the meta device, as trained ones are opened, is complete once weights are loaded."""
    model = build_tokenizer(spec)
    train(model, images, 2)
    with torch.device("meta"):
        opened = build_tokenizer(spec)
    opened.to_empty(device="cpu")
    for tensor in [*opened.parameters(), *opened.buffers()]:
        tensor.data.fill_(1 if tensor.dtype == torch.bool else torch.nan)
    opened.load_state_dict(model.state_dict())
    assert torch.equal(opened.eval()(images).images, model.eval()(images).images)
    assert opened.train().state_dict().keys() == model.state_dict().keys()


def test_weights_follow_from_the_seed_alone(spec: TokenizerSpec) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = build_tokenizer(spec).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = (build_tokenizer(s).state_dict() for s in (spec, spec.model_copy(update={"seed": 1})))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


@pytest.mark.parametrize("family", families("tokenizers"))
def test_the_defaults_are_of_paper_scale(family: str) -> None:
    """256 px, f 16, a map of 16 x 16; on the meta device, without memory."""
    spec = resolve(family, 256, 16, {})
    with torch.device("meta"):
        model = build_tokenizer(spec)
        latents = model.encode(torch.empty(1, 3, 256, 256))
        assert model.decode(latents).shape == (1, 3, 256, 256)
    assert spec.tokens.grid == 16
    assert model.quantizer.codebook().shape == (spec.tokens.num_codes, spec.tokens.code_dim)
