"""The transformer of DiT (Peebles and Xie 2023, Sec. 3; facebookresearch/DiT:models.py) over patches of a latent map.

Letters: B images, C channels, h w the latent map, p the side of a patch, T patches, D width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models.vision_transformer import Attention  # type: ignore[attr-defined]  # timm's file says so, its place moved
from torch import Tensor, nn

from vqbench.errors import SpecError

EPS = 1e-6
FREQUENCIES = 256  # of the embedding of time


class DiT(nn.Module):
    """Patches, fixed 2-D sine positions, `layers` blocks that time and class modulate (adaLN-Zero), patches back.

    Args:
        channels: C of the latent map.
        side: h = w.
        outputs: channels of the result: C, or 2C where a variance is learned.
        num_classes: labels 0 ... num_classes - 1; num_classes itself is no class.
        layers, width, heads, mlp_ratio, patch: sizes; DiT-XL/2 is 28, 1152, 16, 4, 2.

    Raises:
        SpecError: sizes do not divide each other.
    """

    def __init__(
        self,
        *,
        channels: int,
        side: int,
        outputs: int,
        num_classes: int,
        layers: int,
        width: int,
        heads: int,
        mlp_ratio: int,
        patch: int,
    ) -> None:
        super().__init__()
        if width % heads or width % 4:
            raise SpecError(f"generator: width {width} is no multiple of 4 and of the {heads} heads")
        if side % patch:
            raise SpecError(f"generator: patch {patch} does not divide the latent map's side {side}")
        self.patch, self.side, self.outputs = patch, side, outputs
        self.embed = nn.Conv2d(channels, width, patch, patch)
        self.positions = nn.Buffer(sine_positions(side // patch, width))  # persistent: models open on the meta device
        self.time = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.classes = nn.Embedding(num_classes + 1, width)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(layers))
        self.norm = nn.LayerNorm(width, eps=EPS, elementwise_affine=False)
        self.modulate = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, patch * patch * outputs)
        self._init_weights()

    def _init_weights(self) -> None:
        """Xavier; the last layer of every modulation and of the network starts at zero: blocks start as identities."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.data.flatten(1))
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        for module in (self.classes, *self.time):
            if isinstance(module, nn.Embedding | nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
        for last in (*(m.modulate for m in self.modules() if isinstance(m, Block)), self.modulate, self.out):
            nn.init.zeros_(last.weight)

    def forward(self, latents: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """(B, C, h, w), times (B,) of any scale, class labels (B,) -> (B, outputs, h, w)."""
        x = self.embed(latents).flatten(2).transpose(1, 2) + self.positions  # (B, T, D)
        c = self.time(time_frequencies(time).type_as(x)) + self.classes(condition)  # (B, D)
        for block in self.blocks:
            x = block(x, c)  # (B, T, D)
        shift, scale = self.modulate(F.silu(c))[:, None].chunk(2, dim=2)  # 2 x (B, 1, D)
        x = self.out(self.norm(x) * (1 + scale) + shift)  # (B, T, p * p * outputs)
        rows = self.side // self.patch
        x = x.unflatten(1, (rows, rows)).unflatten(3, (self.patch, self.patch, self.outputs))
        found: Tensor = x.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)  # (B, outputs, h, w)
        return found


class Block(nn.Module):
    """Attention and an MLP, each behind a norm without weights of its own; the class and time shift, scale and gate them.

    Args:
        width, heads, mlp_ratio: see :class:`DiT`.
    """

    recomputed = True

    def __init__(self, width: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width, eps=EPS, elementwise_affine=False)
        self.attention = Attention(width, heads, qkv_bias=True)
        self.norm_mlp = nn.LayerNorm(width, eps=EPS, elementwise_affine=False)
        hidden = mlp_ratio * width
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))
        self.modulate = nn.Linear(width, 6 * width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, T, D), (B, D) -> (B, T, D)."""
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.modulate(F.silu(condition))[:, None].chunk(6, dim=2)
        x = x + gate * self.attention(self.norm_attention(x) * (1 + scale) + shift)
        out: Tensor = x + gate_mlp * self.mlp(self.norm_mlp(x) * (1 + scale_mlp) + shift_mlp)
        return out


def sine_positions(side: int, width: int) -> Tensor:
    """(side * side, width) float32: sines and cosines of the column, then of the row."""
    found = build_sincos2d_pos_embed([side, side], width)  # by sine or cosine, then by row or column
    positions: Tensor = found.unflatten(1, (2, 2, width // 4)).flip(2).transpose(1, 2).flatten(1)
    return positions


def time_frequencies(time: Tensor) -> Tensor:
    """(B,) -> (B, FREQUENCIES) float32: cosines, then sines, of periods up to 10,000."""
    half = FREQUENCIES // 2
    speeds = torch.exp(-math.log(10_000) / half * torch.arange(half, device=time.device))
    angles = time.float()[:, None] * speeds
    return torch.cat([angles.cos(), angles.sin()], dim=1)
