"""The fits of a linear probe: AdamW over batches, or L-BFGS over all images at once.

Letters: n images, B images of a batch, F features (C channels, or C * h * w where latents are flattened), K classes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import Tensor, nn

from vqbench.errors import Diverged
from vqbench.eval.archive import batches
from vqbench.eval.protocols import ProbeRecipe
from vqbench.progress import Progress
from vqbench.seeds import torch_rng

BYTES = 64 << 20  # of float64 features that L-BFGS holds at a time
GRADIENT = 1e-6  # largest component at which L-BFGS has converged


class Labelled(NamedTuple):
    """Features (n, F) float32 and labels (n,) int64 of one split."""

    features: np.ndarray
    labels: np.ndarray


class Fitted(NamedTuple):
    """A probe, the steps it took, and whether it converged (None: it runs for a number of steps)."""

    model: nn.Module
    steps: int
    converged: bool | None


def build(features: int, classes: int, seed: int) -> nn.Sequential:
    """Affine-free batch norm and a linear layer; small seeded weights, no bias at first."""
    linear = nn.Linear(features, classes)
    with torch.no_grad():
        linear.weight.copy_(0.01 * torch.randn(classes, features, generator=torch_rng(seed, "probe", "init")))
        linear.bias.zero_()
    return nn.Sequential(nn.BatchNorm1d(features, affine=False), linear)


def fit(data: Labelled, classes: int, recipe: ProbeRecipe, device: torch.device, title: str) -> Fitted:
    """Train a probe; the same seed, data and thread count give the same weights, bit for bit.

    Raises:
        Diverged: the loss became NaN or infinite.
    """
    return (_adamw if recipe.optimizer == "adamw" else _lbfgs)(data, classes, recipe, device, title)


def _adamw(data: Labelled, classes: int, recipe: ProbeRecipe, device: torch.device, title: str) -> Fitted:
    """The order of images is drawn by epoch. The last batch of an epoch is left out where it is a part of one: batch
    norm would weigh its few images more.
    """
    assert recipe.lr is not None and recipe.betas is not None and recipe.batch is not None, "checked by the recipe"
    model = build(data.features.shape[1], classes, recipe.seed).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), recipe.lr, recipe.betas, weight_decay=recipe.weight_decay)
    size = min(recipe.batch, len(data.labels))
    steps = len(data.labels) // size
    progress = Progress(recipe.epochs * steps * size, title, "img")
    for epoch in range(recipe.epochs):
        order = torch.randperm(len(data.labels), generator=torch_rng(recipe.seed, "probe", epoch)).numpy()
        for step in range(steps):
            loss = _loss(model, data, order[step * size : (step + 1) * size], device)
            _check(float(loss.detach()), title)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            progress.update(size, loss=float(loss.detach()))
    return Fitted(model.eval(), recipe.epochs * steps, None)


def _loss(model: nn.Module, data: Labelled, rows: np.ndarray, device: torch.device) -> Tensor:
    rows = np.sort(rows)  # in the file's order: a batch's loss does not depend on it, a memory map's speed does
    logits = model(torch.from_numpy(np.array(data.features[rows])).to(device))  # (B, K)
    return F.cross_entropy(logits, torch.from_numpy(data.labels[rows]).to(device))


def _check(loss: float, title: str) -> None:
    if not math.isfinite(loss):
        raise Diverged(f"{title}: the loss is {loss}; the features are not finite or 'probe.lr' is too high")


def _lbfgs(data: Labelled, classes: int, recipe: ProbeRecipe, device: torch.device, title: str) -> Fitted:
    """Mean cross entropy + weight_decay / 2 * |W|^2 on standardised features, minimised over all images in float64.

    This is scikit-learn's LogisticRegression with C = 1 / (n * weight_decay), but features are read in parts and never
    copied whole: SciPy's L-BFGS-B asks for a loss and a gradient. It starts at zero; no seed is drawn.
    """
    mean, variance = _moments(data, device)
    scale = (variance + nn.BatchNorm1d(1).eps).rsqrt()
    progress = Progress(recipe.epochs, title, "step")

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weight = torch.from_numpy(flat.reshape(classes, -1)).to(device)  # (K, F + 1), the bias last
        loss, slope = _loss_and_slope(weight, data, mean, scale, device)
        loss, slope = loss / len(data.labels), slope / len(data.labels)
        slope[:, :-1] += recipe.weight_decay * weight[:, :-1]
        total = float(loss + recipe.weight_decay / 2 * weight[:, :-1].square().sum())
        _check(total, title)
        return total, slope.cpu().numpy().reshape(-1)

    start = np.zeros(classes * (len(mean) + 1))
    found = minimize(
        objective, start, jac=True, method="L-BFGS-B", callback=lambda _: progress.update(),
        options={"maxiter": recipe.epochs, "maxfun": 20 * recipe.epochs, "gtol": GRADIENT, "ftol": 0.0, "maxls": 50},
    )  # fmt: skip
    solution = torch.from_numpy(found.x.reshape(classes, -1))
    model = build(len(mean), classes, recipe.seed).double()
    values = {
        "0.running_mean": mean,
        "0.running_var": variance,
        "1.weight": solution[:, :-1],
        "1.bias": solution[:, -1],
    }
    model.load_state_dict(values | {"0.num_batches_tracked": torch.tensor(1)})
    small = float(np.abs(found.jac).max()) <= 10 * GRADIENT  # a line search may end at rounding, a hair above
    return Fitted(model.to(device).eval(), int(found.nit), bool(found.success or small))


def _parts(data: Labelled) -> list[slice]:
    return list(batches(len(data.labels), max(1, BYTES // (8 * data.features.shape[1]))))


def _read(data: Labelled, part: slice, device: torch.device) -> Tensor:
    return torch.from_numpy(np.array(data.features[part])).to(device).double()  # (B, F)


def _moments(data: Labelled, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (F,) of all images, in two passes."""
    parts, n = _parts(data), len(data.labels)
    mean = sum((_read(data, part, device).sum(0) for part in parts), torch.zeros(1, device=device)) / n
    squares = sum(((_read(data, part, device) - mean).square().sum(0) for part in parts), torch.zeros(1, device=device))
    return mean, squares / n


def _loss_and_slope(
    weight: Tensor, data: Labelled, mean: Tensor, scale: Tensor, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Sum of cross entropies over all images, and its gradient (K, F + 1)."""
    loss, slope = torch.zeros((), dtype=torch.float64, device=device), torch.zeros_like(weight)
    for part in _parts(data):
        inputs = (_read(data, part, device) - mean) * scale  # (B, F)
        labels = torch.from_numpy(data.labels[part]).to(device)
        log_shares = F.log_softmax(inputs @ weight[:, :-1].T + weight[:, -1], dim=1)  # (B, K)
        loss += F.nll_loss(log_shares, labels, reduction="sum")
        excess = log_shares.exp()
        excess[torch.arange(len(labels), device=device), labels] -= 1
        slope[:, :-1] += excess.T @ inputs
        slope[:, -1] += excess.sum(0)
    return loss, slope
