"""StyleGAN2's residual discriminator (Karras et al. 2020, Sec. 4 and appendix B; NVlabs/stylegan2-ada-pytorch:
training/networks.py). It always computes in float32.

Letters: B images, C channels, H W sides of a map, G groups of the minibatch standard deviation.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqbench.errors import SpecError
from vqbench.switches import at_least_fp32


class EqualisedConv2d(nn.Module):
    """A convolution, blurred before its stride, with weights N(0, 1) scaled at run time by fan_in^-0.5.

    So Adam's steps have the same relative size in every layer (Karras et al. 2018, Sec. 4.1).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, *, down: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.scale = (in_channels * kernel * kernel) ** -0.5
        self.kernel, self.down = kernel, down
        self.blur = Blur() if down > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H / down, W / down)."""
        weight = self.weight * self.scale
        if self.blur is None:
            return F.conv2d(x, weight, self.bias, padding=self.kernel // 2)
        # the blur pads for itself and for the convolution, so that the map halves exactly
        return F.conv2d(self.blur(x, self.kernel - 1), weight, self.bias, stride=self.down)


class EqualisedLinear(nn.Module):
    """A linear layer with the run-time scale of :class:`EqualisedConv2d`."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features))
        self.scale = in_features**-0.5

    def forward(self, x: Tensor) -> Tensor:
        """(B, in) -> (B, out)."""
        return F.linear(x, self.weight * self.scale, self.bias)


class Blur(nn.Module):
    """The FIR low-pass [1, 3, 3, 1], separable, of unit sum, on each channel by itself."""

    def __init__(self) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
        kernel = torch.outer(taps, taps)
        self.kernel = nn.Buffer(kernel / kernel.sum())

    def forward(self, x: Tensor, extra: int) -> Tensor:
        """(B, C, H, W) -> (B, C, H + extra - 1, W + extra - 1), `extra` being what a following convolution takes off."""
        left, right = (extra + 3) // 2, (extra + 2) // 2
        channels = x.shape[1]
        padded = F.pad(x, (left, right, left, right))
        return F.conv2d(padded, self.kernel.expand(channels, 1, 4, 4), groups=channels)


class MinibatchStd(nn.Module):
    """One more channel: the deviation over a group of images, averaged over channels and positions.

    A group has `group_size` images, or the most below that which divide the batch.
    """

    def __init__(self, group_size: int = 4) -> None:
        super().__init__()
        self.group_size = group_size

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C + 1, H, W)."""
        batch, _, height, width = x.shape
        size = next(s for s in range(min(self.group_size, batch), 0, -1) if batch % s == 0)
        groups = x.view(size, batch // size, *x.shape[1:])  # (size, G, C, H, W)
        deviation = (groups.var(0, correction=0) + 1e-8).sqrt().mean((1, 2, 3))  # (G,)
        extra = deviation.repeat(size).view(batch, 1, 1, 1).expand(-1, -1, height, width)  # (B, 1, H, W)
        return torch.cat([x, extra], dim=1)


def _lrelu(x: Tensor) -> Tensor:
    """Leaky ReLU that keeps the variance."""
    return F.leaky_relu(x, 0.2) * math.sqrt(2)


class DiscriminatorBlock(nn.Module):
    """Two 3x3 convolutions, the second halving the map, and a 1x1 short cut that halves it too."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv0 = EqualisedConv2d(in_channels, in_channels, 3)
        self.conv1 = EqualisedConv2d(in_channels, out_channels, 3, down=2)
        self.skip = EqualisedConv2d(in_channels, out_channels, 1, down=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H/2, W/2)."""
        h = _lrelu(self.conv1(_lrelu(self.conv0(x))))  # (B, C_out, H/2, W/2)
        out: Tensor = (h + self.skip(x)) / math.sqrt(2)
        return out


class StyleGAN2Discriminator(nn.Module):
    """One logit for an image.

    Args:
        resolution: H = W, a power of two, 8 or more.
        base_channels: width at full resolution; it doubles with each halving, up to `max_channels`. StyleGAN2 has 64 at
            256 px (its smaller configuration) and 32 at 512 px.
        max_channels: the widest layer.

    Raises:
        SpecError: the resolution is no power of two, or below 8.
    """

    def __init__(self, resolution: int, *, base_channels: int = 64, max_channels: int = 512) -> None:
        super().__init__()
        if resolution < 8 or resolution & (resolution - 1):
            raise SpecError(f"discriminator: stylegan2 needs a resolution of 8, 16, 32, ..., not {resolution}")
        halvings = resolution.bit_length() - 3  # down to 4 x 4
        widths = [min(max_channels, base_channels * 2**i) for i in range(halvings + 1)]
        self.from_rgb = EqualisedConv2d(3, widths[0], 1)
        blocks = [DiscriminatorBlock(a, b) for a, b in pairwise(widths)]
        self.blocks = nn.Sequential(*blocks)
        self.minibatch_std = MinibatchStd()
        self.conv = EqualisedConv2d(widths[-1] + 1, widths[-1], 3)
        self.hidden = EqualisedLinear(widths[-1] * 16, widths[-1])
        self.out = EqualisedLinear(widths[-1], 1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> logits (B, 1), float32 under autocast too."""
        # On the meta device (FLOPs are counted there) autocast has nothing to disable and no dtype of its own.
        with torch.autocast("cpu" if images.is_meta else images.device.type, enabled=False):
            h = _lrelu(self.from_rgb(at_least_fp32(images)))  # (B, C_first, H, W)
            h = self.minibatch_std(self.blocks(h))  # (B, C_last + 1, 4, 4)
            h = _lrelu(self.conv(h)).flatten(1)  # (B, C_last * 16)
            logits: Tensor = self.out(_lrelu(self.hidden(h)))  # (B, 1)
        return logits
