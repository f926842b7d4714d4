"""A convolutional encoder and decoder around a quantizer: what VQGAN's family and the channel-wise one share."""

from __future__ import annotations

from torch import Tensor, nn

from vqbench.errors import SpecError
from vqbench.specs import TokenizerSpec
from vqbench.tokenizers.base import Quantizer, Tokenizer
from vqbench.tokenizers.networks.conv import Decoder, Encoder


class ConvTokenizer(Tokenizer):
    """VQGAN's encoder and decoder, of the widths in ``spec.options``, around `quantizer`.

    Args:
        spec: options ``base_channels``, ``multipliers``, ``num_res_blocks`` are read here.
        quantizer: on latents (B, C, h, w).
        latent_channels: channels between the encoder's last convolution and the quantizer.
        code_channels: C, where 1x1 convolutions lead from `latent_channels` to C and back (VQGAN's quant_conv and
            post_quant_conv); None leaves them out, and C is `latent_channels`.
        attention_resolutions, mid_attention: see :class:`~vqbench.tokenizers.networks.conv.Encoder`.

    Raises:
        SpecError: the multipliers do not lead from the resolution to the grid.
    """

    def __init__(
        self,
        spec: TokenizerSpec,
        quantizer: Quantizer,
        *,
        latent_channels: int,
        code_channels: int | None,
        attention_resolutions: tuple[int, ...],
        mid_attention: bool,
    ) -> None:
        super().__init__()
        options = spec.options
        side = spec.resolution / 2 ** (len(options["multipliers"]) - 1)
        if side != spec.tokens.grid:
            raise SpecError(f"{spec.family}: {len(options['multipliers'])} multipliers lead from {spec.resolution} px "
                            f"to a side of {side:g}, the tokens' grid is {spec.tokens.grid}")  # fmt: skip
        shape = {
            "resolution": spec.resolution, "base_channels": options["base_channels"],
            "multipliers": tuple(options["multipliers"]), "num_res_blocks": options["num_res_blocks"],
            "attention_resolutions": attention_resolutions, "mid_attention": mid_attention,
            "latent_channels": latent_channels,
        }  # fmt: skip
        self.tokens = spec.tokens
        self.encoder, self.decoder = Encoder(**shape), Decoder(**shape)
        self.quantizer = quantizer
        self.quant_conv, self.post_quant_conv = _bridge(latent_channels, code_channels)

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, h, w)."""
        h = self.encoder(images)  # (B, latent_channels, h, w)
        out: Tensor = self.quant_conv(h)  # (B, C, h, w)
        return out

    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 3, H, W), not clipped."""
        h = self.post_quant_conv(latents)  # (B, latent_channels, h, w)
        out: Tensor = self.decoder(h)  # (B, 3, H, W)
        return out

    @property
    def last_layer(self) -> Tensor:
        """(3, base_channels, 3, 3)."""
        return self.decoder.conv_out.weight


def _bridge(latent_channels: int, code_channels: int | None) -> tuple[nn.Module, nn.Module]:
    if code_channels is None:
        return nn.Identity(), nn.Identity()
    return nn.Conv2d(latent_channels, code_channels, 1), nn.Conv2d(code_channels, latent_channels, 1)
