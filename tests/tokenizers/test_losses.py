"""Adversarial losses against their formulas, computed by hand or in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from vqbench.tokenizers.losses.adversarial import (
    LeCam,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    r1_penalty,
)
from vqbench.tokenizers.networks.stylegan2 import StyleGAN2Discriminator

REAL, FAKE = torch.tensor([0.5, 3.0]), torch.tensor([-2.0, 1.0])


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def test_hinge() -> None:
    assert generator_loss(FAKE, "hinge").item() == pytest.approx(0.5)
    assert discriminator_loss(REAL, FAKE, "hinge").item() == pytest.approx(0.5 * (0.5 / 2 + 2 / 2))


def test_non_saturating() -> None:
    assert generator_loss(FAKE, "non-saturating").item() == pytest.approx((softplus(2) + softplus(-1)) / 2)
    expected = (softplus(-0.5) + softplus(-3)) / 2 + (softplus(-2) + softplus(1)) / 2
    assert discriminator_loss(REAL, FAKE, "non-saturating").item() == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["hinge", "non-saturating"])
def test_the_two_players_disagree(kind: str) -> None:
    fake = FAKE.clone().requires_grad_()
    (up,) = torch.autograd.grad(generator_loss(fake, kind), fake)  # type: ignore[arg-type]
    (down,) = torch.autograd.grad(discriminator_loss(REAL, fake, kind), fake)  # type: ignore[arg-type]
    assert (up < 0).all() and (down >= 0).all() and down.sum() > 0


class Quadratic(nn.Module):
    """D(x) = a |x|^2 / 2, so that the gradient is a x and R1 is a^2 |x|^2."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(3.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a * x.square().sum((1, 2, 3), keepdim=True) / 2


def test_r1_in_closed_form_and_its_gradient() -> None:
    model, x = Quadratic(), torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    penalty, squared = r1_penalty(model, x), x.square().sum().item() / 4
    assert penalty.item() == pytest.approx(9 * squared, rel=1e-5)
    penalty.backward()
    assert model.a.grad is not None and model.a.grad.item() == pytest.approx(6 * squared, rel=1e-5)
    assert x.grad is None


def test_r1_differentiates_stylegan2_twice() -> None:
    model = StyleGAN2Discriminator(8, base_channels=4)
    r1_penalty(model, torch.rand(4, 3, 8, 8)).backward()
    assert model.from_rgb.weight.grad is not None and model.from_rgb.weight.grad.abs().sum() > 0


def test_lecam_against_hand_computation() -> None:
    lecam = LeCam(decay=0.75)
    lecam.update(REAL, FAKE)  # means 1.75 and -0.5
    assert (lecam.mean_real.item(), lecam.mean_fake.item()) == (0.4375, -0.125)
    real = (0.625**2 + 3.125**2) / 2  # 0.5 and 3 over -0.125
    fake = (2.4375**2 + 0) / 2  # 0.4375 over -2; 1 is beyond it
    assert lecam(REAL, FAKE).item() == pytest.approx(real + fake)
    lecam.update(REAL, FAKE)
    assert lecam.mean_real.item() == pytest.approx(0.4375 * 0.75 + 1.75 * 0.25)


def test_lecam_moves_in_training_only_and_survives_a_checkpoint() -> None:
    lecam, fake = LeCam(), FAKE.clone().requires_grad_()
    before = lecam.mean_real.clone()
    lecam(REAL, fake)
    lecam.eval().update(REAL, fake)
    assert torch.equal(lecam.mean_real, before)
    lecam.train().update(REAL, fake)
    assert not lecam.mean_fake.requires_grad and lecam.mean_real != before
    other = LeCam()
    other.load_state_dict(lecam.state_dict())
    assert torch.equal(other.mean_fake, lecam.mean_fake)


def test_adaptive_weight_is_the_ratio_of_gradient_norms() -> None:
    layer = nn.Parameter(torch.tensor([3.0, 4.0]))
    reconstruction, adversarial = layer.square().sum(), (layer * torch.tensor([0.0, 2.0])).sum()
    weight = adaptive_weight(reconstruction, adversarial, layer)  # |(6, 8)| / |(0, 2)|
    assert weight.item() == pytest.approx(10 / (2 + 1e-4), rel=1e-6)
    assert not weight.requires_grad
    (reconstruction + weight * adversarial).backward()  # both graphs are still there
    assert layer.grad is not None


def test_adaptive_weight_is_limited() -> None:
    layer = nn.Parameter(torch.tensor([3.0]))
    assert adaptive_weight(1e6 * layer.sum(), 0 * layer.sum(), layer).item() == 1e4
