"""Step ``controls``: rows whose numbers are known beforehand, scored like all others.

* ``real``: validation images as if they were samples (FID against training images), and as their own reconstruction
  (rFID 0): what a perfect model would score with this protocol and these counts.
* ``identity``: validation images paired with themselves: SSIM 1, LPIPS 0, PSNR infinite (null, as the protocol says).
* ``random-codes``: uniformly random ids through the tokenizer's decoder: what a generator scores that learned nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from vqbench.data import Images, open_images, to_uint8
from vqbench.eval.archive import batches
from vqbench.eval.base import Batch
from vqbench.eval.evaluator import Evaluator, layers_of
from vqbench.eval.features import Extractor
from vqbench.eval.fid import Fid
from vqbench.eval.reference import open_reference
from vqbench.eval.score_samples import generation_metrics
from vqbench.eval.score_tokenizer import pair_metrics
from vqbench.eval.scoring import Setting, entries, judge, setting, write_scores
from vqbench.eval.unique_ratio import UniqueRatio
from vqbench.eval.usage import Usage
from vqbench.jobs import Job
from vqbench.progress import Progress
from vqbench.seeds import torch_rng
from vqbench.specs import TokenSpec
from vqbench.tokenizers.base import Tokenizer, open_tokenizer

SEED = 0  # of the random codes
RFID = Fid("rfid")  # compared with other images than the rest of a row

Rows = dict[str, dict[str, dict[str, Any]]]


def run(job: Job) -> dict[str, Any]:
    """Write ``scores.json``: ``rows`` {row: {metric: entry}}, and ``metrics`` with the same under ``row/metric``.

    A null value (PSNR of identical images) is in `rows` only. A continuous tokenizer has no row of random codes.
    """
    where, spec = setting(job), job.spec
    images = open_images(job.bench.datasets[spec["dataset"]], "validation", job.upstream("dataset", spec["dataset"]))
    extract = judge(job, where, layers_of([*generation_metrics(where.protocol), RFID]))
    rows = _real_rows(job, where, images, extract)
    tokenizer_spec = job.bench.tokenizers[spec["tokenizer"]]
    if tokenizer_spec.tokens.kind == "discrete":
        done = job.upstream("tokenizer", spec["tokenizer"])
        tokenizer = open_tokenizer(tokenizer_spec, done, str(where.device))
        rows["random-codes"] = _random_row(job, where, tokenizer, len(images), extract)
    flat = {f"{row}/{name}": e for row, found in rows.items() for name, e in found.items() if e["value"] is not None}
    write_scores(job, flat, rows=rows)
    return {"images": len(images), "protocol": where.protocol.name}


def _compute(job: Job, where: Setting, seen: Evaluator) -> dict[str, dict[str, Any]]:
    """Against the training images, and rFID against the validation images."""
    train, validation = (
        open_reference(job.upstream("reference", f"{job.spec['dataset']}/{split}"), where.protocol)
        for split in ("train", "validation")
    )
    rest = [metric for metric in seen.sets if metric is not RFID]
    against = [*seen.compare(rest, train), *seen.compare([RFID], validation)]
    return entries([*against, *seen.streamed()], where.protocol)


def _real_rows(job: Job, where: Setting, images: Images, extract: Extractor) -> Rows:
    real = Evaluator((), [*generation_metrics(where.protocol), RFID], extract)
    size = (images.spec.resolution, images.spec.resolution)
    identity = Evaluator(pair_metrics(job, where, size))
    progress = Progress(len(images), f"control real {job.key[1]}", "img")
    for part in batches(len(images), where.protocol.batch):
        pixels = images.batch(part.start, part.stop - part.start)
        batch = Batch(np.arange(part.start, part.stop), pixels, pixels)
        real.see(batch)
        identity.see(batch)
        progress.update(len(pixels))
    return {"real": _compute(job, where, real), "identity": entries(identity.compute(), where.protocol)}


def _random_row(
    job: Job, where: Setting, tokenizer: Tokenizer, count: int, extract: Extractor
) -> dict[str, dict[str, Any]]:
    codes = [Usage(tokenizer.tokens), UniqueRatio()]
    random = Evaluator(codes, [*generation_metrics(where.protocol), RFID], extract)
    progress = Progress(count, f"control random codes {job.key[1]}", "img")
    for part in batches(count, where.protocol.batch):
        ids = random_ids(tokenizer.tokens, part)
        random.see(Batch(np.arange(part.start, part.stop), decode(tokenizer, ids, where.device), ids=ids))
        progress.update(len(ids))
    return _compute(job, where, random)


def random_ids(tokens: TokenSpec, part: slice) -> np.ndarray:
    """Uniform ids (B, N, Q) int64 for image indices `part`, each image drawn by its own index."""
    shape = (tokens.num_tokens, tokens.num_slots)
    drawn = [
        torch.randint(tokens.num_codes, shape, generator=torch_rng(SEED, "random-codes", index))
        for index in range(part.start, part.stop)
    ]
    return torch.stack(drawn).numpy()


@torch.no_grad()
def decode(tokenizer: Tokenizer, ids: np.ndarray, device: torch.device) -> np.ndarray:
    """Ids (B, N, Q) -> uint8 (B, H, W, 3)."""
    return to_uint8(tokenizer.decode_ids(torch.from_numpy(ids).to(device)))
