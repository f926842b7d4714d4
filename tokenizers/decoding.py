"""Step ``reconstruction``: validation images decoded from their ids, as uint8."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from vqbench.artifacts import write_atomic
from vqbench.data import to_uint8
from vqbench.jobs import Job
from vqbench.progress import Progress
from vqbench.specs import TokensSpec
from vqbench.tokenizers.base import open_tokenizer
from vqbench.training import device


@torch.no_grad()
def run(job: Job) -> dict[str, Any]:
    """Write ``images.npy``: uint8 (n, H, W, 3), aligned with the data set's validation images."""
    spec: TokensSpec = job.spec
    torch.set_num_threads(spec.threads)
    tokenizer_spec = job.bench.tokenizers[spec.tokenizer]
    tokenizer = open_tokenizer(tokenizer_spec, job.upstream("tokenizer", spec.tokenizer), device())
    tokens = job.upstream("tokens", f"{spec.tokenizer}/{spec.dataset}/validation")
    ids = np.load(tokens.file("ids.npy"), mmap_mode="r")
    size = job.bench.datasets[spec.dataset].resolution
    progress = Progress(len(ids), f"{spec.tokenizer} reconstruct", "img")

    def write(file: Any) -> None:
        header = {"descr": "|u1", "fortran_order": False, "shape": (len(ids), size, size, 3)}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, len(ids), spec.batch):
            batch = torch.from_numpy(np.array(ids[start : start + spec.batch], dtype=np.int64)).to(device())
            file.write(to_uint8(tokenizer.decode_ids(batch)).tobytes())
            progress.update(len(batch))

    write_atomic(job.store / "images.npy", write)
    return {"images": len(ids)}
