"""Step ``pair-scores``: a tokenizer's reconstructions under another protocol's PSNR and SSIM than the scale's."""

from __future__ import annotations

from typing import Any

import numpy as np

from vqbench.data import open_images
from vqbench.eval.archive import batches
from vqbench.eval.evaluator import Evaluator
from vqbench.eval.protocols import read_protocol
from vqbench.eval.psnr import Psnr
from vqbench.eval.reconstructions import Reconstructions
from vqbench.eval.scoring import entries, write_scores
from vqbench.eval.ssim import Ssim
from vqbench.jobs import Job
from vqbench.progress import Progress


def run(job: Job) -> dict[str, Any]:
    """Write ``scores.json`` with psnr and ssim under the names of the protocol, e.g. ``psnr[vqgan-lc-code]``.

    Images are the data set's own crops: a protocol that crops otherwise does so for images of other sizes.
    """
    spec, protocol = job.spec, read_protocol(job.spec["protocol"])
    name = f"{spec['tokenizer']}/{spec['dataset']}"
    images = open_images(job.bench.datasets[spec["dataset"]], "validation", job.upstream("dataset", spec["dataset"]))
    decoded = np.load(job.upstream("reconstruction", name).file("images.npy"), mmap_mode="r")
    pairs = (Psnr(protocol.psnr), Ssim(protocol.ssim))
    evaluator = Evaluator(pairs)
    read, progress = Reconstructions(images, decoded), Progress(len(images), f"score {job.key[1]}", "img")
    for part in batches(len(images), protocol.batch):
        evaluator.see(read.batch(part))
        progress.update(part.stop - part.start)
    found, warnings = entries(evaluator.streamed(), protocol), read.warnings(protocol, ["psnr", "ssim"])
    write_scores(job, found, warnings, identical_pairs=pairs[0].identical)
    return {"images": len(images), "protocol": protocol.name}
