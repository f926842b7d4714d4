"""Vector quantization with a learned codebook (van den Oord et al. 2017), one code for each position or each channel.

Letters: B images, C channels, h w the latent map, N ids an image, K codes of length d, M vectors of a batch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from vqbench.errors import SpecError, nearest
from vqbench.specs import TokenSpec
from vqbench.switches import at_least_fp32
from vqbench.tokenizers.base import Quantized, Quantizer
from vqbench.tokenizers.quantizers.entropy import entropy_loss
from vqbench.tokenizers.quantizers.layouts import from_vectors, to_vectors
from vqbench.tokenizers.quantizers.nearest import nearest_code

INITS = ("uniform", "normal", "samples")
SIMILARITIES = ("euclidean", "cosine")
SHORT = 1e-12  # what F.normalize divides by at least: a shorter code has no direction
BEYOND = 4.0  # a vector of such numbers is farther from each vector of length 1 than they are from each other
SAMPLE_NOISE = 0.3  # of init "samples", in deviations of the batch


class StraightThrough(torch.autograd.Function):
    """The codes forward, bit for bit; backward, their gradient as the gradient of what was quantized.

    The usual ``z + (q - z).detach()`` is not q in floating point: decoded ids would differ from what was trained.
    """

    @staticmethod
    def forward(ctx: Any, latents: Tensor, codes: Tensor) -> Tensor:
        """(..., d), (..., d) -> the second."""
        return codes.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """The gradient passes to the first input."""
        return grads[0], None


class VectorQuantizer(Quantizer):
    """Nearest code, on the raster or the channel layout of a :class:`~vqbench.specs.TokenSpec`.

    Losses, unweighted, means over all elements: ``codebook`` = mean (sg[z] - e)^2, ``commitment`` = mean (z - sg[e])^2.
    (cq Eq. 3 prints z^q where z is meant: as printed both would be zero.) ``entropy`` is added in training mode where
    `entropy_temperature` is positive.

    Args:
        tokens: gives layout, grid, num_codes K and code_dim d.
        init: ``uniform`` on +-1/K (taming/modules/vqvae/quantize.py); ``normal`` with deviation d^-0.5 (SimVQ);
            ``samples``: the vectors of the first batch seen in training mode, with a little noise (ours: all codes
            start among the encoder's outputs). Over several processes rank 0's batch is taken.
        similarity: ``euclidean`` or ``cosine``: how the nearest code is found. Codes keep their length either way; by
            cosine a code without length is never preferred to one that has a direction.
        l2_normalize: vectors and codes are compared and looked up at length 1 (LlamaGen).
        entropy_temperature: of the soft assignment in the entropy term; 0 is off (MaskGIT's tokenizer: 0.01).

    Raises:
        SpecError: unknown `init` or `similarity`.
    """

    def __init__(
        self,
        tokens: TokenSpec,
        *,
        init: str = "uniform",
        similarity: str = "euclidean",
        l2_normalize: bool = False,
        entropy_temperature: float = 0.0,
    ) -> None:
        super().__init__()
        for name, value, known in (("init", init, INITS), ("similarity", similarity, SIMILARITIES)):
            if value not in known:
                raise SpecError(f"quantizer: {name} is '{value}'; {nearest(value, known)}")
        self.tokens, self.l2_normalize, self.entropy_temperature = tokens, l2_normalize, entropy_temperature
        self.cosine = similarity == "cosine"
        weight = torch.empty(tokens.num_codes, tokens.code_dim)
        if init == "uniform":
            nn.init.uniform_(weight, -1 / tokens.num_codes, 1 / tokens.num_codes)
        else:
            nn.init.normal_(weight, std=tokens.code_dim**-0.5)
        self.weight: Tensor = nn.Parameter(weight)
        # persistent, so that a resumed run does not start its codebook again
        self.initialised = nn.Buffer(torch.tensor(init != "samples"))

    def codebook(self) -> Tensor:
        """(K, d)."""
        return F.normalize(self.weight, dim=1) if self.l2_normalize else self.weight

    def compared(self) -> Tensor:
        """(K, d)."""
        return directions(self.codebook()) if self.cosine else self.codebook()

    def forward(self, latents: Tensor) -> Quantized:
        """(B, C, h, w) -> latents (B, C, h, w) float32, ids (B, N, 1), losses.

        Raises:
            ValueError: the map does not have the shape that the TokenSpec says.
        """
        with torch.autocast(latents.device.type, enabled=False):
            z = to_vectors(at_least_fp32(latents), self.tokens)  # (B*N, d)
            codes, ids, losses = self.quantize_vectors(z)  # (B*N, d), (B*N,)
        return Quantized(from_vectors(codes, self.tokens), ids.view(len(latents), -1, 1), losses)

    def quantize_vectors(self, z: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Vectors (M, d) -> codes (M, d) with straight-through gradient, ids (M,), losses."""
        if self.training and not self.initialised:
            self._start_from(z.detach())
        z = F.normalize(z, dim=1) if self.l2_normalize else z  # (M, d)
        codebook = self.codebook()  # (K, d)
        ids = nearest_code(*((F.normalize(z, dim=1), directions(codebook)) if self.cosine else (z, codebook)))  # (M,)
        codes = F.embedding(ids, codebook)  # (M, d)
        losses = {"codebook": F.mse_loss(codes, z.detach()), "commitment": F.mse_loss(z, codes.detach())}
        if self.training and self.entropy_temperature > 0:
            losses["entropy"] = entropy_loss(z, codebook, self.entropy_temperature)
        out: Tensor = StraightThrough.apply(z, codes.detach())
        return out, ids, losses

    def lookup(self, ids: Tensor, steps: int | None = None) -> Tensor:
        """(B, N, 1) -> (B, C, h, w).

        Raises:
            ValueError: `steps` is given (a plain code has no first scales), or ids have another shape.
        """
        if steps is not None:
            raise ValueError("VectorQuantizer.lookup: steps is for residual and nested codes, this one is neither")
        if ids.shape[1:] != (self.tokens.num_tokens, 1):
            raise ValueError(f"VectorQuantizer.lookup: ids {tuple(ids.shape)}, not (B, {self.tokens.num_tokens}, 1)")
        return from_vectors(F.embedding(ids.flatten(), self.codebook()), self.tokens)

    @torch.no_grad()
    def _start_from(self, z: Tensor) -> None:
        """Vectors (M, d) become the codes, evenly spread over the batch and repeated where M < K.

        The noise is what the codebook held so far: it came from the model's seed, so nothing is drawn here. It sets
        repeated vectors apart.
        """
        count = len(self.weight)
        index = torch.arange(count, device=z.device)
        rows = index * len(z) // count if count <= len(z) else index % len(z)  # (K,)
        deviation = z.std(dim=0, correction=0)  # (d,)
        noise = self.weight * self.tokens.code_dim**0.5  # (K, d), deviation 1
        self.weight.copy_(z[rows] + SAMPLE_NOISE * deviation * noise)
        if dist.is_initialized():
            dist.broadcast(self.weight, 0)
        self.initialised.fill_(True)


def directions(codes: Tensor) -> Tensor:
    """Codes (K, d) at length 1; those too short for it stand beyond all others, where zero would be near everything."""
    short = torch.linalg.vector_norm(codes, dim=1, keepdim=True) < SHORT  # (K, 1)
    return F.normalize(codes, dim=1, eps=SHORT).masked_fill(short, BEYOND)
