"""The step "samples": a generator's tokens, decoded by its tokenizer to uint8 images.

Images are made in blocks of fixed index ranges, always full: seeds go by block, and the last one is padded, then cut, so
that neither the number of processes nor an interruption changes a pixel. Each finished block is a shard in the job's
state; the shards are streamed into ``samples.npz``, the layout of openai/guided-diffusion `evaluations/evaluator.py`.

Letters: B images of one block, N ids an image, Q slots, H W pixels.
"""

from __future__ import annotations

import sys
import time
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch

from vqbench import distributed
from vqbench.artifacts import describe, read_sealed, sealed, verify, write_atomic, write_json, write_npz
from vqbench.data import to_uint8
from vqbench.errors import ArtifactError, Diverged
from vqbench.generators.base import Generator, build_generator, check_vocabulary, open_generator, shape_of
from vqbench.jobs import Job
from vqbench.notice import Notice
from vqbench.progress import Progress
from vqbench.seeds import torch_rng
from vqbench.specs import SampleSpec
from vqbench.tokenizers.base import Tokenizer, open_tokenizer
from vqbench.training import device

# A fixed number, not what fits: it is part of how a block is computed. At 512 px a decoder map of 8 images is 1 GB.
DECODED_AT_ONCE = 8
OUTPUTS = ("samples.npz", "ids.npy")
ASSEMBLED = "assembled.json"  # in the state folder: digests of the outputs, written before the shards go


class Models(NamedTuple):
    """What turns class labels into images, both in eval mode on one device."""

    generator: Generator
    tokenizer: Tokenizer
    device: torch.device


def run(job: Job) -> dict[str, Any]:
    """Make ``samples.npz`` and ``ids.npy`` in the job's store.

    In samples.npz, ``arr_0`` is uint8 (count, H, W, 3) and ``arr_1`` int64 (count,), the labels; ids.npy is int32
    (count, N, Q). Equal samples give equal bytes.

    Returns:
        ``images``, ``steps`` (runs of the generator for one image, or that its solver chooses) and ``parameters``.

    Raises:
        SpecError: the tokenizer's codes are not those that the generator has learned.
        Diverged: a block decoded to values that are not finite.
        ArtifactError: an input is missing or damaged, or the disk is full; finished blocks are kept.
    """
    torch.set_num_threads(job.spec.threads)
    if not _is_assembled(job):
        with distributed.erring_together():
            make_blocks(job, distributed.share(range(num_blocks(job.spec))))
        if distributed.rank() == 0:
            _assemble(job)
    if distributed.rank():
        return {}
    for shard in job.state.glob("*shard-*"):  # temporary files of killed processes too
        shard.unlink()
    spec = job.bench.generators[job.spec.generator]
    with torch.device("meta"):
        generator = build_generator(spec)
    return {"images": job.spec.count, "steps": generator.steps(job.spec.sampler),
            "parameters": generator.parameter_counts()}  # fmt: skip


def num_blocks(spec: SampleSpec) -> int:
    """Blocks that hold ``spec.count`` images, the last one perhaps in part."""
    return -(-spec.count // spec.block)


def make_blocks(job: Job, blocks: Iterable[int]) -> None:
    """Make those of `blocks` that have no intact shard yet; several processes may share a job's blocks in any way.

    ``job.measured`` is told the seconds that an image took in this process, decoded, models already open.

    Args:
        job: a job of kind "samples"; shards go to ``job.state``.
        blocks: block numbers in [0, num_blocks).

    Raises:
        Interrupted: a signal asked to stop; the block was ended and saved.
    """
    blocks = list(blocks)
    missing = [b for b in blocks if not has_shard(job, b)]
    if not missing:
        return
    size, count = job.spec.block, job.spec.count
    images = {b: min(count, (b + 1) * size) - b * size for b in blocks}
    done = sum(images.values()) - sum(images[b] for b in missing)
    progress = Progress(sum(images.values()), f"samples {job.key[1]}", "images", start=done)
    models, seconds, timed = open_models(job), 0.0, 0
    with Notice() as notice:
        for block in missing:
            began = time.perf_counter()
            made = make_block(job.spec, models, block)
            seconds += time.perf_counter() - began
            timed += size  # the last block is padded: its images take their time too
            job.measured.update(seconds_per_image=seconds / timed, timed_images=timed)
            save_shard(job, block, made)
            progress.update(images[block])
            if notice.given and block != missing[-1]:
                raise notice.stopped(f"block {block}")


def open_models(job: Job) -> Models:
    """The job's generator and tokenizer, on the GPU where there is one."""
    place = device()
    spec = job.bench.generators[job.spec.generator]
    generator = open_generator(spec, job.upstream("generator", job.spec.generator), str(place))
    tokenizer_spec = job.bench.tokenizers[spec.tokenizer]
    tokenizer = open_tokenizer(tokenizer_spec, job.upstream("tokenizer", spec.tokenizer), str(place))
    codes = tokenizer.tokens
    check_vocabulary(spec, codes.num_codes, shape_of(spec, codes), f"tokenizer/{spec.tokenizer}'s tokens")
    return Models(generator, tokenizer, place)


def block_labels(spec: SampleSpec, block: int) -> np.ndarray:
    """Class labels (B,) int64 of a full block: image index modulo the number of classes, so classes are balanced."""
    return np.arange(block * spec.block, (block + 1) * spec.block, dtype=np.int64) % spec.num_classes


@torch.inference_mode()
def make_block(spec: SampleSpec, models: Models, block: int) -> dict[str, np.ndarray]:
    """One block, padding cut: ``images`` uint8 (B, H, W, 3), ``ids`` int32 (B, N, Q), ``labels`` int64 (B,).

    A function of `spec`, `block` and the weights only. A family that samples latents has them quantized first.

    Raises:
        Diverged: the latents or the images are not finite.
    """
    labels = block_labels(spec, block)  # (B,)
    rng = torch_rng(spec.seed, "sample", block, device=models.device)
    tokens = models.generator.sample(torch.from_numpy(labels).to(models.device), rng, spec.sampler)  # (B, N, Q)
    if not tokens.isfinite().all():  # quantized, they would be codes like any others
        raise _diverged(spec, block, "has latents")
    ids = models.tokenizer.quantize(tokens).ids if tokens.is_floating_point() else tokens  # (B, N, Q)
    images = decode(models.tokenizer, ids)  # (B, H, W, 3)
    if images is None:
        raise _diverged(spec, block, "decoded to values")
    kept = min(spec.block, spec.count - block * spec.block)
    return {"images": images[:kept], "ids": ids.int().cpu().numpy()[:kept], "labels": labels[:kept]}


def _diverged(spec: SampleSpec, block: int, what: str) -> Diverged:
    return Diverged(
        f"samples of '{spec.generator}': block {block} {what} that are not finite; the weights of the generator or its "
        "tokenizer are broken (look at their losses.csv and train again), or the guidance is too strong for them"
    )


def decode(tokenizer: Tokenizer, ids: torch.Tensor) -> np.ndarray | None:
    """Ids (B, N, Q) -> uint8 (B, H, W, 3), a fixed number of images at a time; None where a value is not finite."""
    found: list[np.ndarray] = []
    for part in ids.split(DECODED_AT_ONCE):
        images = tokenizer.decode_ids(part)  # (b, 3, H, W)
        if not images.isfinite().all():
            return None
        found.append(to_uint8(images))
    return np.concatenate(found)


def shard_path(job: Job, block: int) -> Path:
    """Where a block waits for the others."""
    return job.state / f"shard-{block:05d}.npz"


def save_shard(job: Job, block: int, made: dict[str, np.ndarray]) -> None:
    """Write a block, then its record with the digest: what has no record is not finished."""
    path = shard_path(job, block)
    write_npz(path, **made)
    record = {"job": job.digest, "block": block, "outputs": describe(job.state, [path.name])}
    write_json(path.with_suffix(".json"), sealed(record))


def has_shard(job: Job, block: int) -> bool:
    """Whether a block is finished and whole; says so where it is damaged or another's."""
    path = shard_path(job, block)
    record = path.with_suffix(".json")
    if not record.is_file():
        return False
    try:
        listed = read_sealed(record)
        if (listed["job"], listed["block"]) != (job.digest, block):
            raise ArtifactError(f"{record} is that of another run or block")
        verify(job.state, listed["outputs"], record)
    except ArtifactError as error:
        print(f"vqbench: {path} is damaged ({error}); making block {block} again", file=sys.stderr)
        return False
    return True


def _is_assembled(job: Job) -> bool:
    """Whether an earlier process wrote the outputs whole but ended before their manifest."""
    path = job.state / ASSEMBLED
    if not path.is_file():
        return False
    try:
        verify(job.store, read_sealed(path)["outputs"], path)
    except ArtifactError as error:
        print(f"vqbench: {error}; making them again", file=sys.stderr)
        return False
    return True


def _assemble(job: Job) -> None:
    """Stream the shards into the outputs, one block in memory at a time: at paper scale they are 10 GB."""
    write_atomic(job.store / "samples.npz", lambda file: _write_samples(job, file))
    write_atomic(job.store / "ids.npy", lambda file: _write_array(file, job, "ids"))
    write_json(job.state / ASSEMBLED, sealed({"outputs": describe(job.store, OUTPUTS)}))


def _write_samples(job: Job, file: IO[bytes]) -> None:
    # entries opened by name are dated 1980, so equal samples give equal bytes; ZIP64 because arr_0 passes 4 GB
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for entry, name in (("arr_0", "images"), ("arr_1", "labels")):
            with archive.open(f"{entry}.npy", "w", force_zip64=True) as member:
                _write_array(member, job, name)


def _write_array(file: IO[bytes], job: Job, name: str) -> None:
    """One array of all shards, in ``.npy`` format."""
    for block, part in enumerate(_parts(job, name)):
        if block == 0:
            header = {"descr": np.lib.format.dtype_to_descr(part.dtype), "fortran_order": False,
                      "shape": (job.spec.count, *part.shape[1:])}  # fmt: skip
            np.lib.format.write_array_header_1_0(file, header)
        file.write(np.ascontiguousarray(part).data)


def _parts(job: Job, name: str) -> Iterator[np.ndarray]:
    for block in range(num_blocks(job.spec)):
        path = shard_path(job, block)
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                yield archive[name]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise ArtifactError(f"{path} was damaged before {OUTPUTS[0]} was written ({error}); run again") from None
