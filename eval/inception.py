"""Inception-v3 of 2015-12-05, the judge of FID, IS, precision and recall: torch-fidelity's graph, made for speed.

Letters: B images, C channels.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqbench.eval.inception_blocks import Builder, Mixed
from vqbench.eval.judge_network import Found, JudgeNetwork, Weights

CLASSES = 1008
ORDER = ("64", "192", "spatial", "768", "2048")  # in which the trunk meets its layers
PIECE = 1  # images that go through the stem together on a CPU: its maps are large, and one image's stay in cache
SPATIAL = 7  # channels of sFID: openai/guided-diffusion:evaluations/evaluator.py, spatial[..., :7]


class InceptionV3(JudgeNetwork):
    """Layers of torch-fidelity's module to 1e-4, and sFID's.

    ``64``, ``192``, ``768``, ``2048``: means over the map of the last layer of so many channels.
    ``logits_unbiased``, ``logits``: (B, 1008), without and with the last layer's bias.
    ``spatial``: (B, 2023), TensorFlow's ``mixed_6/conv`` (here Mixed_6d.branch1x1, after its ReLU), the first seven
    channels of 17x17, flattened in TensorFlow's order: row, column, channel.

    Each max pooling of the stem comes before the ReLU that it followed: the same numbers on a quarter of the map.
    """

    layers = ("64", "192", "768", "2048", "logits_unbiased", "logits", "spatial")
    size = 299
    chunk = 4

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        b = Builder(weights)
        self.to_64 = nn.Sequential(
            b.conv("Conv2d_1a_3x3", 3, 32, 3, stride=2),
            b.conv("Conv2d_2a_3x3", 32, 32, 3, valid=True),
            b.conv("Conv2d_2b_3x3", 32, 64, 3, bare=64),
            PoolReLU(),
        )
        self.to_192 = nn.Sequential(
            b.conv("Conv2d_3b_1x1", 64, 80, 1), b.conv("Conv2d_4a_3x3", 80, 192, 3, valid=True, bare=192), PoolReLU()
        )
        self.to_6d = nn.Sequential(
            b.a("Mixed_5b", 192, 32), b.a("Mixed_5c", 256, 64), b.a("Mixed_5d", 288, 64), b.b("Mixed_6a", 288),
            b.c("Mixed_6b", 768, 128), b.c("Mixed_6c", 768, 160),
        )  # fmt: skip
        self.mixed_6d: Mixed = b.c("Mixed_6d", 768, 160)
        self.to_768 = b.c("Mixed_6e", 768, 192)
        self.to_2048 = nn.Sequential(
            b.d("Mixed_7a", 768), b.e("Mixed_7b", 1280, average=True), b.e("Mixed_7c", 2048, average=False)
        )
        self.fc_weight = nn.Buffer(weights.take("fc.weight", CLASSES, 2048).clone())
        self.fc_bias = nn.Buffer(weights.take("fc.bias", CLASSES).clone())
        weights.end()

    def forward(self, levels: Tensor, wanted: Collection[str]) -> Found:
        """(B, 3, 299, 299) in [0, 255] -> the `wanted` layers; the trunk ends at the last of them."""
        found = self._trunk(levels, wanted)
        if "logits_unbiased" in wanted:
            found["logits_unbiased"] = found["2048"] @ self.fc_weight.T  # (B, 1008)
        if "logits" in wanted:
            found["logits"] = F.linear(found["2048"], self.fc_weight, self.fc_bias)  # (B, 1008)
        return {name: found[name] for name in wanted}

    def _trunk(self, levels: Tensor, wanted: Collection[str]) -> Found:
        """The `wanted` layers of the trunk; ``2048`` as well where logits are."""
        last = max(ORDER.index(name) if name in ORDER else len(ORDER) - 1 for name in wanted)
        piece = PIECE if levels.device.type == "cpu" else len(levels)
        stems = [self._stem(part, wanted, last) for part in levels.split(piece)]
        found: Found = {name: torch.cat([stem[name] for stem in stems]) for name in stems[0]}
        x = found.pop("map")  # (B, 192, 35, 35) where it is needed
        del stems
        if last > ORDER.index("192"):
            branches = self.mixed_6d.branches(self.to_6d(x))  # each (B, C, 17, 17)
            if "spatial" in wanted:
                found["spatial"] = branches[0][:, :SPATIAL].permute(0, 2, 3, 1).flatten(1)  # (B, 2023)
            if last > ORDER.index("spatial"):
                found |= self._end(torch.cat(branches, dim=1), wanted, last)
        return found

    def _stem(self, levels: Tensor, wanted: Collection[str], last: int) -> Found:
        """``map``, what the blocks read, and the `wanted` layers before them."""
        found: Found = {}
        x = levels.sub(128).div_(128).contiguous(memory_format=torch.channels_last)
        x = self.to_64(x)  # (B, 64, 73, 73)
        if "64" in wanted:
            found["64"] = x.mean((2, 3))
        if last > ORDER.index("64"):
            x = self.to_192(x)  # (B, 192, 35, 35)
        if "192" in wanted:
            found["192"] = x.mean((2, 3))
        return found | {"map": x}

    def _end(self, x: Tensor, wanted: Collection[str], last: int) -> Found:
        """From Mixed_6d's output (B, 768, 17, 17) on."""
        found: Found = {}
        x = self.to_768(x)  # (B, 768, 17, 17)
        if "768" in wanted:
            found["768"] = x.mean((2, 3))
        if last == ORDER.index("2048"):
            found["2048"] = self.to_2048(x).mean((2, 3))  # of (B, 2048, 8, 8)
        return found


class PoolReLU(nn.Module):
    """3x3 maximum with stride 2, then ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 3, 2).relu_()


def open_inception(path: Path) -> InceptionV3:
    """The network with the weights of a file as torch-fidelity loads it."""
    return InceptionV3(Weights(path, "inception-v3"))
