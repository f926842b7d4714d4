"""EmaQuantizer: the averages by hand, over batches and shards, and that nothing else moves them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from vqbench.errors import SpecError
from vqbench.specs import TokenizerSpec, TokenSpec
from vqbench.tokenizers.base import build_tokenizer
from vqbench.tokenizers.quantizers.ema import EmaQuantizer

TOKENS = TokenSpec(layout="raster", grid=3, num_tokens=9, code_dim=5, num_codes=11)


def latents(seed: int, batch: int = 4) -> torch.Tensor:
    return torch.randn(batch, 5, 3, 3, generator=torch.Generator().manual_seed(seed))


def quantizer(**options: object) -> EmaQuantizer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return EmaQuantizer(TOKENS, **{"init": "normal", "decay": 0.9, **options})  # type: ignore[arg-type]


def state(module: EmaQuantizer) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in module.state_dict().items()}


def by_hand(codes: np.ndarray, batches: list[np.ndarray], decay: float, epsilon: float = 1e-5) -> np.ndarray:
    """Codes (K, d) after batches of vectors (M, d), one a step; float64, one vector at a time."""
    counts, sums = np.zeros(len(codes)), codes.copy()
    for z in batches:
        size, total = np.zeros(len(codes)), np.zeros_like(codes)
        for vector in z:
            code = ((codes - vector) ** 2).sum(1).argmin()
            size[code] += 1
            total[code] += vector
        counts = decay * counts + (1 - decay) * size
        sums = decay * sums + (1 - decay) * total
        smoothed = (counts + epsilon) / (counts.sum() + len(codes) * epsilon) * counts.sum()
        codes = sums / smoothed[:, None]
    return codes


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_the_codes_follow_their_vectors_as_by_hand(kind: torch.dtype) -> None:
    module = quantizer().to(kind)
    first = module.weight.double().numpy().copy()
    batches = [latents(seed) for seed in range(6)]
    for batch in batches:
        module(batch.to(kind))
        module.end_step()
    expected = by_hand(first, [b.permute(0, 2, 3, 1).reshape(-1, 5).double().numpy() for b in batches], 0.9)
    np.testing.assert_allclose(module.codebook().numpy(), expected, rtol=2e-5, atol=1e-6)


def test_micro_batches_and_order_change_nothing() -> None:
    whole, parts = quantizer(), quantizer()
    batch = latents(3, 6)
    whole(batch)
    for part in (batch[4:], batch[:1], batch[1:4]):
        parts(part)
    for module in (whole, parts):
        module.end_step()
    assert all(torch.equal(v, parts.state_dict()[k]) for k, v in whole.state_dict().items())
    assert whole.counts.sum() == pytest.approx(0.1 * 6 * 9)


def test_nothing_moves_in_eval_mode_without_gradients_or_within_a_step() -> None:
    module = quantizer()
    before = state(module)
    with torch.no_grad():
        module(latents(0))
    module.end_step()
    module.eval()(latents(0))
    module.end_step()
    module.train()(latents(0))  # codes stay until the step ends: all micro-batches see the same ones
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    module.end_step()
    assert not torch.equal(module.weight, before["weight"])


def test_lookup_is_exact_and_the_codebook_gets_no_gradient() -> None:
    module, z = quantizer(), latents(0).requires_grad_()
    found = module(z)
    assert torch.equal(module.lookup(found.ids), found.latents)
    assert set(found.losses) == {"commitment"} and not list(module.parameters())
    found.losses["commitment"].backward()
    assert z.grad is not None and z.grad.abs().sum() > 0


def test_a_code_that_is_never_chosen_sweeps_inwards() -> None:
    """The averages start at no vector, so its first length is 1 / epsilon times what it was; then it shrinks."""
    module = quantizer()
    with torch.no_grad():
        module.weight[0], module.sums[0] = 50.0, 50.0
    lengths = []
    for _ in range(3):
        module(torch.zeros(4, 5, 3, 3) + latents(0) * 0.01)
        module.end_step()
        lengths.append(float(module.weight[0].norm()))
    assert lengths[0] > 1e6 and lengths[0] > lengths[1] > lengths[2]


def test_averages_start_from_the_first_batch_where_the_codes_do() -> None:
    module = quantizer(init="samples")
    with torch.no_grad():
        module(latents(0))
    assert torch.equal(module.sums, module.weight) and module.initialised


@pytest.mark.parametrize("init", ["uniform", "normal"])
def test_commitment_stays_bounded_from_the_start(init: str) -> None:
    """New vectors each step, of mean square 1. Looked up by cosine, codes 1 / epsilon too long gave 3e6 in the second."""
    module = quantizer(init=init, decay=0.99)
    found = []
    for step in range(50):
        found.append(module(latents(step)).losses["commitment"].item())
        module.end_step()
    assert max(found) < 50 and max(found[10:]) < 1.5, found


def test_averages_looked_up_by_cosine_are_refused(make_spec: Callable[..., TokenizerSpec]) -> None:
    with pytest.raises(SpecError, match="codebook 'ema' cannot be looked up by cosine"):
        build_tokenizer(make_spec("vq", codebook="ema", similarity="cosine"))


def test_a_decay_that_would_do_nothing_is_refused(make_spec: Callable[..., TokenizerSpec]) -> None:
    with pytest.raises(SpecError, match="codebook_decay does nothing to a codebook 'gradient'"):
        build_tokenizer(make_spec("vq", codebook_decay=0.9))
