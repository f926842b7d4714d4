"""LDM: sizes against a published count, DDIM by hand on random weights, and what its sampler refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vqbench.errors import SpecError
from vqbench.generators import ldm
from vqbench.generators.base import build_generator
from vqbench.generators.ldm import LatentDiffusion
from vqbench.seeds import torch_rng

from .test_dit import make_spec

SIZES = {"base_channels": 32, "multipliers": [1, 2], "num_res_blocks": 1, "context": 16}
STEPS = 20


def small_model() -> LatentDiffusion:
    """Random in every weight: the last layers start at zero, and would say nothing."""
    torch.manual_seed(0)
    model = ldm.build(make_spec(ldm, **SIZES)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model


def test_the_unet_is_that_of_latent_diffusion() -> None:
    """LDM-8 of ImageNet has 395M parameters (Rombach et al. 2022, Table 10); its config is VQGAN-LC's of f 8."""
    options = {"multipliers": [1, 2, 4], "num_res_blocks": 2, "attention": [1, 2, 4]}
    with torch.device("meta"):
        model = build_generator(make_spec(ldm, grid=32, dim=4, classes=1000, **options))
    count = model.parameter_counts()["blocks"]
    assert count == pytest.approx(395e6, rel=0.005)
    assert count == sum(p.numel() for p in model.parameters()) and all(p.is_meta for p in model.parameters())


def test_the_sizes_of_the_paper_are_built_on_the_meta_device() -> None:
    """App. A prints the channels 256, 1024, 1024, 256: the level of 1024 is four times as wide as the first."""
    with torch.device("meta"):
        model = build_generator(make_spec(ldm, grid=16, dim=8, classes=1000))
        assert model.forward_flops() > 2 * model.parameter_counts()["blocks"], "a parameter works at several positions"
    widths = {module.first.out_channels for module in model.modules() if type(module).__name__ == "Residual"}
    assert widths == {256, 1024}


def by_hand(model: LatentDiffusion, labels: Tensor, rng: torch.Generator, eta: float, guidance: float) -> Tensor:
    """CompVis/latent-diffusion:ldm/models/diffusion/ddim.py (p_sample_ddim) with the schedules of its util.py, in float64."""
    betas = np.linspace(0.0015**0.5, 0.0195**0.5, 1000, dtype=np.float64) ** 2
    left = np.cumprod(1 - betas)
    times = np.arange(0, 1000, 1000 // STEPS) + 1
    now, before = left[times], np.concatenate([left[:1], left[times[:-1]]])
    deviation = eta * np.sqrt((1 - before) / (1 - now) * (1 - now / before))
    x = torch.randn(2, 3, 4, 4, generator=rng).double()
    none = torch.full_like(labels, 3)
    for n in reversed(range(STEPS)):
        time = torch.full((2,), int(times[n]))
        with torch.no_grad():
            given, free = (model.predict(x.float(), time, c).double() for c in (labels, none))
        noise = free + guidance * (given - free)
        start = (x - np.sqrt(1 - now[n]) * noise) / np.sqrt(now[n])
        x = np.sqrt(before[n]) * start + np.sqrt(1 - before[n] - deviation[n] ** 2) * noise
        if eta:
            x = x + deviation[n] * torch.randn(2, 3, 4, 4, generator=rng)
    return x.float()


@pytest.mark.parametrize(("eta", "guidance"), [(1.0, 1.4), (0.0, 1.4), (0.5, 1.0)])
def test_ddim_is_latent_diffusions(eta: float, guidance: float) -> None:
    model, labels = small_model(), torch.tensor([0, 2])
    sampler = {**ldm.SAMPLER, "steps": STEPS, "eta": eta, "guidance": guidance}
    found = model.sample(labels, torch_rng(1), sampler)
    expected = by_hand(model, labels, torch_rng(1), eta, guidance)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps is 0; it must be at least 1 and below 1000"),
        ({"steps": 1000}, "steps is 1000; it must be at least 1 and below 1000"),
        ({"eta": -0.1}, r"eta is -0.1; it must be in \[0, 1\]"),
        ({"eta": 1.5}, r"eta is 1.5; it must be in \[0, 1\]"),
        ({"guidance": 0.5}, "guidance is 0.5"),
        ({"guided_channels": 4}, "the latents have 3"),
    ],
)
def test_sampler_options_out_of_range_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        small_model().sample(torch.tensor([0]), torch_rng(0), {**ldm.SAMPLER, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [({"base_channels": 40}, "no multiple of 32"), ({"multipliers": [1, 2, 2, 2]}, "4 levels do not divide")],
)
def test_sizes_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        ldm.build(make_spec(ldm, **{**SIZES, **change}))
