"""The blocks of Inception-v3 (2015-12-05), made for speed.

The graph and the names of the weights are torch-fidelity's (toshas/torch-fidelity:torch_fidelity/
feature_extractor_inceptionv3.py). Three rewritings, exact in real numbers: batch norm is folded into the convolution
before it; 1x1 convolutions of one input run as one; a 1x1 convolution goes before the average pooling that it followed.

Letters: B images, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqbench.eval.judge_network import Weights

EPSILON = 0.001  # of batch norm
FEW = 32  # channels that are folded at once


def fold(weights: Weights, name: str, weight: Tensor, bias: Tensor) -> None:
    """Write a convolution without bias and its batch norm as one float32 weight and bias, folded in float64.

    A few channels at a time: the allocator keeps what whole copies in float64 would leave behind.
    """
    outputs = len(bias)
    given = weights.take(f"{name}.conv.weight", *weight.shape)
    gamma, beta, mean, variance = (
        weights.take(f"{name}.bn.{part}", outputs).double()
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    scale = gamma / (variance + EPSILON).sqrt()
    for to, rows, factors in zip(weight.split(FEW), given.split(FEW), scale.split(FEW), strict=True):
        to.copy_(rows.double() * factors[:, None, None, None])
    bias.copy_(beta - mean * scale)


class Conv(nn.Module):
    """Convolution, batch norm, ReLU; several of the same input and kernel side by side.

    Args:
        outputs: name of each part -> its channels.
        kernel: (height, width); padded to keep the size unless `valid` or strided.
        bare: the last channels, that many, get their ReLU later, after a pooling.
    """

    def __init__(
        self,
        weights: Weights,
        outputs: Mapping[str, int],
        inputs: int,
        kernel: tuple[int, int] = (1, 1),
        stride: int = 1,
        valid: bool = False,
        bare: int = 0,
    ) -> None:
        super().__init__()
        total = sum(outputs.values())
        self.weight = nn.Buffer(torch.empty(total, inputs, *kernel, memory_format=torch.channels_last))
        self.bias = nn.Buffer(torch.empty(total))
        sizes = list(outputs.values())
        for name, weight, bias in zip(outputs, self.weight.split(sizes), self.bias.split(sizes), strict=True):
            fold(weights, name, weight, bias)
        self.stride, self.through = stride, len(self.bias) - bare
        self.padding = (0, 0) if valid or stride > 1 else (kernel[0] // 2, kernel[1] // 2)

    def forward(self, x: Tensor) -> Tensor:
        found = F.conv2d(x, self.weight, self.bias, self.stride, self.padding)
        if self.through:
            found[:, : self.through].relu_()
        return found


class Mixed(nn.Module):
    """A block: branches side by side, concatenated.

    Args:
        heads: the branches' first 1x1 convolutions as one.
        chains: what follows each head, and its channels.
        before, after: branches that read the block's input itself, by their place in the output.
    """

    def __init__(
        self,
        heads: Conv,
        chains: Sequence[tuple[int, nn.Module]],
        before: Sequence[nn.Module] = (),
        after: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__()
        self.heads, self.sizes = heads, [size for size, _ in chains]
        self.chains = nn.ModuleList(chain for _, chain in chains)
        self.before, self.after = nn.ModuleList(before), nn.ModuleList(after)

    def branches(self, x: Tensor) -> list[Tensor]:
        """Each branch's output, (B, C, H', W')."""
        heads = self.heads(x).split(self.sizes, dim=1)
        middle = [chain(head) for chain, head in zip(self.chains, heads, strict=True)]
        return [*(branch(x) for branch in self.before), *middle, *(branch(x) for branch in self.after)]

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(self.branches(x), dim=1)


class Average(nn.Module):
    """3x3 average that leaves the padding out, as TensorFlow's; then the ReLU of the convolution before it."""

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False).relu_()


class Fork(nn.Module):
    """1x3 and 3x1 side by side."""

    def __init__(self, across: Conv, down: Conv) -> None:
        super().__init__()
        self.across, self.down = across, down

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.across(x), self.down(x)], dim=1)


class Builder:
    """The blocks of one network, out of its weights."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights

    def conv(
        self, name: str, inputs: int, outputs: int, kernel: int | tuple[int, int], stride: int = 1, **options: Any
    ) -> Conv:
        """One convolution."""
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        return Conv(self.weights, {name: outputs}, inputs, sides, stride, **options)

    def heads(self, block: str, inputs: int, outputs: Mapping[str, int], bare: int = 0) -> Conv:
        """1x1 convolutions of one input."""
        return Conv(self.weights, {f"{block}.{name}": n for name, n in outputs.items()}, inputs, bare=bare)

    def chain(self, block: str, names: Sequence[str], widths: Sequence[int], kernels: Sequence[tuple[int, int]],
              stride: int = 1) -> nn.Sequential:  # fmt: skip
        """Convolutions one after the other, the last with a stride."""
        strides = [1] * (len(names) - 1) + [stride]
        steps = zip(names, pairwise(widths), kernels, strides, strict=True)
        return nn.Sequential(*(self.conv(f"{block}.{name}", i, o, kernel, s) for name, (i, o), kernel, s in steps))

    def a(self, block: str, inputs: int, pooled: int) -> Mixed:
        """35x35: 1x1, 5x5, 3x3 twice, average."""
        heads = {"branch1x1": 64, "branch5x5_1": 48, "branch3x3dbl_1": 64, "branch_pool": pooled}
        five = self.chain(block, ["branch5x5_2"], [48, 64], [(5, 5)])
        double = self.chain(block, ["branch3x3dbl_2", "branch3x3dbl_3"], [64, 96, 96], [(3, 3)] * 2)
        chains = [(64, nn.Identity()), (48, five), (64, double), (pooled, Average())]
        return Mixed(self.heads(block, inputs, heads, pooled), chains)

    def b(self, block: str, inputs: int) -> Mixed:
        """35x35 to 17x17."""
        double = self.chain(block, ["branch3x3dbl_2", "branch3x3dbl_3"], [64, 96, 96], [(3, 3)] * 2, stride=2)
        before = [self.conv(f"{block}.branch3x3", inputs, 384, 3, stride=2)]
        return Mixed(
            self.heads(block, inputs, {"branch3x3dbl_1": 64}), [(64, double)], before, [nn.MaxPool2d(3, stride=2)]
        )

    def c(self, block: str, inputs: int, width: int) -> Mixed:
        """17x17: 1x1, 7x7 in two, 7x7 twice in four, average."""
        heads = {"branch1x1": 192, "branch7x7_1": width, "branch7x7dbl_1": width, "branch_pool": 192}
        seven = self.chain(block, ["branch7x7_2", "branch7x7_3"], [width, width, 192], [(1, 7), (7, 1)])
        names = [f"branch7x7dbl_{i}" for i in (2, 3, 4, 5)]
        double = self.chain(block, names, [*[width] * 4, 192], [(7, 1), (1, 7)] * 2)
        chains = [(192, nn.Identity()), (width, seven), (width, double), (192, Average())]
        return Mixed(self.heads(block, inputs, heads, 192), chains)

    def d(self, block: str, inputs: int) -> Mixed:
        """17x17 to 8x8."""
        three = self.chain(block, ["branch3x3_2"], [192, 320], [(3, 3)], stride=2)
        names = [f"branch7x7x3_{i}" for i in (2, 3, 4)]
        seven = self.chain(block, names, [192] * 4, [(1, 7), (7, 1), (3, 3)], stride=2)
        heads = self.heads(block, inputs, {"branch3x3_1": 192, "branch7x7x3_1": 192})
        return Mixed(heads, [(192, three), (192, seven)], after=[nn.MaxPool2d(3, stride=2)])

    def e(self, block: str, inputs: int, average: bool) -> Mixed:
        """8x8: 1x1, 3x3 forked, 3x3 twice forked, and a pooled branch: the last block's takes the maximum."""
        heads = {"branch1x1": 320, "branch3x3_1": 384, "branch3x3dbl_1": 448}
        three = self.fork(f"{block}.branch3x3_2")
        double = nn.Sequential(self.conv(f"{block}.branch3x3dbl_2", 448, 384, 3), self.fork(f"{block}.branch3x3dbl_3"))
        chains: list[tuple[int, nn.Module]] = [(320, nn.Identity()), (384, three), (448, double)]
        if average:
            return Mixed(self.heads(block, inputs, heads | {"branch_pool": 192}, 192), [*chains, (192, Average())])
        maximum = nn.Sequential(nn.MaxPool2d(3, 1, 1), self.conv(f"{block}.branch_pool", inputs, 192, 1))
        return Mixed(self.heads(block, inputs, heads), chains, after=[maximum])

    def fork(self, name: str) -> Fork:
        """``<name>a`` and ``<name>b``."""
        return Fork(self.conv(f"{name}a", 384, 384, (1, 3)), self.conv(f"{name}b", 384, 384, (3, 1)))
