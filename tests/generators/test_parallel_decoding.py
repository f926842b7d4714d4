"""Masked generation's random choices: masks, the unmasking schedule, guidance, draws and confidence noise."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vqbench.generators.networks.parallel_decoding import (
    draw,
    draw_mask,
    guidance_at,
    guide,
    gumbel_like,
    masked_counts,
)
from vqbench.seeds import torch_rng


@given(n=st.integers(1, 600), steps=st.integers(1, 700))
def test_schedule_always_finishes_and_never_masks_more(n: int, steps: int) -> None:
    counts = masked_counts(n, steps)
    assert len(counts) == steps and counts[-1] == 0
    assert all(0 < now <= before for before, now in zip([n, *counts], counts[:-1], strict=False))
    if steps <= n:
        assert all(now < before for before, now in zip([n, *counts], counts, strict=False))
        ideal = [math.floor(n * math.cos(math.pi / 2 * (i + 1) / steps)) for i in range(steps - 1)]
        assert all(c <= max(1, i) for c, i in zip(counts, ideal, strict=False))


def test_schedule_of_ten_steps_over_256_ids() -> None:
    assert masked_counts(256, 10) == [252, 243, 228, 207, 181, 150, 116, 79, 40, 0]


@settings(deadline=None)
@given(batch=st.integers(1, 5), n=st.integers(1, 300), seed=st.integers(0, 2**31))
def test_training_masks_have_at_least_one_id(batch: int, n: int, seed: int) -> None:
    masked = draw_mask(batch, n, torch_rng(seed))
    assert masked.shape == (batch, n) and masked.dtype == torch.bool
    assert masked.sum(dim=1).min() >= 1


def test_training_masks_follow_the_cosine() -> None:
    masked = draw_mask(4000, 64, torch_rng(0))
    ratio = masked.float().mean(dim=1)
    assert ratio.mean() == pytest.approx(2 / math.pi, abs=0.02)  # E cos(pi/2 u)
    assert (ratio < 0.5).float().mean() == pytest.approx(1 / 3, abs=0.03)  # cos(pi/2 u) < 1/2 for u > 2/3
    assert masked.float().mean(dim=0).std() < 0.02  # no position is favoured


def test_guidance_is_equation_4() -> None:
    conditional, free = torch.randn(2, 5, 7, generator=torch_rng(0))
    both = torch.stack([conditional, free])
    torch.testing.assert_close(guide(both, 1.0), conditional)
    torch.testing.assert_close(guide(both, 0.0), free)
    torch.testing.assert_close(guide(both, 2.5), free + 2.5 * (conditional - free))
    assert torch.equal(guide(both[:1], 9.0), conditional)
    assert [guidance_at(i, 5, 3.0, "linear") for i in range(5)] == [1.0, 1.5, 2.0, 2.5, 3.0]
    assert {guidance_at(i, 5, 3.0, "constant") for i in range(5)} == {3.0} == {guidance_at(0, 1, 3.0, "linear")}


def test_draw_follows_the_tempered_distribution() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0]).expand(20000, 3)
    for temperature in (0.5, 1.0, 2.0):
        ids, log_probs = draw(logits, temperature, torch_rng(0))
        share = ids.bincount(minlength=3) / 20000
        torch.testing.assert_close(share, (logits[0] / temperature).softmax(0), atol=0.015, rtol=0)
        torch.testing.assert_close(log_probs, logits[0].log_softmax(0)[ids])
    assert (draw(logits, 0, torch_rng(0))[0] == 2).all()


def test_gumbel_noise_is_standard() -> None:
    noise = gumbel_like(torch.empty(200, 200), torch_rng(0))
    assert noise.mean() == pytest.approx(0.5772, abs=0.03)  # Euler's constant
    assert noise.var() == pytest.approx(math.pi**2 / 6, abs=0.06)
    assert noise.isfinite().all()
