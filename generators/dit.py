"""DiT: a transformer that removes noise from latents (Peebles and Xie 2023; VQGAN-LC App. A; facebookresearch/DiT).

It learns the encoder's outputs before quantization; its samples are quantized, then decoded. Noise and variance are
predicted; the variance learns from the variational bound, in which the noise is held fixed. Sampling is DDPM's.

Letters: B images, C channels, h w the latent map.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from vqbench.errors import SpecError
from vqbench.generators.networks.dit import DiT
from vqbench.generators.networks.guided import check_guidance
from vqbench.generators.networks.latents import LatentGenerator
from vqbench.generators.networks.noising import noise_of, noised, sampler_of, variational_bound
from vqbench.specs import GeneratorSpec
from vqbench.switches import at_least_fp32

READS = "latents"
TERMS = ("mse", "vb")

# DiT-XL/2: VQGAN-LC App. A. timesteps: facebookresearch/DiT:diffusion/__init__.py. scale: see Scale.
OPTIONS = {"layers": 28, "width": 1152, "heads": 16, "mlp_ratio": 4, "patch": 2, "timesteps": 1000, "scale": "std"}

# guidance: VQGAN-LC App. A. steps: facebookresearch/DiT:sample.py. guided_channels: 0 is all; the released code guides 3.
SAMPLER = {"steps": 250, "guidance": 8.0, "guided_channels": 0}

# facebookresearch/DiT:diffusion/gaussian_diffusion.py (get_named_beta_schedule, "linear").
SCHEDULE = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}

ACCEPTS = {"layout": {"values": ["raster", "channel"], "why": "latents of several scales are no one map"}}


class DiffusionTransformer(LatentGenerator):
    """The model.

    Args:
        spec: sizes in ``options`` (see :data:`OPTIONS`); ``training.class_drop`` is the probability that a class is
            replaced by none.

    Raises:
        SpecError: sizes do not fit each other.
    """

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__(spec)
        option, self.timesteps = spec.options, spec.options["timesteps"]
        self.network = DiT(
            channels=self.channels, side=self.side, outputs=2 * self.channels, num_classes=spec.num_classes,
            **{k: option[k] for k in ("layers", "width", "heads", "mlp_ratio", "patch")},
        )  # fmt: skip

    def predict(self, latents: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        found: Tensor = self.network(latents, time, condition)
        return found

    def losses(self, tokens: Tensor, condition: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """``mse`` of the predicted noise; ``vb``, the variational bound in bits a dimension, which trains the variance.

        Args:
            tokens: latents (B, C, h, w).
            condition: (B,) int64 class labels in [0, num_classes).
            rng: on any device.
        """
        table = noise_of(self.timesteps, *SCHEDULE.values())
        start, place = self.scale(tokens), tokens.device
        time = torch.randint(self.timesteps, (len(start),), generator=rng, device=rng.device).to(place)
        noise, classes = self.drawn(start.shape, condition, rng)
        now = noised(table, start, noise, time)
        found = at_least_fp32(self.predict(now, time, classes))
        guess, share = found.chunk(2, dim=1)  # 2 x (B, C, h, w)
        return {
            "mse": (guess - noise).square().mean(),
            "vb": variational_bound(table, start, now, time, guess.detach(), share),
        }

    def check_sampler(self, sampler: dict[str, Any]) -> None:
        check_guidance(sampler, self.channels)
        if not 1 <= sampler["steps"] <= self.timesteps:
            raise SpecError(f"sampler: steps is {sampler['steps']}; it must be between 1 and {self.timesteps}")

    @torch.no_grad()
    def sample(self, condition: Tensor, rng: torch.Generator, sampler: dict[str, Any]) -> Tensor:
        """DDPM with the learned variance. All noise comes from `rng`, which lives on the model's device.

        Args:
            condition: (B,) int64 class labels.
            sampler: all keys of :data:`SAMPLER`.

        Returns:
            latents (B, C, h, w) in the encoder's scale.

        Raises:
            SpecError: a sampler option is out of its range.
        """
        self.check_sampler(sampler)
        schedule = {"num_train_timesteps": self.timesteps, "variance_type": "learned_range", **SCHEDULE}
        scheduler = sampler_of(DDPMScheduler, schedule, sampler["steps"], condition.device)
        x, network = self.start(condition, rng, sampler)
        for time in scheduler.timesteps:
            x = scheduler.step(network(x, time), time, x, generator=rng).prev_sample
        return self.scale.undo(x)


def build(spec: GeneratorSpec) -> DiffusionTransformer:
    """The untrained model; runs on the meta device too."""
    return DiffusionTransformer(spec)
