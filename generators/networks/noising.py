"""The noise of DDPM and its training terms (Ho et al. 2020; Nichol and Dhariwal 2021, Sec. 3.1, for learned variances).

Schedules are diffusers'; the library has no training loss for learned variances, so that is written here, as in
facebookresearch/DiT:diffusion/gaussian_diffusion.py.

Letters: B images, S time steps, a(t) the share of signal that is left at t.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from diffusers import DDPMScheduler
from torch import Tensor

BIN = 1 / 255  # half the width of the bins in which the last step's likelihood is taken: images' 8 bits


class Noise(NamedTuple):
    """Coefficients by time step, (S,) float64 each.

    Attributes:
        signal, noise: of x_t = signal x_0 + noise e.
        from_start, from_now: of the mean of x_{t-1} given x_0 and x_t.
        least, most: log variances between which a learned one lies: the posterior's and the step's own.
    """

    signal: Tensor
    noise: Tensor
    from_start: Tensor
    from_now: Tensor
    least: Tensor
    most: Tensor


@lru_cache(maxsize=4)
def noise_of(steps: int, first: float, last: float, schedule: str) -> Noise:
    """The coefficients of a schedule of betas from `first` to `last`; `schedule` by diffusers' name."""
    with torch.device("cpu"):
        kind: type[Any] = DDPMScheduler
        betas = kind(num_train_timesteps=steps, beta_start=first, beta_end=last, beta_schedule=schedule).betas.double()
        left = (1 - betas).cumprod(0)
        before = torch.cat([left.new_ones(1), left[:-1]])
        variance = betas * (1 - before) / (1 - left)
        variance[0] = variance[1]  # zero, whose logarithm is infinite
        return Noise(
            signal=left.sqrt(), noise=(1 - left).sqrt(), from_start=betas * before.sqrt() / (1 - left),
            from_now=(1 - before) * (1 - betas).sqrt() / (1 - left), least=variance.log(), most=betas.log(),
        )  # fmt: skip


def at(values: Tensor, time: Tensor) -> Tensor:
    """(S,), (B,) -> (B, 1, 1, 1) float32 on the device of `time`."""
    return values.to(time.device)[time].float()[:, None, None, None]


def noised(table: Noise, start: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """x_t of x_0 (B, C, h, w), standard noise of that shape and time steps (B,)."""
    return at(table.signal, time) * start + at(table.noise, time) * noise


def variational_bound(table: Noise, start: Tensor, now: Tensor, time: Tensor, noise: Tensor, share: Tensor) -> Tensor:
    """Bits a dimension of step t -> t - 1, the mean over a batch: what trains the variance.

    Args:
        start, now: x_0 and x_t, (B, C, h, w).
        time: (B,).
        noise: predicted; detach it, so that the variance alone learns from this term.
        share: (B, C, h, w) nominally in [-1, 1]: where the log variance lies between the least and the most.
    """
    least, most = at(table.least, time), at(table.most, time)
    log_variance = least + (most - least) * (share + 1) / 2
    guess = (now - at(table.noise, time) * noise) / at(table.signal, time)  # of x_0
    mean, true = (at(table.from_start, time) * x + at(table.from_now, time) * now for x in (guess, start))
    divergence = 0.5 * (log_variance - least + (least - log_variance).exp()
                        + (true - mean).square() * (-log_variance).exp() - 1)  # fmt: skip
    last = (time == 0)[:, None, None, None]
    nats = torch.where(last, -log_likelihood(start, mean, log_variance), divergence)
    return nats.mean() / math.log(2)


def log_likelihood(levels: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Log probability of the 8-bit bin around each of `levels`, nominally in [-1, 1], under a normal distribution."""
    deviation = (0.5 * log_variance).exp()
    above, below = (torch.special.ndtr((levels - mean + side) / deviation) for side in (BIN, -BIN))
    inside = torch.where(levels < -0.999, above, torch.where(levels > 0.999, 1 - below, above - below))
    return inside.clamp_min(1e-12).log()


def sampler_of(kind: type[Any], schedule: Mapping[str, Any], steps: int, device: torch.device) -> Any:
    """One of diffusers' samplers over `steps` time steps, evenly spread from the noisiest to 0 unless the schedule says."""
    found = kind(**{"clip_sample": False, "timestep_spacing": "linspace", **schedule})
    found.set_timesteps(steps, device=device)
    return found
