"""The adversaries of tokenizer recipes, found by name, and the PatchGAN one. StyleGAN2's is in stylegan2.py.

Letters: B images, H W pixels, h w the map of logits.
"""

from __future__ import annotations

from torch import Tensor, nn

from vqbench.errors import SpecError
from vqbench.specs import DiscriminatorSpec
from vqbench.tokenizers.networks.initialise import seeded_init
from vqbench.tokenizers.networks.stylegan2 import StyleGAN2Discriminator


class PatchGAN(nn.Module):
    """A map of logits, one for each patch (Isola et al. 2017; CompVis/taming-transformers:
    taming/modules/discriminator/model.py).

    `num_layers` 4x4 convolutions with stride 2 and two with stride 1. BatchNorm uses the statistics of the batch that
    it is given, i.e. of a micro-batch, in eval mode too: no training step reads running ones, so none are kept.
    """

    def __init__(self, *, base_channels: int = 64, num_layers: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, base_channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width = base_channels
        for index in range(1, num_layers + 1):
            wider = base_channels * min(2**index, 8)
            layers += _patch_layer(width, wider, stride=2 if index < num_layers else 1)
            width = wider
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 1, 4, padding=1))
        self.apply(_dcgan_init)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> logits (B, 1, h, w) with h = H / 2^num_layers - 2."""
        logits: Tensor = self.layers(images)
        return logits


def _patch_layer(in_channels: int, out_channels: int, stride: int) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, out_channels, 4, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(out_channels, track_running_stats=False),
        nn.LeakyReLU(0.2),
    ]


def _dcgan_init(module: nn.Module) -> None:
    """Weights N(0, 0.02), BatchNorm's scales N(1, 0.02) (Radford et al. 2016)."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)


def build_discriminator(spec: DiscriminatorSpec, resolution: int, seed: int = 0) -> nn.Module:
    """The untrained discriminator, images (B, 3, H, W) in [-1, 1] -> logits; its weights follow from `seed`.

    Args:
        spec: ``base_channels``: the first layer's width (at full resolution); ``num_layers``: PatchGAN's only.
        resolution: H = W in pixels.
        seed: of the initial weights.

    Raises:
        SpecError: PatchGAN would shrink the image to nothing, or StyleGAN2's gets a resolution that is no power of two.
    """
    with seeded_init(seed, "discriminator", spec.name):
        if spec.name == "stylegan2":
            return StyleGAN2Discriminator(resolution, base_channels=spec.base_channels)
        smallest = 3 * 2**spec.num_layers
        if resolution < smallest:
            raise SpecError(f"discriminator: patchgan with num_layers {spec.num_layers} needs images of {smallest} px, "
                            f"these have {resolution}; use fewer layers")  # fmt: skip
        return PatchGAN(base_channels=spec.base_channels, num_layers=spec.num_layers)
