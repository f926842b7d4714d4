"""MaskGIT: a bidirectional transformer that fills in masked ids (Chang et al. 2022; cq paper Sec. 3.3 and Table 1).

Every id has one learned position and there is nothing two-dimensional, so channel, raster and other orders are all
sequences. A token for the class, or for no class, stands before them. Blocks are pre-norm with RMS-normalised queries
and keys; before the K logits comes BERT's projection, as in google-research/maskgit, and the id embedding serves as the
output matrix too. The cq paper prints neither guidance scale and schedule nor temperatures: those defaults are ours.

Letters: B images, N ids an image, K codebook size, D width, M ids that are still masked in an image.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqbench.errors import SpecError, nearest
from vqbench.generators.base import Generator
from vqbench.generators.networks.parallel_decoding import (
    GUIDANCE_SCHEDULES,
    draw,
    draw_mask,
    guidance_at,
    guide,
    gumbel_like,
    masked_counts,
)
from vqbench.generators.networks.transformer import EPS, Transformer, init_weights
from vqbench.specs import GeneratorSpec
from vqbench.switches import at_least_fp32

# cq Table 1, Ours-B. L: layers 32, width 1280; H: layers 36, width 1536. Dropout: google-research/maskgit.
OPTIONS = {"layers": 24, "width": 1024, "heads": 16, "mlp_ratio": 4, "dropout": 0.1, "tie_vocabulary": True}

# steps: cq Table 2 (10, or 64 with a star). gumbel: 4.5 as in google-research/maskgit and valeoai/Halton-MaskGIT.
# guidance is Eq. 4's t (1 is off); "linear" ramps it from 1 at the first step to t at the last (Halton-MaskGIT).
SAMPLER = {"steps": 10, "guidance": 3.0, "guidance_schedule": "linear", "temperature": 1.0, "gumbel": 4.5}

ACCEPTS = {
    "kind": {"values": ["discrete"], "why": "a masked transformer predicts a categorical distribution over codes"},
    "num_slots": {"values": [1], "why": "one softmax over K a position; two codes a position need a second head"},
}

LOGITS_AT_ONCE = 2**27  # numbers in one slab of logits (0.5 GiB); K = 131,072 times a whole block would be 60 GiB


class MaskGIT(Generator):
    """The model. In training mode dropout draws from torch's global generator, all else from the `rng` passed in.

    Args:
        spec: sizes in ``options`` (see :data:`OPTIONS`); N and K in ``tokens``; ``training.class_drop`` is the
            probability that a class is replaced by none, ``training.label_smoothing`` that of the cross-entropy.

    Raises:
        SpecError: `heads` does not divide `width`.
    """

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__()
        option, tokens = spec.options, spec.tokens
        width, sizes = option["width"], {k: option[k] for k in ("layers", "width", "heads", "mlp_ratio", "dropout")}
        if width % option["heads"]:
            raise SpecError(f"generator family 'maskgit': heads {option['heads']} does not divide width {width}")
        self.num_tokens, self.num_codes, self.null_class = tokens.num_tokens, tokens.num_codes, spec.num_classes
        self.class_drop, self.label_smoothing = spec.training.class_drop, spec.training.label_smoothing
        self.classes = nn.Embedding(spec.num_classes + 1, width)
        self.positions = nn.Parameter(torch.empty(1 + tokens.num_tokens, width))
        self.mask = nn.Parameter(torch.empty(width))
        self.codes = nn.Parameter(torch.empty(tokens.num_codes, width))
        self.transformer = Transformer(**sizes)
        self.project = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width, eps=EPS))
        self.head = None if option["tie_vocabulary"] else nn.Parameter(torch.empty(tokens.num_codes, width))
        self.bias = nn.Parameter(torch.zeros(tokens.num_codes))
        self.apply(init_weights)
        for parameter in (self.positions, self.mask, self.codes, *([] if self.head is None else [self.head])):
            nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, ids: Tensor, masked: Tensor, condition: Tensor) -> Tensor:
        """Features of all positions, before the output matrix.

        Args:
            ids: (B, N) int64 in [0, K); what stands at masked positions is not looked at.
            masked: (B, N) bool.
            condition: (B,) int64 class labels; ``null_class`` is none.

        Returns:
            (B, N, D); :meth:`logits` takes any selection of them.
        """
        x = torch.where(masked[..., None], self.mask, F.embedding(ids, self.codes))  # (B, N, D)
        x = torch.cat([self.classes(condition)[:, None], x], dim=1)  # (B, 1 + N, D)
        x = self.transformer(x + self.positions)  # (B, 1 + N, D)
        features: Tensor = self.project(x[:, 1:])  # (B, N, D)
        return features

    def logits(self, features: Tensor) -> Tensor:
        """(..., D) -> (..., K)."""
        return F.linear(features, self.codes if self.head is None else self.head, self.bias)

    def losses(self, tokens: Tensor, condition: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """``cross_entropy`` in nats, label-smoothed: the mean over the masked ids, which alone get logits.

        Args:
            tokens: (B, N, 1) int64 in [0, K).
            condition: (B,) int64 class labels in [0, num_classes).
            rng: on any device.
        """
        ids = tokens[..., 0]  # (B, N)
        masked = draw_mask(len(ids), self.num_tokens, rng).to(ids.device)  # (B, N)
        dropped = torch.rand(len(ids), generator=rng, device=rng.device) < self.class_drop  # (B,)
        condition = condition.masked_fill(dropped.to(condition.device), self.null_class)  # (B,)
        features = self(ids, masked, condition)[masked]  # (B * M, D)
        loss = F.cross_entropy(at_least_fp32(self.logits(features)), ids[masked], label_smoothing=self.label_smoothing)
        return {"cross_entropy": loss}

    def check_sampler(self, sampler: dict[str, Any]) -> None:
        if sampler["guidance_schedule"] not in GUIDANCE_SCHEDULES:
            mend = nearest(sampler["guidance_schedule"], GUIDANCE_SCHEDULES)
            raise SpecError(f"sampler: unknown guidance_schedule '{sampler['guidance_schedule']}'; {mend}")
        for key, least in (("steps", 1), ("guidance", 1), ("temperature", 0), ("gumbel", 0)):
            if sampler[key] < least:
                raise SpecError(f"sampler: {key} is {sampler[key]}; it must be at least {least}")

    @torch.no_grad()
    def sample(self, condition: Tensor, rng: torch.Generator, sampler: dict[str, Any]) -> Tensor:
        """Parallel decoding: guess all masked ids, keep the most confident, mask the others again.

        The model should be in eval mode. All noise comes from `rng`, which lives on the model's device.

        Args:
            condition: (B,) int64 class labels.
            sampler: all keys of :data:`SAMPLER`. ``temperature`` 0 takes the likeliest id; ``gumbel`` scales the noise
                on the confidences, which falls to 0 at the last step.

        Returns:
            (B, N, 1) int64 in [0, K).

        Raises:
            SpecError: a sampler option is out of its range.
        """
        self.check_sampler(sampler)
        steps = sampler["steps"]
        open_ = torch.arange(self.num_tokens, device=condition.device).expand(len(condition), -1)  # (B, M), M = N
        ids = torch.zeros_like(open_)  # (B, N)
        for step, left in enumerate(masked_counts(self.num_tokens, steps)):
            if left == open_.shape[1]:
                continue  # more steps than ids: all guesses of this one would be masked again
            scale = guidance_at(step, steps, sampler["guidance"], sampler["guidance_schedule"])
            guesses, confidence = self._guess(ids, open_, condition, scale, sampler["temperature"], rng)  # (B, M) each
            ids = ids.scatter(1, open_, guesses)  # (B, N)
            confidence = confidence + sampler["gumbel"] * (1 - (step + 1) / steps) * gumbel_like(confidence, rng)
            unsure = confidence.argsort(dim=1, stable=True)[:, :left]  # (B, left)
            open_ = open_.gather(1, unsure).sort(dim=1).values  # (B, left)
        return ids[..., None]

    def _guess(
        self, ids: Tensor, open_: Tensor, condition: Tensor, scale: float, temperature: float, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Ids drawn for the open positions (B, M), and their log-probabilities at temperature 1."""
        masked = torch.zeros_like(ids, dtype=torch.bool).scatter(1, open_, True)  # (B, N)
        passes = 1 if scale == 1 else 2
        both = torch.cat([condition, torch.full_like(condition, self.null_class)][:passes])  # (2B,) or (B,)
        features = self(ids.repeat(passes, 1), masked.repeat(passes, 1), both)  # (2B, N, D)
        index = open_.repeat(passes, 1)[..., None].expand(-1, -1, features.shape[-1])  # (2B, M, D)
        rows = features.gather(1, index).view(passes, open_.numel(), -1)  # (2, B * M, D)
        drawn = [
            draw(guide(self.logits(part).float(), scale), temperature, rng)
            for part in rows.split(max(1, LOGITS_AT_ONCE // (passes * self.num_codes)), dim=1)
        ]
        guesses, confidence = (torch.cat(parts).view_as(open_) for parts in zip(*drawn, strict=True))
        return guesses, confidence

    def parameter_counts(self) -> dict[str, int]:
        """``vocabulary``: id embedding, output matrix and bias over the K codes. ``blocks``: the rest (cq Table 1)."""
        over_codes = [p for p in (self.codes, self.head, self.bias) if p is not None]
        vocabulary = sum(p.numel() for p in over_codes)
        return {"blocks": sum(p.numel() for p in self.parameters()) - vocabulary, "vocabulary": vocabulary}

    def forward_flops(self) -> float:
        """Every parameter once at each id."""
        return 2.0 * sum(self.parameter_counts().values()) * self.num_tokens

    def passes(self, sampler: dict[str, Any]) -> float:
        """One a step."""
        return float(sampler["steps"])


def build(spec: GeneratorSpec) -> MaskGIT:
    """The untrained model; runs on the meta device too."""
    return MaskGIT(spec)
