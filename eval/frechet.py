"""Squared Frechet distance of Gaussians (Dowson and Landau 1982), exactly and fast, in float64.

With Sa = A A^T and Sb = B B^T the trace of (Sa Sb)^(1/2) is the sum of the singular values of A^T B. Factors are Cholesky's,
or the centred images themselves where there are fewer than dimensions (their covariance is singular). The singular
values come as square roots of the eigenvalues of A^T Sb A, a symmetric problem and much cheaper than a matrix
square root; where squaring lost too many digits, from A^T B itself.

Letters: n images, d feature length, r columns of a factor.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from vqbench.errors import ArtifactError
from vqbench.eval.moments import Gaussian, moments_of, without

LOST = 1e-9  # share of the trace that squaring may cost
SMALL = 512  # rows of a product whose singular values are as cheap as its eigenvalues


class Frechet:
    """Squared distances to one Gaussian; its factor is computed once.

    Args:
        known: the fixed side.
        device: where the linear algebra runs.

    Raises:
        ArtifactError: the mean or covariance is not finite.
    """

    def __init__(self, known: Gaussian, device: str | torch.device = "cpu") -> None:
        self.known, self.device = known, device
        self.trace = _trace(known)

    @cached_property
    def factor(self) -> Tensor:
        """(d, r) with factor @ factor.T = sigma."""
        if self.known.singular:
            return centred_rows(self.known, self.device).T
        return _factor(self._tensor(self.known.sigma))

    def __call__(self, other: Gaussian) -> float:
        """|mu_a - mu_b|^2 + tr(Sa + Sb - 2 (Sa Sb)^(1/2)); finite and never negative.

        Raises:
            ArtifactError: dimensions differ, or a statistic is not finite.
        """
        if other.mu.shape != self.known.mu.shape:
            raise ArtifactError(
                f"features of {len(other.mu)} and {len(self.known.mu)} dimensions: these are of two judges"
            )
        return self.total(other.mu, _trace(other), self._cross(other))

    def total(self, mu: np.ndarray, trace: float, cross: float) -> float:
        """The distance from its parts; `cross` is tr (Sa Sb)^(1/2)."""
        shift = mu - self.known.mu
        return max(0.0, float(shift @ shift) + self.trace + trace - 2 * cross)

    def _cross(self, other: Gaussian) -> float:
        if other.singular:
            return centred_nuclear(centred_rows(other, self.device) @ self.factor)
        sigma = self._tensor(other.sigma)
        gram = self.factor.T @ sigma @ self.factor  # (r, r)
        # Centred rows sum to zero: one eigenvalue is exactly 0, and computed it would only be noise.
        return _root_sum(gram, self.known.singular, lambda: self.factor.T @ _factor(sigma))

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.array(array, dtype=np.float64)).to(self.device)


class Subsets:
    """Squared distances of subsets of one set of images, each exactly that of its own statistics.

    Args:
        whole: the set's statistics.
        rows: (n, d) its features.
    """

    def __init__(self, frechet: Frechet, whole: Gaussian, rows: np.ndarray) -> None:
        self.frechet, self.whole, self.rows = frechet, whole, rows

    def __call__(self, kept: np.ndarray) -> float:
        """The distance of images `kept`, (n,) bool, at least two of them."""
        size, (count, length) = int(kept.sum()), self.rows.shape
        if size <= length:
            return self._of_rows(kept, size)
        if 2 * size < count:
            return self.frechet(moments_of(self.rows, np.flatnonzero(kept)).gaussian())
        return self.frechet(without(self.whole, moments_of(self.rows, np.flatnonzero(~kept))))

    def _of_rows(self, kept: np.ndarray, size: int) -> float:
        """Singular: the rows' product with the factor, centred afterwards, has the wanted singular values."""
        if len(self.rows) <= 2 * self.rows.shape[1]:  # then the product of all serves every subset
            shift, norms = kept.astype(np.float64) @ self._all / size, self._norms[kept]
            product = self._products[torch.from_numpy(kept)]  # (size, r)
        else:
            rows = self.rows[kept] - self.whole.mu  # (size, d)
            shift, norms, product = rows.mean(0), _norms(rows), self._product(rows)
        trace = (float(norms.sum()) - size * float(shift @ shift)) / (size - 1)
        product.sub_(product.mean(0)).div_((size - 1) ** 0.5)  # in place: with few images this is FID's peak of memory
        return self.frechet.total(self.whole.mu + shift, trace, centred_nuclear(product))

    def _product(self, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(rows).to(self.frechet.device) @ self.frechet.factor

    @cached_property
    def _all(self) -> np.ndarray:
        return np.asarray(self.rows - self.whole.mu)  # (n, d) float64

    @cached_property
    def _norms(self) -> np.ndarray:
        return _norms(self._all)  # (n,)

    @cached_property
    def _products(self) -> Tensor:
        return self._product(self._all)  # (n, r)


def frechet_distance(a: Gaussian, b: Gaussian, device: str | torch.device = "cpu") -> float:
    """Squared Frechet distance of two Gaussians, see :class:`Frechet`."""
    return Frechet(b, device)(a)


def centred_rows(gaussian: Gaussian, device: str | torch.device) -> Tensor:
    """X (n, d) with X^T X = sigma."""
    assert gaussian.rows is not None
    rows = torch.from_numpy(np.array(gaussian.rows, dtype=np.float64)).to(device)
    return rows.sub_(rows.mean(0)).div_((gaussian.n - 1) ** 0.5)


def centred_nuclear(product: Tensor) -> float:
    """Sum of the singular values of (n, r), the columns of which sum to zero."""
    if min(product.shape) <= SMALL:
        return float(torch.linalg.svdvals(product).sum())
    wide = product if product.shape[0] <= product.shape[1] else product.T
    return _root_sum(wide @ wide.T, wide is product, lambda: product)


def _root_sum(gram: Tensor, null: bool, product: Callable[[], Tensor]) -> float:
    """Sum of the square roots of the eigenvalues of `gram` = P P^T or P^T P; `null`: the smallest is exactly zero.

    An eigenvalue is off by a rounding unit of the largest, its root by that over twice the root: small ones suffer.
    """
    if not len(gram):  # the other side has no spread at all
        return 0.0
    values = torch.linalg.eigvalsh(gram)[int(null) :]  # reads the lower triangle alone
    unit = torch.finfo(values.dtype).eps * values[-1:].clamp_min(0)
    roots = values.clamp_min(0).sqrt()
    noise = 0.5 * unit * values.clamp_min(float(unit)).reciprocal().sum().sqrt()
    if float(noise) > LOST * float(roots.sum()):
        return float(torch.linalg.svdvals(product()).sum())
    return float(roots.sum())


def _norms(rows: np.ndarray) -> np.ndarray:
    """Squared length of each of (n, d)."""
    found: np.ndarray = np.einsum("ij,ij->i", rows, rows)
    return found


def _factor(sigma: Tensor) -> Tensor:
    """F (d, r) with F F^T = sigma: Cholesky, or eigenvectors of positive eigenvalues where sigma is singular."""
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(sigma)
    diagonal = factor.diagonal()
    # A factor that barely succeeded is of a singular matrix: its small pivots are rounding.
    if not failed and float(diagonal.min()) > 1e-7 * float(diagonal.max()):
        return factor
    values, vectors = torch.linalg.eigh(sigma)
    keep = values > values[-1].clamp_min(0) * len(values) * torch.finfo(values.dtype).eps
    factor = vectors[:, keep] * values[keep].sqrt()
    return factor


def _trace(gaussian: Gaussian) -> float:
    spread = gaussian.rows if gaussian.singular else gaussian.sigma
    assert spread is not None
    if not (np.isfinite(gaussian.mu).all() and np.isfinite(spread).all()):
        raise ArtifactError("a mean or covariance is not finite; a statistics file is damaged, make it again")
    if gaussian.singular:
        return float(np.square(centred_rows(gaussian, "cpu").numpy()).sum())
    return float(np.trace(spread))
