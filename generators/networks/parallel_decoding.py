"""The random choices of masked generation: training masks, the unmasking schedule, guidance and confidence noise.

Source: Chang et al. 2022 (MaskGIT), Sec. 3.2; google-research/maskgit `maskgit/libml/parallel_decode.py`.

Letters: B images, N ids an image, T steps, R rows (open ids of a batch), K codebook size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

GUIDANCE_SCHEDULES = ("constant", "linear")


def draw_mask(batch: int, num_tokens: int, rng: torch.Generator) -> Tensor:
    """Training masks (B, N) bool, on the rng's device: ceil(N cos(pi/2 u)) ids of each image, u ~ U(0, 1)."""
    ratio = torch.cos(math.pi / 2 * torch.rand(batch, 1, generator=rng, device=rng.device))  # (B, 1)
    count = (num_tokens * ratio).ceil().clamp(1, num_tokens)  # (B, 1)
    rank = torch.rand(batch, num_tokens, generator=rng, device=rng.device).argsort(dim=1).argsort(dim=1)  # (B, N)
    return rank < count


def masked_counts(num_tokens: int, steps: int) -> list[int]:
    """Ids left masked after each step: floor(N cos(pi/2 (i+1)/T)), one fewer a step at least, at least 1, 0 at the end.

    The rule of google-research/maskgit; with T > N the last id stays masked for some steps.
    """
    counts, left = [], num_tokens
    for step in range(1, steps):
        left = max(1, min(left - 1, math.floor(num_tokens * math.cos(math.pi / 2 * step / steps))))
        counts.append(left)
    return [*counts, 0]


def guidance_at(step: int, steps: int, scale: float, schedule: str) -> float:
    """Eq. 4's t at step i in [0, T): constant, or linear from 1 at the first to `scale` at the last; `scale` if T = 1."""
    return scale if schedule == "constant" or steps == 1 else 1 + (scale - 1) * step / (steps - 1)


def guide(logits: Tensor, scale: float) -> Tensor:
    """Eq. 4 of the cq paper, t l_c - (t - 1) l_u: (2, R, K), conditional first, -> (R, K). (1, R, K) passes through."""
    return logits[0] if len(logits) == 1 else scale * logits[0] - (scale - 1) * logits[1]


def draw(logits: Tensor, temperature: float, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """(R, K) -> ids (R,) drawn at a temperature, and their log-probabilities (R,) at temperature 1."""
    if temperature == 0:
        ids = logits.argmax(dim=-1, keepdim=True)  # (R, 1)
    else:
        ids = torch.multinomial((logits / temperature).softmax(dim=-1), 1, generator=rng)  # (R, 1)
    return ids[:, 0], logits.log_softmax(dim=-1).gather(1, ids)[:, 0]


def gumbel_like(x: Tensor, rng: torch.Generator) -> Tensor:
    """Standard Gumbel noise in the shape of `x`, finite: -log of exponential noise held above the smallest float."""
    noise = torch.empty(x.shape, device=rng.device).exponential_(generator=rng)
    return -noise.clamp_min(torch.finfo(noise.dtype).tiny).log().to(x.device)
