"""Latent diffusion: a UNet that removes noise from latents (Rombach et al. 2022; VQGAN-LC App. A).

It learns the encoder's outputs before quantization; its samples are quantized, then decoded. The class is a token that
attention reads (zh460045050/VQGAN-LC:ldm-lc/configs/imagenet-f16-vqgan-lc-100K.yaml). Sampling is DDIM's.

Letters: B images, C channels, h w the latent map.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from vqbench.errors import SpecError
from vqbench.generators.networks.guided import check_guidance
from vqbench.generators.networks.latents import LatentGenerator
from vqbench.generators.networks.noising import noise_of, noised, sampler_of
from vqbench.generators.networks.unet import UNet
from vqbench.specs import GeneratorSpec
from vqbench.switches import at_least_fp32

READS = "latents"
TERMS = ("mse",)

# Channels 256, 1024, 1024, 256 and attention at each level: VQGAN-LC App. A. The rest is its config's (see above), where
# attention stands at the first level alone.
OPTIONS = {"base_channels": 256, "multipliers": [1, 4], "num_res_blocks": 3, "attention": [1, 2], "context": 512,
           "timesteps": 1000, "scale": "std"}  # fmt: skip

# guidance: VQGAN-LC App. A; its code samples with 1.6 at f 16, in 200 steps with eta 1.
SAMPLER = {"steps": 200, "eta": 1.0, "guidance": 1.4, "guided_channels": 0}

# linear_start and linear_end of the config; CompVis/latent-diffusion's "linear" is a line between the betas' roots.
SCHEDULE = {"beta_start": 0.0015, "beta_end": 0.0195, "beta_schedule": "scaled_linear"}

ACCEPTS = {"layout": {"values": ["raster", "channel"], "why": "latents of several scales are no one map"}}


class LatentDiffusion(LatentGenerator):
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
        self.classes = nn.Embedding(spec.num_classes + 1, option["context"])
        self.unet = UNet(
            channels=self.channels, side=self.side, base=option["base_channels"], multipliers=tuple(option["multipliers"]),
            blocks=option["num_res_blocks"], attention=tuple(option["attention"]), context=option["context"],
        )  # fmt: skip

    def predict(self, latents: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        found: Tensor = self.unet(latents, time, self.classes(condition)[:, None])
        return found

    def losses(self, tokens: Tensor, condition: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """``mse`` of the predicted noise.

        Args:
            tokens: latents (B, C, h, w).
            condition: (B,) int64 class labels in [0, num_classes).
            rng: on any device.
        """
        start, place = self.scale(tokens), tokens.device
        time = torch.randint(self.timesteps, (len(start),), generator=rng, device=rng.device).to(place)
        noise, classes = self.drawn(start.shape, condition, rng)
        found = self.predict(noised(noise_of(self.timesteps, *SCHEDULE.values()), start, noise, time), time, classes)
        return {"mse": (at_least_fp32(found) - noise).square().mean()}

    def check_sampler(self, sampler: dict[str, Any]) -> None:
        check_guidance(sampler, self.channels)
        if not 1 <= sampler["steps"] < self.timesteps:
            raise SpecError(f"sampler: steps is {sampler['steps']}; it must be at least 1 and below {self.timesteps}")
        if not 0 <= sampler["eta"] <= 1:
            raise SpecError(f"sampler: eta is {sampler['eta']}; it must be in [0, 1]")

    @torch.no_grad()
    def sample(self, condition: Tensor, rng: torch.Generator, sampler: dict[str, Any]) -> Tensor:
        """DDIM. All noise comes from `rng`, which lives on the model's device.

        Args:
            condition: (B,) int64 class labels.
            sampler: all keys of :data:`SAMPLER`. ``eta`` 0 adds no noise on the way, 1 as much as DDPM.

        Returns:
            latents (B, C, h, w) in the encoder's scale.

        Raises:
            SpecError: a sampler option is out of its range.
        """
        self.check_sampler(sampler)
        # CompVis/latent-diffusion:ldm/models/diffusion/ddim.py and util.py: every so many steps from 1 on, and the last
        # goes to the first step's share of noise, not to none
        schedule = {"num_train_timesteps": self.timesteps, "set_alpha_to_one": False, "steps_offset": 1,
                    "timestep_spacing": "leading", **SCHEDULE}  # fmt: skip
        scheduler = sampler_of(DDIMScheduler, schedule, sampler["steps"], condition.device)
        x, network = self.start(condition, rng, sampler)
        for time in scheduler.timesteps:
            x = scheduler.step(network(x, time), time, x, eta=sampler["eta"], generator=rng).prev_sample
        return self.scale.undo(x)


def build(spec: GeneratorSpec) -> LatentDiffusion:
    """The untrained model; runs on the meta device too."""
    return LatentDiffusion(spec)
