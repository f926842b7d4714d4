"""Adversarial terms of tokenizer recipes, all unweighted: the recipe's ``weights`` and DiscriminatorSpec scale them."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqbench.switches import at_least_fp32

Kind = Literal["hinge", "non-saturating"]


def generator_loss(logits_fake: Tensor, kind: Kind) -> Tensor:
    """What the tokenizer minimises, from the logits (any shape) of its reconstructions.

    ``hinge``: -mean(D); ``non-saturating``: mean softplus(-D) (Goodfellow et al. 2014).
    """
    return -logits_fake.mean() if kind == "hinge" else F.softplus(-logits_fake).mean()


def discriminator_loss(logits_real: Tensor, logits_fake: Tensor, kind: Kind) -> Tensor:
    """What the discriminator minimises, from logits of any shape.

    ``hinge``: half the sum of mean max(0, 1 - D(real)) and mean max(0, 1 + D(fake)) (CompVis/taming-transformers:
    taming/modules/losses/vqperceptual.py); ``non-saturating``: the sum, not halved, of mean softplus(-D(real)) and mean
    softplus(D(fake)) (NVlabs/stylegan2-ada-pytorch: training/loss.py).
    """
    if kind == "hinge":
        return 0.5 * (F.relu(1 - logits_real).mean() + F.relu(1 + logits_fake).mean())
    return F.softplus(-logits_real).mean() + F.softplus(logits_fake).mean()


def r1_penalty(discriminator: nn.Module, real: Tensor) -> Tensor:
    """Mean over images of the squared gradient norm at real images (B, 3, H, W) (Mescheder et al. 2018).

    Not halved: a weight of 5 here is StyleGAN2's gamma of 10. Differentiable in the discriminator's weights.
    """
    images = real.detach().requires_grad_(True)
    with torch.enable_grad():
        logits = discriminator(images)
        (gradient,) = torch.autograd.grad(at_least_fp32(logits).sum(), images, create_graph=True)  # (B, 3, H, W)
        return at_least_fp32(gradient).square().sum((1, 2, 3)).mean()


class LeCam(nn.Module):
    """LeCam regularisation (Tseng et al. 2021, Sec. 3; google/lecam-gan: third_party/lecam_loss.py).

    mean max(0, D(real) - m_fake)^2 + mean max(0, m_real - D(fake))^2, where m are moving averages of mean logits. The
    paper prints the squares without the maxima; its code and all tokenizers' have them. The averages start at zero and
    are buffers, so a resumed run goes on with them.

    Args:
        decay: of the averages, in [0, 1).
    """

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__()
        self.decay = decay
        self.mean_real = nn.Buffer(torch.zeros(()))
        self.mean_fake = nn.Buffer(torch.zeros(()))

    @torch.no_grad()
    def update(self, logits_real: Tensor, logits_fake: Tensor) -> None:
        """Move the averages towards the means of these logits (any shape). Does nothing in eval mode.

        The training loop calls it once a step, after it, with the means over all micro-batches of all processes; google's
        code calls it before each batch's term, which then sees averages that are one update younger.
        """
        if self.training:
            self.mean_real.lerp_(at_least_fp32(logits_real).mean(), 1 - self.decay)
            self.mean_fake.lerp_(at_least_fp32(logits_fake).mean(), 1 - self.decay)

    def forward(self, logits_real: Tensor, logits_fake: Tensor) -> Tensor:
        """The unweighted term for logits of any shape. It leaves the averages alone; see :meth:`update`."""
        real = F.relu(logits_real - self.mean_fake).square().mean()
        fake = F.relu(self.mean_real - logits_fake).square().mean()
        return real + fake


def adaptive_weight(reconstruction_loss: Tensor, adversarial_loss: Tensor, last_layer: Tensor) -> Tensor:
    """VQGAN's factor on the adversarial term: the ratio of both terms' gradient norms at the decoder's last layer.

    Esser et al. 2021, Eq. 7, with taming-transformers' 1e-4 beside the denominator and its limits [0, 1e4]
    (taming/modules/losses/vqperceptual.py). Both terms keep their graphs. The result is a scalar without gradient.
    """
    (reconstruction,) = torch.autograd.grad(reconstruction_loss, last_layer, retain_graph=True)
    (adversarial,) = torch.autograd.grad(adversarial_loss, last_layer, retain_graph=True)
    ratio: Tensor = reconstruction.norm() / (adversarial.norm() + 1e-4)
    return ratio.clamp(0.0, 1e4).detach()
