"""Step ``tokens``: the ids of one split, and pooled latents for linear probing, written once per tokenizer and data set."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from vqbench.artifacts import write_npy
from vqbench.data import Images, open_images, to_float
from vqbench.progress import Progress
from vqbench.specs import TokensSpec
from vqbench.steps import Job
from vqbench.tokenizers.base import Tokenizer, open_tokenizer
from vqbench.training import device


def run(job: Job) -> dict[str, Any]:
    """Write ``ids.npy`` int32 (n * views, N, Q), ``labels.npy`` int64, and float32 features before and after quantization.

    View v of image i is row ``v * n + i``; view 0 is the evaluation crop, view 1 its mirror image. Features are the
    latents' spatial means, (n * views, C).
    """
    spec: TokensSpec = job.spec
    torch.set_num_threads(spec.threads)
    dataset = job.bench.datasets[spec.dataset]
    images = open_images(dataset, spec.split, job.upstream("dataset", spec.dataset))
    tokenizer_spec = job.bench.tokenizers[spec.tokenizer]
    tokenizer = open_tokenizer(tokenizer_spec, job.upstream("tokenizer", spec.tokenizer), device())
    parts = [_view(tokenizer, images, spec, view) for view in range(spec.views)]
    for name, arrays in zip(("ids", "features_before", "features_after"), zip(*parts, strict=True), strict=True):
        write_npy(job.store / f"{name}.npy", np.concatenate(arrays))
    write_npy(job.store / "labels.npy", np.tile(images.labels, spec.views))
    return {"images": len(images), "views": spec.views, "codes": tokenizer_spec.tokens.num_codes}


@torch.no_grad()
def _view(tokenizer: Tokenizer, images: Images, spec: TokensSpec, view: int) -> tuple[np.ndarray, ...]:
    progress = Progress(len(images), f"{spec.tokenizer} {spec.split} view {view}", "img")
    found: list[tuple[np.ndarray, ...]] = []
    for start in range(0, len(images), spec.batch):
        pixels = images.batch(start, spec.batch)
        batch = to_float(pixels[:, :, ::-1] if view % 2 else pixels).to(device())
        latents = tokenizer.encode(batch)
        quantized = tokenizer.quantize(latents)
        tensors = (quantized.ids.int(), latents.mean((2, 3)), quantized.latents.mean((2, 3)))
        found.append(tuple(t.cpu().numpy() for t in tensors))
        progress.update(len(batch))
    return tuple(np.concatenate(arrays) for arrays in zip(*found, strict=True))
