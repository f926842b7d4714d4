"""The UNet of latent diffusion (Rombach et al. 2022; CompVis/latent-diffusion:ldm/modules/diffusionmodules/openaimodel.py).

Letters: B images, C channels of the latent map, D of a level, h w its map, E of the time's embedding, S condition tokens
of length F.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqbench.errors import SpecError
from vqbench.generators.networks.dit import FREQUENCIES, time_frequencies

GROUPS = 32
HEAD = 32  # channels of one head


class UNet(nn.Module):
    """Residual blocks on maps of falling size and back, each path joined to the other; attention reads the condition.

    Args:
        channels: C, in and out.
        side: h = w of the latent map.
        base: D of the first level.
        multipliers: of `base`, one a level; each level but the first halves the map.
        blocks: residual blocks a level on the way down; one more on the way up.
        attention: factors of downsampling at which attention follows each block; the middle always has it.
        context: F.

    Raises:
        SpecError: sizes do not divide each other.
    """

    def __init__(
        self,
        *,
        channels: int,
        side: int,
        base: int,
        multipliers: tuple[int, ...],
        blocks: int,
        attention: tuple[int, ...],
        context: int,
    ) -> None:
        super().__init__()
        if base % GROUPS:
            raise SpecError(f"generator: base_channels {base} is no multiple of {GROUPS}")
        if side % 2 ** (len(multipliers) - 1):
            raise SpecError(f"generator: {len(multipliers)} levels do not divide the latent map's side {side}")
        embedding = 4 * base
        self.time = nn.Sequential(nn.Linear(FREQUENCIES, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.down = nn.ModuleList([Level([nn.Conv2d(channels, base, 3, padding=1)])])
        widths, width = [base], base
        for level, multiplier in enumerate(multipliers):
            if level:
                self.down.append(Level([nn.Conv2d(width, width, 3, 2, padding=1)]))
                widths.append(width)
            for _ in range(blocks):
                self.down.append(_level(width, multiplier * base, embedding, context, 2**level in attention))
                width = multiplier * base
                widths.append(width)
        self.middle = Level(
            [Residual(width, width, embedding), Attend(width, context), Residual(width, width, embedding)]
        )
        self.up = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for block in range(blocks + 1):
                part = _level(width + widths.pop(), multiplier * base, embedding, context, 2**level in attention)
                width = multiplier * base
                if level and block == blocks:
                    part.parts.append(Grow(width))
                self.up.append(part)
        self.norm, self.out = nn.GroupNorm(GROUPS, width), nn.Conv2d(width, channels, 3, padding=1)
        for module in (self.out, *(m for m in self.modules() if isinstance(m, Residual | Attend))):
            last = module if isinstance(module, nn.Conv2d) else module.last
            nn.init.zeros_(last.weight)  # every block starts as an identity, the network at zero
            assert last.bias is not None
            nn.init.zeros_(last.bias)

    def forward(self, latents: Tensor, time: Tensor, context: Tensor) -> Tensor:
        """(B, C, h, w), times (B,), condition (B, S, F) -> (B, C, h, w)."""
        embedding = self.time(time_frequencies(time).type_as(latents))  # (B, E)
        held, x = [], latents
        for part in self.down:
            x = part(x, embedding, context)
            held.append(x)
        x = self.middle(x, embedding, context)
        for part in self.up:
            x = part(torch.cat([x, held.pop()], dim=1), embedding, context)
        out: Tensor = self.out(F.silu(self.norm(x)))
        return out


def _level(width: int, wanted: int, embedding: int, context: int, attends: bool) -> Level:
    return Level([Residual(width, wanted, embedding), *([Attend(wanted, context)] if attends else [])])


class Level(nn.Module):
    """Parts in a row, each given what it reads of time and condition."""

    def __init__(self, parts: list[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor, embedding: Tensor, context: Tensor) -> Tensor:
        """(B, D, h, w), (B, E), (B, S, F) -> (B, D', h', w')."""
        for part in self.parts:
            if isinstance(part, Residual):
                x = part(x, embedding)
            elif isinstance(part, Attend):
                x = part(x, context)
            else:
                x = part(x)
        return x


class Grow(nn.Module):
    """Twice the side: nearest neighbours, then a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, D, 2h, 2w)."""
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


class Residual(nn.Module):
    """Two convolutions behind group norms; the time's embedding is added between them."""

    recomputed = True

    def __init__(self, width: int, wanted: int, embedding: int) -> None:
        super().__init__()
        self.norm_first, self.first = nn.GroupNorm(GROUPS, width), nn.Conv2d(width, wanted, 3, padding=1)
        self.time = nn.Linear(embedding, wanted)
        self.norm_last, self.last = nn.GroupNorm(GROUPS, wanted), nn.Conv2d(wanted, wanted, 3, padding=1)
        self.skip = nn.Identity() if width == wanted else nn.Conv2d(width, wanted, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, D, h, w), (B, E) -> (B, D', h, w)."""
        inner = self.first(F.silu(self.norm_first(x))) + self.time(F.silu(embedding))[:, :, None, None]
        out: Tensor = self.skip(x) + self.last(F.silu(self.norm_last(inner)))
        return out


class Attend(nn.Module):
    """A transformer block over the map's positions: to itself, to the condition, and a gated MLP; added to the map."""

    recomputed = True

    def __init__(self, width: int, context: int) -> None:
        super().__init__()
        self.norm, self.first = nn.GroupNorm(GROUPS, width), nn.Conv2d(width, width, 1)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.itself, self.condition = Cross(width, width), Cross(width, context)
        self.open, self.close = nn.Linear(width, 8 * width), nn.Linear(4 * width, width)
        self.last = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """(B, D, h, w), (B, S, F) -> (B, D, h, w)."""
        rows = self.first(self.norm(x)).flatten(2).transpose(1, 2)  # (B, h * w, D)
        normed = self.norms[0](rows)
        rows = rows + self.itself(normed, normed)
        rows = rows + self.condition(self.norms[1](rows), context)
        value, gate = self.open(self.norms[2](rows)).chunk(2, dim=2)  # 2 x (B, h * w, 4D)
        rows = rows + self.close(value * F.gelu(gate))
        out: Tensor = x + self.last(rows.transpose(1, 2).unflatten(2, x.shape[2:]))
        return out


class Cross(nn.Module):
    """Attention from one sequence to another, in heads of :data:`HEAD` channels."""

    def __init__(self, width: int, context: int) -> None:
        super().__init__()
        self.heads = width // HEAD
        self.query, self.key, self.value = (nn.Linear(n, width, bias=False) for n in (width, context, context))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """(B, T, D), (B, S, F) -> (B, T, D)."""
        q, k, v = (f(y).unflatten(2, (self.heads, HEAD)).transpose(1, 2)
                   for f, y in ((self.query, x), (self.key, context), (self.value, context)))  # fmt: skip
        out: Tensor = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out
