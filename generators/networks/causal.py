"""A causal pre-norm transformer (GPT-2's, as in CompVis/taming-transformers: taming/modules/transformer/mingpt.py).

Letters: B sequences, T positions given now, S positions so far, L layers, D width, A heads, d = D / A.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-5  # GPT-2's


class Cache:
    """Keys and values of all positions so far, so that a step computes one position. Room for all is taken at once.

    Args:
        shape: (L, B, A, S at most, d).
        like: gives device and type.
    """

    def __init__(self, shape: tuple[int, int, int, int, int], like: Tensor) -> None:
        self.keys, self.values = like.new_empty(shape), like.new_empty(shape)
        self.length = 0  # positions held by all layers

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add (B, A, T, d) behind what is held -> all of the layer's, (B, A, S, d). The last layer moves the end on."""
        end = self.length + keys.shape[2]
        self.keys[layer, :, :, self.length : end] = keys
        self.values[layer, :, :, self.length : end] = values
        if layer == len(self.keys) - 1:
            self.length = end
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


class CausalAttention(nn.Module):
    """Self-attention in which a position sees itself and those before it.

    Args:
        width: D.
        heads: A, a divisor of D.
        dropout: probability of dropping an attention weight, in training mode.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, cache: Cache | None = None, layer: int = 0) -> Tensor:
        """(B, T, D) -> (B, T, D). With a cache that holds positions, T is 1: the next one."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)  # 3 x (B, A, T, d)
        alone = True
        if cache is not None:
            alone = cache.length == 0
            k, v = cache.extend(layer, k, v)  # 2 x (B, A, S, d)
        drop = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=drop, is_causal=alone)  # (B, A, T, d)
        projected: Tensor = self.out(mixed.transpose(1, 2).flatten(2))  # (B, T, D)
        return projected


class CausalBlock(nn.Module):
    """Attention and a GELU MLP, each behind a LayerNorm and added to the stream.

    Args:
        width, heads, dropout: see :class:`CausalAttention`; dropout also on both residual branches.
        mlp_ratio: hidden width of the MLP over D.
    """

    recomputed = True

    def __init__(self, width: int, heads: int, mlp_ratio: int, dropout: float) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width, eps=EPS)
        self.attention = CausalAttention(width, heads, dropout)
        self.norm_mlp = nn.LayerNorm(width, eps=EPS)
        hidden = mlp_ratio * width
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, cache: Cache | None = None, layer: int = 0) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x = x + self.drop(self.attention(self.norm_attention(x), cache, layer))  # (B, T, D)
        out: Tensor = x + self.drop(self.mlp(self.norm_mlp(x)))  # (B, T, D)
        return out


class CausalTransformer(nn.Module):
    """`layers` blocks and the LayerNorm that a pre-norm stream needs at its end. Without positions of its own."""

    def __init__(self, layers: int, width: int, heads: int, mlp_ratio: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, width // heads
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(CausalBlock(width, heads, mlp_ratio, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width, eps=EPS)

    def cache(self, batch: int, positions: int, like: Tensor) -> Cache:
        """An empty cache for so many sequences and positions."""
        return Cache((len(self.blocks), batch, self.heads, positions, self.head_dim), like)

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x = self.drop(x)
        for layer, block in enumerate(self.blocks):
            x = block(x, cache, layer)  # (B, T, D)
        out: Tensor = self.norm(x)
        return out


def init_weights(module: nn.Module, std: float = 0.02) -> None:
    """For ``Module.apply``: normal weights, zero biases (taming/modules/transformer/mingpt.py)."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=std)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def keep_likely(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Logits (R, K) with -inf for all but the `top_k` highest, and of those but the fewest that hold `top_p`.

    Args:
        top_k: 0 or more than K keeps all; equal logits at the edge are all kept.
        top_p: share of the probability that is left after `top_k`, in (0, 1]; the likeliest is always kept.
    """
    if 0 < top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[..., -1:]  # (R, 1)
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p < 1:
        ordered, place = logits.sort(dim=-1, descending=True, stable=True)
        share = ordered.softmax(dim=-1)
        beyond = share.cumsum(dim=-1) - share >= top_p  # what stands before it holds enough already
        logits = logits.masked_fill(torch.zeros_like(beyond).scatter(-1, place, beyond), -torch.inf)
    return logits
