"""A bidirectional pre-norm transformer whose queries and keys are normalised (cq paper, Sec. 3.3).

Letters: B sequences, T positions, D width, A heads, d = D / A width of one head.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from vqbench.switches import at_least_fp32

EPS = 1e-6


class Attention(nn.Module):
    """Self-attention over all positions; RMSNorm over each head's queries and keys keeps the logits bounded.

    Args:
        width: D.
        heads: A, a divisor of D.
        dropout: probability of dropping an attention weight, in training mode.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.norm_q = nn.RMSNorm(width // heads, eps=EPS)
        self.norm_k = nn.RMSNorm(width // heads, eps=EPS)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # (B, T, 3, A, d)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # 3 x (B, A, T, d)
        # normalised in fp32 also under autocast, where the gains are fp32 and attention wants q and k as v is
        q, k = self.norm_q(at_least_fp32(q)).type_as(v), self.norm_k(at_least_fp32(k)).type_as(v)  # 2 x (B, A, T, d)
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        projected: Tensor = self.out(mixed.transpose(1, 2).flatten(2))  # (B, T, D)
        return projected


class Block(nn.Module):
    """Attention and a GELU MLP, each behind a LayerNorm and added to the stream.

    Args:
        width: D.
        heads: A.
        mlp_ratio: hidden width of the MLP over D.
        dropout: probability for attention weights and for both residual branches, in training mode.
    """

    recomputed = True

    def __init__(self, width: int, heads: int, mlp_ratio: int, dropout: float) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width, eps=EPS)
        self.attention = Attention(width, heads, dropout)
        self.norm_mlp = nn.LayerNorm(width, eps=EPS)
        hidden = mlp_ratio * width
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x = x + self.drop(self.attention(self.norm_attention(x)))  # (B, T, D)
        out: Tensor = x + self.drop(self.mlp(self.norm_mlp(x)))  # (B, T, D)
        return out


class Transformer(nn.Module):
    """`layers` blocks and the LayerNorm that a pre-norm stream needs at its end. Without positions of its own."""

    def __init__(self, layers: int, width: int, heads: int, mlp_ratio: int, dropout: float) -> None:
        super().__init__()
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x = self.drop(x)
        for block in self.blocks:
            x = block(x)  # (B, T, D)
        out: Tensor = self.norm(x)
        return out


def init_weights(module: nn.Module, std: float = 0.02) -> None:
    """For ``Module.apply``: truncated normal weights, zero biases (google-research/maskgit: truncated normal, 0.02)."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=std)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
