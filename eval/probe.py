"""Step ``probe``: linear probing of a frozen tokenizer's mean-pooled latents, before and after quantization.

Letters: B images, C channels of the latents.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqbench.errors import ArtifactError, Diverged
from vqbench.eval.protocols import ProbeRecipe, read_protocol
from vqbench.eval.scoring import batches, entry, setting, write_scores
from vqbench.progress import Progress
from vqbench.seeds import torch_rng
from vqbench.steps import Finished, Job

WHERE = ("before", "after")


class Labelled(NamedTuple):
    """Features (n, C) float32 and labels (n,) int64 of one split."""

    features: np.ndarray
    labels: np.ndarray


class TopOne:
    """The facts of a probe's number: `count` validation images."""

    unit, higher_is_better = "%", True

    def __init__(self, count: int) -> None:
        self.count = count


def run(job: Job) -> dict[str, Any]:
    """Write ``scores.json`` with probe_before and probe_after: top-1 on validation, in %.

    Raises:
        ArtifactError: the features hold no row per label.
        Diverged: the probe's loss became NaN or infinite.
    """
    where, spec = setting(job), job.spec
    name = f"{spec['tokenizer']}/{job.bench.tokenizers[spec['tokenizer']].dataset}"
    parts = [job.upstream("tokens", f"{name}/{split}") for split in ("train", "validation")]
    metrics: dict[str, Any] = {}
    for place in WHERE:
        train, validation = (read_features(part, place) for part in parts)
        model = fit(train, spec["num_classes"], where.protocol.probe, where.device, f"probe {name} {place}")
        value = 100.0 * accuracy(model, validation, where.protocol.probe.batch, where.device)
        metrics[f"probe_{place}"] = entry(TopOne(len(validation.labels)), value)
    write_scores(job, metrics)
    return {"images": metrics["probe_before"]["n"], "protocol": read_protocol(spec["protocol"]).name}


def read_features(tokens: Finished, place: str) -> Labelled:
    """Memory-mapped features `place` quantization, and their labels."""
    features = np.load(tokens.file(f"features_{place}.npy"), mmap_mode="r")
    labels = np.load(tokens.file("labels.npy"))
    if len(features) != len(labels):
        raise ArtifactError(f"{'/'.join(tokens.key)}: {len(features)} features, {len(labels)} labels; tokenize again")
    plain = tokens.facts["images"]  # further views of the same images are the generators', not the probe's
    return Labelled(features[:plain], labels[:plain])


def build(channels: int, classes: int, seed: int) -> nn.Sequential:
    """Affine-free batch norm and a linear layer; small seeded weights, no bias at first."""
    linear = nn.Linear(channels, classes)
    with torch.no_grad():
        linear.weight.copy_(0.01 * torch.randn(classes, channels, generator=torch_rng(seed, "probe", "init")))
        linear.bias.zero_()
    return nn.Sequential(nn.BatchNorm1d(channels, affine=False), linear)


def fit(data: Labelled, classes: int, recipe: ProbeRecipe, device: torch.device, title: str) -> nn.Module:
    """Train a probe; the same seed, data and thread count give the same weights, bit for bit.

    The order of images is drawn by epoch. The last batch of an epoch is left out where it is a part of one: batch norm
    would weigh its few images more.
    """
    model = build(data.features.shape[1], classes, recipe.seed).to(device).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.lr, betas=recipe.betas, weight_decay=recipe.weight_decay
    )
    size = min(recipe.batch, len(data.labels))
    steps = len(data.labels) // size
    progress = Progress(recipe.epochs * steps * size, title, "img")
    for epoch in range(recipe.epochs):
        order = torch.randperm(len(data.labels), generator=torch_rng(recipe.seed, "probe", epoch)).numpy()
        for step in range(steps):
            loss = _loss(model, data, order[step * size : (step + 1) * size], device)
            if not torch.isfinite(loss):
                raise Diverged(
                    f"{title}: the loss is {loss.item()}; the features are not finite or 'probe.lr' is too high"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            progress.update(size, loss=float(loss.detach()))
    return model.eval()


def _loss(model: nn.Module, data: Labelled, rows: np.ndarray, device: torch.device) -> Tensor:
    rows = np.sort(rows)  # in the file's order: a batch's loss does not depend on it, a memory map's speed does
    features = torch.from_numpy(np.array(data.features[rows])).to(device)  # (B, C)
    logits = model(features)  # (B, classes)
    return F.cross_entropy(logits, torch.from_numpy(data.labels[rows]).to(device))


@torch.no_grad()
def accuracy(model: nn.Module, data: Labelled, batch: int, device: torch.device) -> float:
    """Top-1 accuracy in [0, 1]."""
    right = 0
    for part in batches(len(data.labels), batch):
        logits = model(torch.from_numpy(np.array(data.features[part])).to(device))  # (B, classes)
        right += int((logits.argmax(1).cpu().numpy() == data.labels[part]).sum())
    return right / len(data.labels)
