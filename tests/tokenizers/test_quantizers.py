"""VectorQuantizer: exact look-up, straight-through gradients, which loss moves what, its inits and the entropy term."""

from __future__ import annotations

import math

import pytest
import torch

from vqbench.errors import SpecError
from vqbench.specs import TokenSpec
from vqbench.tokenizers.quantizers.codebook import VectorQuantizer
from vqbench.tokenizers.quantizers.entropy import entropy_loss
from vqbench.tokenizers.quantizers.layouts import from_vectors, to_vectors

RASTER = TokenSpec(layout="raster", grid=3, num_tokens=9, code_dim=5, num_codes=11)
CHANNEL = TokenSpec(layout="channel", grid=3, num_tokens=5, code_dim=9, num_codes=11)
LAYOUTS = pytest.mark.parametrize("tokens", [RASTER, CHANNEL], ids=["raster", "channel"])
NORMALISED = pytest.mark.parametrize("l2_normalize", [False, True])


def latents(seed: int = 0, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 5, 3, 3, generator=torch.Generator().manual_seed(seed))


def quantizer(tokens: TokenSpec, **options: object) -> VectorQuantizer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return VectorQuantizer(tokens, **{"init": "normal", **options})  # type: ignore[arg-type]


@LAYOUTS
@NORMALISED
def test_lookup_returns_the_latents_bit_for_bit(tokens: TokenSpec, l2_normalize: bool) -> None:
    module = quantizer(tokens, l2_normalize=l2_normalize)
    found = module(latents().to(torch.bfloat16))
    assert found.ids.shape == (2, tokens.num_tokens, 1) and found.ids.dtype == torch.int64
    assert found.ids.min() >= 0 and found.ids.max() < tokens.num_codes
    assert found.latents.dtype == torch.float32
    assert torch.equal(module.lookup(found.ids), found.latents)


@LAYOUTS
@NORMALISED
def test_each_vector_gets_its_nearest_code(tokens: TokenSpec, l2_normalize: bool) -> None:
    module, z = quantizer(tokens, l2_normalize=l2_normalize), latents()
    found, codes = module(z), module.codebook().double()
    for image in range(2):
        for n in range(tokens.num_tokens):
            vector = z[image, n].flatten() if tokens is CHANNEL else z[image, :, n // 3, n % 3]
            vector = vector / vector.norm() if l2_normalize else vector
            expected = (codes - vector).square().sum(1).argmin()
            assert found.ids[image, n, 0] == expected
            got = found.latents[image, n].flatten() if tokens is CHANNEL else found.latents[image, :, n // 3, n % 3]
            assert torch.equal(got, module.codebook()[expected])
    if l2_normalize:
        assert torch.allclose(codes.norm(dim=1), torch.ones(11, dtype=torch.float64), atol=1e-6)


@LAYOUTS
def test_layouts_are_inverse(tokens: TokenSpec) -> None:
    z = latents()
    vectors = to_vectors(z, tokens)
    assert vectors.shape == (2 * tokens.num_tokens, tokens.code_dim)
    assert torch.equal(from_vectors(vectors, tokens), z)
    with pytest.raises(ValueError, match="resolution"):
        to_vectors(torch.zeros(1, 5, 4, 4), tokens)


@LAYOUTS
def test_the_gradient_passes_straight_through(tokens: TokenSpec) -> None:
    module, z = quantizer(tokens), latents().requires_grad_()
    upstream = latents(1)
    (module(z).latents * upstream).sum().backward()
    assert z.grad is not None and torch.equal(z.grad, upstream)
    assert module.weight.grad is None  # the decoder does not move the codebook


@LAYOUTS
def test_codebook_and_commitment_each_move_one_side(tokens: TokenSpec) -> None:
    module, z = quantizer(tokens), latents().requires_grad_()
    found = module(z)
    gap = z.detach() - found.latents.detach()
    for name in ("codebook", "commitment"):
        assert found.losses[name].item() == pytest.approx(gap.square().mean().item())
    found.losses["codebook"].backward(retain_graph=True)
    used = torch.zeros(11, dtype=torch.bool).index_fill_(0, found.ids.unique(), True)
    assert z.grad is None and module.weight.grad is not None
    assert torch.equal(module.weight.grad.abs().sum(1) > 0, used)
    before = module.weight.grad.clone()
    found.losses["commitment"].backward()
    assert torch.equal(module.weight.grad, before)
    assert torch.allclose(torch.as_tensor(z.grad), 2 * gap / gap.numel(), atol=1e-7)


def test_the_gradient_reaches_normalised_latents_through_their_length() -> None:
    """With l2_normalize a gradient along z must vanish: scaling z changes no code."""
    module, z = quantizer(RASTER, l2_normalize=True), latents().requires_grad_()
    (module(z).latents * latents(1)).sum().backward()
    assert z.grad is not None and z.grad.abs().max() > 0
    assert (z.grad * z).sum(1).abs().max() < 1e-5


def test_uniform_and_normal_inits() -> None:
    tokens = TokenSpec(layout="raster", grid=2, num_tokens=4, code_dim=64, num_codes=200)
    uniform = quantizer(tokens, init="uniform").weight
    assert uniform.abs().max() <= 1 / 200 < uniform.abs().max() * 1.01
    assert quantizer(tokens, init="normal").weight.std().item() == pytest.approx(1 / 8, rel=0.05)
    with pytest.raises(SpecError, match="did you mean 'samples'"):
        quantizer(tokens, init="sample")


@pytest.mark.parametrize("batch", [1, 4])  # fewer and more vectors than codes
def test_samples_init_takes_the_first_training_batch_once(batch: int) -> None:
    module = quantizer(CHANNEL, init="samples")
    before = module.weight.clone()
    module.eval()(latents(0, batch))
    assert torch.equal(module.weight, before)  # not from an evaluation batch
    z = 100 + latents(0, batch)
    found = module.train()(z)
    assert (module.weight.mean() - 100).abs() < 2
    assert len(module.weight.unique(dim=0)) == 11
    nearest = (module.weight[:, None] - z.flatten(2).flatten(0, 1)[None]).norm(dim=2).min(1).values
    assert nearest.max() < 1.5  # 3 dimensions' worth of spread lie between samples, a tenth between code and sample
    assert torch.equal(module.lookup(found.ids), found.latents)
    after = module.weight.clone()
    module(latents(2))
    assert torch.equal(module.weight, after)


def test_samples_init_survives_a_checkpoint() -> None:
    module = quantizer(CHANNEL, init="samples")
    module(latents())
    with torch.device("meta"):
        other = VectorQuantizer(CHANNEL, init="samples")
    other.to_empty(device="cpu")
    other.load_state_dict(module.state_dict())
    other(latents(5))
    assert torch.equal(other.weight, module.weight)


def test_lookup_refuses_steps_and_other_shapes() -> None:
    module = quantizer(RASTER)
    with pytest.raises(ValueError, match="steps"):
        module.lookup(torch.zeros(1, 9, 1, dtype=torch.int64), steps=1)
    with pytest.raises(ValueError, match=r"\(B, 9, 1\)"):
        module.lookup(torch.zeros(1, 5, 1, dtype=torch.int64))


def test_entropy_against_its_definition_and_across_chunks() -> None:
    rng = torch.Generator().manual_seed(0)
    z = torch.randn(40, 3, generator=rng, dtype=torch.float64).requires_grad_()
    e = torch.randn(20000, 3, generator=rng, dtype=torch.float64).requires_grad_()
    p = (-torch.cdist(z, e).square() / 0.5).softmax(1)
    expected = torch.special.entr(p).sum(1).mean() - torch.special.entr(p.mean(0)).sum()
    found = entropy_loss(z, e, 0.5, memory_mb=1)  # one vector a chunk
    assert found.item() == pytest.approx(expected.item(), abs=1e-9)
    assert -math.log(20000) < found.item() < 0
    for got, want in zip(torch.autograd.grad(found, [z, e]), torch.autograd.grad(expected, [z, e]), strict=True):
        assert torch.allclose(got, want, atol=1e-9)


def test_entropy_extremes() -> None:
    """Each vector on its own code: -log K. All on one: 0, with finite gradients."""
    e = 100 * torch.eye(8)
    assert entropy_loss(e.clone(), e, 0.01).item() == pytest.approx(-math.log(8), abs=1e-5)
    z = e[:1].repeat(5, 1).requires_grad_()
    loss = entropy_loss(z, e, 0.01)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert z.grad is not None and z.grad.isfinite().all()


def test_entropy_is_a_training_term_that_must_be_asked_for() -> None:
    module = quantizer(RASTER, entropy_temperature=0.01)
    assert set(module(latents()).losses) == {"codebook", "commitment", "entropy"}
    assert set(module.eval()(latents()).losses) == {"codebook", "commitment"}
    assert set(quantizer(RASTER)(latents()).losses) == {"codebook", "commitment"}


def test_cosine_look_up_finds_the_direction_and_keeps_the_length() -> None:
    module = quantizer(RASTER, similarity="cosine")
    with torch.no_grad():
        module.weight.mul_(torch.linspace(0.1, 10, 11)[:, None])
    z = latents()
    found = module(z)
    vectors = to_vectors(z, RASTER)
    expected = torch.nn.functional.cosine_similarity(
        vectors[:, None].double(), module.weight[None].double(), dim=2
    ).argmax(1)
    assert torch.equal(found.ids.flatten(), expected)
    assert torch.equal(found.latents, from_vectors(module.weight[expected], RASTER))
    assert not torch.equal(quantizer(RASTER)(z).ids, found.ids)
    with pytest.raises(SpecError, match="similarity is 'cosin'; did you mean 'cosine'"):
        quantizer(RASTER, similarity="cosin")


@pytest.mark.parametrize("length", [0.0, 1e-30, 1e-13])
def test_cosine_never_chooses_a_code_without_length(length: float) -> None:
    """At zero it would be nearer to a vector of length 1 than all codes whose cosine is below 0.5."""
    module = quantizer(RASTER, similarity="cosine")
    with torch.no_grad():
        module.weight[4] *= length / module.weight[4].norm()
        module.weight[[0, 1, 2, 3, *range(5, 11)]] = torch.tensor([1.0, 0, 0, 0, 0])  # the opposite of what comes
    away = torch.tensor([-1.0, 0, 0, 0, 0]).view(1, 5, 1, 1).expand(2, 5, 3, 3)
    assert (module(away).ids == 0).all() and (module(torch.zeros(2, 5, 3, 3)).ids == 0).all()
    with torch.no_grad():
        module.weight.zero_()
    assert (module(away).ids == 0).all(), "where none has a direction, the first"
