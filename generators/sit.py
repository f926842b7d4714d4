"""SiT: DiT's transformer that learns a velocity from noise to latents (Ma et al. 2024; VQGAN-LC App. A; willisma/SiT).

The path is a line, x_t = (1 - t) e + t x with noise e and latents x; the network predicts x - e. Samples follow the
velocity (dopri5, ``ode``) or the reverse equation with noise (Euler-Maruyama, ``sde``), then are quantized and decoded.

Letters: B images, C channels, h w the latent map.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vqbench.errors import Diverged, SpecError, nearest
from vqbench.generators.networks.dit import DiT
from vqbench.generators.networks.guided import check_guidance
from vqbench.generators.networks.latents import LatentGenerator
from vqbench.specs import GeneratorSpec
from vqbench.switches import at_least_fp32

with torch.device("cpu"):  # it makes its tables at import, and a caller may be counting on the meta device
    from torchdiffeq import odeint

READS = "latents"
TERMS = ("velocity",)

# SiT-XL/2 mirrors DiT-XL/2: VQGAN-LC App. A. scale: see Scale.
OPTIONS = {"layers": 28, "width": 1152, "heads": 16, "mlp_ratio": 4, "patch": 2, "scale": "std"}

# guidance: VQGAN-LC App. A. The rest: willisma/SiT:train_utils.py (steps 250 and last_step 0.04 of the SDE, tolerances of
# the ODE, which chooses its own steps). guided_channels: 0 is all; the released code guides 3.
SAMPLER = {
    "method": "ode",
    "steps": 250,
    "last_step": 0.04,
    "rtol": 1e-3,
    "atol": 1e-6,
    "guidance": 8.0,
    "guided_channels": 0,
}

METHODS = ("ode", "sde")

ACCEPTS = {"layout": {"values": ["raster", "channel"], "why": "latents of several scales are no one map"}}


class FlowTransformer(LatentGenerator):
    """The model.

    Args:
        spec: sizes in ``options`` (see :data:`OPTIONS`); ``training.class_drop`` is the probability that a class is
            replaced by none.

    Raises:
        SpecError: sizes do not fit each other.
    """

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__(spec)
        option = spec.options
        self.network = DiT(
            channels=self.channels, side=self.side, outputs=self.channels, num_classes=spec.num_classes,
            **{k: option[k] for k in ("layers", "width", "heads", "mlp_ratio", "patch")},
        )  # fmt: skip

    def predict(self, latents: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        found: Tensor = self.network(latents, time, condition)
        return found

    def losses(self, tokens: Tensor, condition: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """``velocity``: mean squared error of x - e at a time drawn from U(0, 1).

        Args:
            tokens: latents (B, C, h, w).
            condition: (B,) int64 class labels in [0, num_classes).
            rng: on any device.
        """
        data, place = self.scale(tokens), tokens.device
        time = torch.rand(len(data), generator=rng, device=rng.device).to(place)
        noise, classes = self.drawn(data.shape, condition, rng)
        share = time[:, None, None, None]
        found = self.predict((1 - share) * noise + share * data, time, classes)
        return {"velocity": (at_least_fp32(found) - (data - noise)).square().mean()}

    def check_sampler(self, sampler: dict[str, Any]) -> None:
        check_guidance(sampler, self.channels)
        if sampler["method"] not in METHODS:
            raise SpecError(f"sampler: unknown method '{sampler['method']}'; {nearest(sampler['method'], METHODS)}")
        if not 0 < sampler["last_step"] < 1:
            raise SpecError(f"sampler: last_step is {sampler['last_step']}; it must be in (0, 1)")
        for key in ("rtol", "atol"):
            if sampler[key] <= 0:
                raise SpecError(f"sampler: {key} is {sampler[key]}; it must be above 0")
        if sampler["steps"] < 2:
            raise SpecError(f"sampler: steps is {sampler['steps']}; the SDE needs at least 2")

    @torch.no_grad()
    def sample(self, condition: Tensor, rng: torch.Generator, sampler: dict[str, Any]) -> Tensor:
        """From noise at t = 0 to latents at t = 1. All noise comes from `rng`, which lives on the model's device.

        Args:
            condition: (B,) int64 class labels.
            sampler: all keys of :data:`SAMPLER`.

        Returns:
            latents (B, C, h, w) in the encoder's scale.

        Raises:
            SpecError: a sampler option is out of its range.
            Diverged: the ODE's solver finds no step small enough.
        """
        self.check_sampler(sampler)
        x, network = self.start(condition, rng, sampler)

        def velocity(time: Tensor, latents: Tensor) -> Tensor:
            return network(latents, time)

        if sampler["method"] == "ode":
            ends = torch.tensor([0.0, 1.0], device=x.device)
            try:
                x = odeint(velocity, x, ends, method="dopri5", rtol=sampler["rtol"], atol=sampler["atol"])[-1]
            except AssertionError as error:  # torchdiffeq's, where no step is small enough: NaN, or too steep a field
                raise Diverged(f"the ODE cannot be solved to rtol {sampler['rtol']}, atol {sampler['atol']} ({error}): the weights "
                               "or latents are not finite, the guidance is too strong, or set method: sde") from None  # fmt: skip
        else:
            x = euler_maruyama(velocity, x, rng, sampler["steps"], sampler["last_step"])
        return self.scale.undo(x)

    def steps(self, sampler: dict[str, Any]) -> int | str:
        """Of the SDE; the ODE's solver chooses its own by the tolerances."""
        return super().steps(sampler) if sampler["method"] == "sde" else "adaptive"

    def passes(self, sampler: dict[str, Any]) -> float:
        """One a step of the SDE. The ODE's solver chooses; a hundred is ours."""
        return float(sampler["steps"]) if sampler["method"] == "sde" else 100.0


def euler_maruyama(
    velocity: Callable[[Tensor, Tensor], Tensor], x: Tensor, rng: torch.Generator, steps: int, last_step: float
) -> Tensor:
    """dx = (v + D score) dt + sqrt(2 D) dW with D = 1 - t, from t = 0 to 1 - `last_step`; then the mean of one last step.

    D is the noise's own share ("sigma" in willisma/SiT:transport). On a line from noise the score is
    (t v - x) / (1 - t), so D score = t v - x: nothing divides by 1 - t.
    """
    times = torch.linspace(0, 1 - last_step, steps, device=x.device)
    gap = times[1] - times[0]
    for time in times[:-1]:
        v = velocity(time, x)
        noise = torch.randn(x.shape, generator=rng, device=rng.device)
        x = x + (v + time * v - x) * gap + (2 * (1 - time) * gap).sqrt() * noise
    v = velocity(times[-1], x)
    return x + (v + times[-1] * v - x) * last_step


def build(spec: GeneratorSpec) -> FlowTransformer:
    """The untrained model; runs on the meta device too."""
    return FlowTransformer(spec)
