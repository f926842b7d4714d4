"""What one code stands for: the channels at a position (raster) or the whole map of a channel (cq Sec. 3.2).

Letters: B images, C channels, h w the latent map, d the length of a code.
"""

from __future__ import annotations

from torch import Tensor

from vqbench.specs import TokenSpec


def to_vectors(latents: Tensor, tokens: TokenSpec) -> Tensor:
    """(B, C, h, w) -> (B*N, d): raster N = h*w, d = C; channel N = C, d = h*w.

    Raises:
        ValueError: the map does not have the shape of these tokens (an image of another size, for one).
    """
    expected = tokens.latent_shape
    if latents.shape[1:] != expected:
        raise ValueError(f"latents {tuple(latents.shape)} are not (B, {', '.join(map(str, expected))}); "
                         "is the image of the tokenizer's resolution?")  # fmt: skip
    if tokens.layout == "channel":
        return latents.flatten(2).flatten(0, 1)  # (B*C, h*w)
    return latents.permute(0, 2, 3, 1).flatten(0, 2)  # (B*h*w, C)


def from_vectors(vectors: Tensor, tokens: TokenSpec) -> Tensor:
    """(B*N, d) -> (B, C, h, w), the inverse of :func:`to_vectors`."""
    channels, height, width = tokens.latent_shape
    if tokens.layout == "channel":
        return vectors.view(-1, channels, height, width)  # (B, C, h, w)
    return vectors.view(-1, height, width, channels).permute(0, 3, 1, 2).contiguous()  # (B, C, h, w)
