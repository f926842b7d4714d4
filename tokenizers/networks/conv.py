"""VQGAN's convolutional encoder and decoder (Esser et al. 2021, CompVis/taming-transformers:
taming/modules/diffusionmodules/model.py).

Letters: B images, C channels of a map, h w its sides; L levels, each half the side of the one before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation with 32 groups, or the most below 32 that divide `channels`."""
    return nn.GroupNorm(math.gcd(32, channels), channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """Twice (normalise, SiLU, 3x3 convolution), added to the input, which a 1x1 convolution widens where needed."""

    recomputed = True

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        same = in_channels == out_channels
        self.shortcut: nn.Module = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, h, w) -> (B, C_out, h, w)."""
        h = self.conv1(F.silu(self.norm1(x)))  # (B, C_out, h, w)
        h = self.conv2(F.silu(self.norm2(h)))  # (B, C_out, h, w)
        out: Tensor = self.shortcut(x) + h
        return out


class AttentionBlock(nn.Module):
    """One head of self-attention over all positions of a map, added to the input."""

    recomputed = True

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        qkv = self.qkv(self.norm(x)).flatten(2).transpose(1, 2)  # (B, h*w, 3C)
        q, k, v = qkv.unsqueeze(1).chunk(3, dim=-1)  # (B, 1, h*w, C) each
        h = F.scaled_dot_product_attention(q, k, v)  # (B, 1, h*w, C)
        h = h.squeeze(1).transpose(1, 2).reshape(x.shape)  # (B, C, h, w)
        out: Tensor = x + self.out(h)
        return out


class Downsample(nn.Module):
    """3x3 convolution with stride 2. Zeros are added right and below only, as in VQGAN."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, 2h, 2w) -> (B, C, h, w)."""
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return out


class Upsample(nn.Module):
    """Nearest-neighbour doubling, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, 2h, 2w)."""
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


def _blocks(in_channels: int, out_channels: int, count: int, attention: bool) -> list[nn.Module]:
    """`count` residual blocks, each followed by attention where this level has it."""
    found: list[nn.Module] = []
    for index in range(count):
        found.append(ResidualBlock(in_channels if index == 0 else out_channels, out_channels))
        if attention:
            found.append(AttentionBlock(out_channels))
    return found


def _middle(channels: int, attention: bool) -> list[nn.Module]:
    inner = [AttentionBlock(channels)] if attention else []
    return [ResidualBlock(channels, channels), *inner, ResidualBlock(channels, channels)]


class Encoder(nn.Module):
    """Images to a latent map with a side of ``resolution / 2^(L-1)``.

    Args:
        resolution: H = W of the images, to know which level's side is listed in `attention_resolutions`.
        base_channels: width of the first level; level i has ``base_channels * multipliers[i]``.
        multipliers: one per level; there is a halving between two levels.
        num_res_blocks: residual blocks a level (the decoder has one more, as in VQGAN).
        attention_resolutions: sides of the maps after whose residual blocks attention follows; may be empty.
        mid_attention: attention between the two residual blocks at the smallest map.
        latent_channels: channels of the latent map.
    """

    def __init__(
        self,
        *,
        resolution: int,
        base_channels: int,
        multipliers: Sequence[int],
        num_res_blocks: int,
        attention_resolutions: Sequence[int],
        mid_attention: bool,
        latent_channels: int,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = base_channels
        for level, multiplier in enumerate(multipliers):
            if level > 0:
                layers.append(Downsample(width))
            attention = resolution >> level in attention_resolutions
            layers += _blocks(width, base_channels * multiplier, num_res_blocks, attention)
            width = base_channels * multiplier
        self.conv_in = nn.Conv2d(3, base_channels, 3, padding=1)
        self.levels = nn.Sequential(*layers)
        self.middle = nn.Sequential(*_middle(width, mid_attention))
        self.norm_out = group_norm(width)
        self.conv_out = nn.Conv2d(width, latent_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, latent_channels, h, w)."""
        h = self.levels(self.conv_in(images))  # (B, C_last, h, w)
        h = self.middle(h)  # (B, C_last, h, w)
        out: Tensor = self.conv_out(F.silu(self.norm_out(h)))  # (B, latent_channels, h, w)
        return out


class Decoder(nn.Module):
    """The encoder's mirror: a latent map to images. Arguments as for :class:`Encoder`; `resolution` is the output's."""

    def __init__(
        self,
        *,
        resolution: int,
        base_channels: int,
        multipliers: Sequence[int],
        num_res_blocks: int,
        attention_resolutions: Sequence[int],
        mid_attention: bool,
        latent_channels: int,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        top = width = base_channels * multipliers[-1]
        for level, multiplier in reversed(list(enumerate(multipliers))):
            attention = resolution >> level in attention_resolutions
            layers += _blocks(width, base_channels * multiplier, num_res_blocks + 1, attention)
            width = base_channels * multiplier
            if level > 0:
                layers.append(Upsample(width))
        self.conv_in = nn.Conv2d(latent_channels, top, 3, padding=1)
        self.middle = nn.Sequential(*_middle(top, mid_attention))
        self.levels = nn.Sequential(*layers)
        self.norm_out = group_norm(width)
        self.conv_out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        """(B, latent_channels, h, w) -> (B, 3, H, W), not clipped."""
        h = self.middle(self.conv_in(latents))  # (B, C_last, h, w)
        h = self.levels(h)  # (B, C_first, H, W)
        out: Tensor = self.conv_out(F.silu(self.norm_out(h)))  # (B, 3, H, W)
        return out
