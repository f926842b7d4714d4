"""GPT over token ids, one after the other (VQGAN-LC Sec. 4.1 and App. A; VQGAN's second stage).

A token for the class, or for no class, stands first; id n is predicted from it and the ids before n, whatever order the
tokenizer gives them: raster, channel. The paper counts 404M parameters: 302M of blocks and one matrix over 100,000 codes,
so the id embedding serves as the output matrix too.

Letters: B images, N ids an image, K codebook size, D width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqbench.errors import SpecError
from vqbench.generators.base import Generator
from vqbench.generators.networks.causal import CausalTransformer, init_weights, keep_likely
from vqbench.generators.networks.parallel_decoding import draw, guide
from vqbench.specs import GeneratorSpec
from vqbench.switches import at_least_fp32

# VQGAN-LC Sec. 4.1. token_keep: zh460045050/VQGAN-LC:vqgan-gpt-lc/training_gpt.py trains with 0.8 (--pkeep, as
# CompVis/taming-transformers:taming/models/cond_transformer.py). dropout: ours, the paper and VQGAN's ImageNet config name none.
OPTIONS = {"layers": 24, "width": 1024, "heads": 16, "mlp_ratio": 4, "dropout": 0.0, "token_keep": 0.8,
           "tie_vocabulary": True}  # fmt: skip

# top_k_share: App. A, 10% of the vocabulary; top_k is the same as a number, 0 is off. guidance 1 is off, as in the paper.
SAMPLER = {"temperature": 1.0, "top_k": 0, "top_k_share": 0.1, "top_p": 1.0, "guidance": 1.0, "cached": True}

ACCEPTS = {
    "kind": {"values": ["discrete"], "why": "a softmax over codes needs ids"},
    "num_slots": {"values": [1], "why": "one softmax over K a position; two codes a position need a second head"},
}


class GPT(Generator):
    """The model. In training mode dropout draws from torch's global generator, all else from the `rng` passed in.

    Args:
        spec: sizes in ``options`` (see :data:`OPTIONS`); N and K in ``tokens``; ``training.class_drop`` is the
            probability that a class is replaced by none, ``training.label_smoothing`` that of the cross-entropy.

    Raises:
        SpecError: `heads` does not divide `width`, or `token_keep` is no probability.
    """

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__()
        option, tokens = spec.options, spec.tokens
        width, sizes = option["width"], {k: option[k] for k in ("layers", "width", "heads", "mlp_ratio", "dropout")}
        if width % option["heads"]:
            raise SpecError(f"generator family 'gpt': heads {option['heads']} does not divide width {width}")
        if not 0 <= option["token_keep"] <= 1:
            raise SpecError(f"generator family 'gpt': token_keep is {option['token_keep']}; it must be in [0, 1]")
        self.num_tokens, self.num_codes, self.null_class = tokens.num_tokens, tokens.num_codes, spec.num_classes
        self.token_keep, self.class_drop = option["token_keep"], spec.training.class_drop
        self.label_smoothing = spec.training.label_smoothing
        self.classes = nn.Embedding(spec.num_classes + 1, width)
        self.positions = nn.Parameter(torch.zeros(tokens.num_tokens, width))
        self.codes = nn.Embedding(tokens.num_codes, width)
        self.transformer = CausalTransformer(**sizes)
        self.head = None if option["tie_vocabulary"] else nn.Linear(width, tokens.num_codes, bias=False)
        self.apply(init_weights)

    def forward(self, condition: Tensor, ids: Tensor) -> Tensor:
        """Features from which ids 0 ... T are predicted.

        Args:
            condition: (B,) int64 class labels; ``null_class`` is none.
            ids: (B, T) int64 in [0, K), the first T of N; T < N.

        Returns:
            (B, 1 + T, D); :meth:`logits` takes any selection of them.
        """
        x = torch.cat([self.classes(condition)[:, None], self.codes(ids)], dim=1)  # (B, 1 + T, D)
        features: Tensor = self.transformer(x + self.positions[: x.shape[1]])
        return features

    def logits(self, features: Tensor) -> Tensor:
        """(..., D) -> (..., K)."""
        return F.linear(features, (self.codes if self.head is None else self.head).weight)

    def losses(self, tokens: Tensor, condition: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """``cross_entropy`` in nats, the mean over all ids.

        Args:
            tokens: (B, N, 1) int64 in [0, K). Of those that are read, a share of 1 - `token_keep` is replaced by
                random ids; all are predicted as they were.
            condition: (B,) int64 class labels in [0, num_classes).
            rng: on any device.
        """
        ids = tokens[..., 0]  # (B, N)
        given = ids[:, :-1]
        kept = torch.rand(given.shape, generator=rng, device=rng.device).to(ids.device) < self.token_keep
        other = torch.randint(self.num_codes, given.shape, generator=rng, device=rng.device).to(ids.device)
        dropped = torch.rand(len(ids), generator=rng, device=rng.device) < self.class_drop  # (B,)
        condition = condition.masked_fill(dropped.to(condition.device), self.null_class)
        logits = self.logits(self(condition, torch.where(kept, given, other)))  # (B, N, K)
        loss = F.cross_entropy(at_least_fp32(logits.flatten(0, 1)), ids.flatten(), label_smoothing=self.label_smoothing)
        return {"cross_entropy": loss}

    def check_sampler(self, sampler: dict[str, Any]) -> None:
        for key, least in (("temperature", 0), ("top_k", 0), ("guidance", 1)):
            if sampler[key] < least:
                raise SpecError(f"sampler: {key} is {sampler[key]}; it must be at least {least}")
        if not 0 < sampler["top_p"] <= 1:
            raise SpecError(f"sampler: top_p is {sampler['top_p']}; it must be in (0, 1]")
        if not 0 <= sampler["top_k_share"] <= 1:
            raise SpecError(f"sampler: top_k_share is {sampler['top_k_share']}; it must be in [0, 1]")
        if sampler["top_k"] and sampler["top_k_share"]:
            raise SpecError(
                f"sampler: top_k is {sampler['top_k']} and top_k_share {sampler['top_k_share']}; set one to 0"
            )

    @torch.no_grad()
    def sample(self, condition: Tensor, rng: torch.Generator, sampler: dict[str, Any]) -> Tensor:
        """One id after the other. The model should be in eval mode. All noise comes from `rng`, on the model's device.

        Args:
            condition: (B,) int64 class labels.
            sampler: all keys of :data:`SAMPLER`. ``temperature`` 0 takes the likeliest id; ``cached`` keeps keys and
                values of earlier positions: the same ids, one position computed a step instead of all.

        Returns:
            (B, N, 1) int64 in [0, K).

        Raises:
            SpecError: a sampler option is out of its range.
        """
        self.check_sampler(sampler)
        top_k = codes_kept(sampler, self.num_codes)
        passes = 1 if sampler["guidance"] == 1 else 2
        both = torch.cat([condition, torch.full_like(condition, self.null_class)][:passes])  # (2B,) or (B,)
        cache = self.transformer.cache(len(both), self.num_tokens, self.positions) if sampler["cached"] else None
        ids = condition.new_empty(len(condition), 0)  # (B, n), n grows
        for n in range(self.num_tokens):
            if cache is None:
                features = self(both, ids.repeat(passes, 1))[:, -1]  # (2B, D)
            else:
                x = self.classes(both) if n == 0 else self.codes(ids[:, -1].repeat(passes))  # (2B, D)
                features = self.transformer((x + self.positions[n])[:, None], cache)[:, -1]
            logits = guide(self.logits(features).float().view(passes, len(ids), -1), sampler["guidance"])  # (B, K)
            # the temperature first: top_p is a share of what is drawn from (FoundationVision/LlamaGen:autoregressive/models/
            # generate.py, sample; zh460045050/VQGAN-LC:vqgan-gpt-lc/models/models_gpt.py)
            heat = sampler["temperature"]
            likely = keep_likely(logits / (heat or 1.0), top_k, sampler["top_p"])
            chosen, _ = draw(likely, 1.0 if heat else 0.0, rng)
            ids = torch.cat([ids, chosen[:, None]], dim=1)
        return ids[..., None]

    def parameter_counts(self) -> dict[str, int]:
        """``vocabulary``: id embedding and output matrix over the K codes. ``blocks``: the rest."""
        over_codes = [self.codes.weight, *([] if self.head is None else [self.head.weight])]
        vocabulary = sum(p.numel() for p in over_codes)
        return {"blocks": sum(p.numel() for p in self.parameters()) - vocabulary, "vocabulary": vocabulary}

    def forward_flops(self) -> float:
        """Every parameter once at each id."""
        return 2.0 * sum(self.parameter_counts().values()) * self.num_tokens

    def steps(self, sampler: dict[str, Any]) -> int:
        """One an id."""
        return self.num_tokens

    def passes(self, sampler: dict[str, Any]) -> float:
        """One in all with the cache; without it each id costs all before it again."""
        return 1.0 if sampler["cached"] else (self.num_tokens + 1) / 2


def build(spec: GeneratorSpec) -> GPT:
    """The untrained model; runs on the meta device too."""
    return GPT(spec)


def codes_kept(sampler: dict[str, Any], num_codes: int) -> int:
    """The number of codes that top-k keeps, 0 for all."""
    share: float = sampler["top_k_share"]
    return int(sampler["top_k"]) or (max(1, round(share * num_codes)) if share else 0)
