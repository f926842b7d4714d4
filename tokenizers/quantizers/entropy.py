"""The entropy term of MaskGIT's tokenizer: sure of each vector's code, even over the codebook.

Letters: M vectors, K codes, d their length; m the vectors of one chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def entropy_loss(vectors: Tensor, codebook: Tensor, temperature: float, *, memory_mb: int = 256) -> Tensor:
    """Mean entropy of the soft assignments minus the entropy of their mean, in nats; in [-log K, 0].

    The assignment is softmax(-|z - e|^2 / temperature) over the codes (google-research/maskgit:
    maskgit/nets/vqgan_tokenizer.py; temperature 0.01). Probabilities are recomputed in the backward pass, so that M x K
    of them are never held together.

    Args:
        vectors: (M, d) float32, with gradient.
        codebook: (K, d) float32, with gradient.
        temperature: positive, in units of squared distance.
        memory_mb: bound in MiB on the temporaries of a chunk (one vector's row of K is always held).
    """
    # about eight float32 arrays of m x K live at once in a chunk's backward pass
    rows = max(1, memory_mb * 2**20 // (8 * 4 * len(codebook)))
    each, total = vectors.new_zeros(()), vectors.new_zeros(len(codebook))  # (), (K,)
    for part in vectors.split(rows):
        entropy, mass = checkpoint(_assign, part, codebook, temperature, use_reentrant=False)
        each, total = each + entropy, total + mass
    mean = total / len(vectors)  # (K,)
    # the smallest normal number keeps the logarithm's gradient finite for a code that no vector comes near
    of_mean = -(mean * mean.clamp_min(torch.finfo(mean.dtype).tiny).log()).sum()
    return each / len(vectors) - of_mean


def _assign(vectors: Tensor, codebook: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """(m, d), (K, d) -> the sum of the m entropies (), the sum of the m assignments (K,)."""
    # |z|^2 is the same for all codes and leaves the softmax as it is
    scores = torch.addmm(codebook.square().sum(1), vectors, codebook.T, alpha=-2)  # (m, K)
    log_p = (-scores / temperature).log_softmax(dim=1)  # (m, K)
    p = log_p.exp()  # (m, K)
    return -(p * log_p).sum(), p.sum(0)
