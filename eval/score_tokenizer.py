"""Step ``tokenizer-scores``: a tokenizer on the validation images of one data set: rFID, PSNR, SSIM, LPIPS, its codes."""

from __future__ import annotations

from typing import Any

import numpy as np

from vqbench.data import open_images
from vqbench.errors import ArtifactError, SpecError
from vqbench.eval.fid import Fid
from vqbench.eval.perceptual import Lpips
from vqbench.eval.protocols import Distance
from vqbench.eval.psnr import Psnr
from vqbench.eval.reference import open_reference
from vqbench.eval.scoring import Setting, batches, entries, judge, setting, write_scores
from vqbench.eval.ssim import Ssim
from vqbench.eval.unique_ratio import UniqueRatio
from vqbench.eval.usage import Usage
from vqbench.pretrained import open_perceptual
from vqbench.progress import Progress
from vqbench.steps import Job


def run(job: Job) -> dict[str, Any]:
    """Write ``scores.json`` with rfid, psnr, ssim, lpips, usage and unique_ratio.

    rFID compares the reconstructions with all validation images, cropped as the inputs were.

    Raises:
        ArtifactError: reconstructions or ids are not those of this data set's validation images.
    """
    where, spec = setting(job), job.spec
    name = f"{spec['tokenizer']}/{spec['dataset']}"
    images = open_images(job.bench.datasets[spec["dataset"]], "validation", job.upstream("dataset", spec["dataset"]))
    decoded = np.load(job.upstream("reconstruction", name).file("images.npy"), mmap_mode="r")
    ids = np.load(job.upstream("tokens", f"{name}/validation").file("ids.npy"), mmap_mode="r")
    if not len(images) == len(decoded) == len(ids):
        raise ArtifactError(
            f"{name}: {len(images)} images, {len(decoded)} reconstructions, {len(ids)} ids; make them again"
        )
    reference = open_reference(job.upstream("reference", f"{spec['dataset']}/validation"))
    rfid, extract = Fid(reference.gaussian, "rfid"), judge(job, where)
    pairs, codes = pair_metrics(job, where), [Usage(spec["tokens"]["num_codes"]), UniqueRatio()]
    progress = Progress(len(images), f"score {name}", "img")
    for part in batches(len(images), where.protocol.batch):
        originals, reconstructions = images.batch(part.start, part.stop - part.start), np.array(decoded[part])
        for pair in pairs:
            pair.update(originals, reconstructions)
        for code in codes:
            code.update(np.array(ids[part]))
        rfid.update(extract(reconstructions))
        progress.update(len(originals))
    write_scores(job, entries([rfid, *pairs, *codes], where.protocol), identical_pairs=pairs[0].identical)
    return {"images": len(images), "protocol": where.protocol.name}


def pair_metrics(job: Job, where: Setting) -> tuple[Psnr, Ssim, Lpips]:
    """The metrics of image pairs that the job's protocol and perceptual network define."""
    name, protocol = job.spec["perceptual"], where.protocol
    _check_network(protocol.lpips, job.bench.pretrained[name].kind)
    network = open_perceptual(job.bench.pretrained[name], job.upstream("pretrained", name), where.device)
    return Psnr(protocol.psnr), Ssim(protocol.ssim), Lpips(network, where.device)


def _check_network(wanted: Distance, kind: str) -> None:
    if kind != wanted.network:
        raise SpecError(
            f"the protocol's LPIPS is over '{wanted.network}', the scale's perceptual network is '{kind}'; "
            "mend 'protocol' or 'roles.perceptual'"
        )
