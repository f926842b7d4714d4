"""Step ``tokenizer-scores``: a tokenizer on the validation images of one data set: rFID, PSNR, SSIM, LPIPS, its codes."""

from __future__ import annotations

from typing import Any

import numpy as np

from vqbench import distributed
from vqbench.data import open_images
from vqbench.errors import ArtifactError, SpecError
from vqbench.eval.archive import batches
from vqbench.eval.base import Metric
from vqbench.eval.evaluator import Evaluator, layers_of
from vqbench.eval.fid import Fid
from vqbench.eval.ms_ssim import MsSsim, smallest_side
from vqbench.eval.perceptual import Lpips, classifier_lpips, open_lpips
from vqbench.eval.protocols import Distance
from vqbench.eval.psnr import Psnr
from vqbench.eval.reconstructions import Reconstructions
from vqbench.eval.reference import open_reference
from vqbench.eval.scoring import Setting, entries, judge, setting, write_scores
from vqbench.eval.ssim import Ssim
from vqbench.eval.unique_ratio import UniqueRatio
from vqbench.eval.usage import Usage
from vqbench.jobs import Job
from vqbench.pretrained import open_classifier, weights_path
from vqbench.progress import Progress
from vqbench.specs import TokenSpec


def run(job: Job) -> dict[str, Any]:
    """Write ``scores.json`` with rfid, psnr, ssim, lpips (ms_ssim where images are large enough) and those of the codes.

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
    reference = open_reference(job.upstream("reference", f"{spec['dataset']}/validation"), where.protocol)
    tokens, sets = TokenSpec(**spec["tokens"]), [Fid("rfid")]
    pairs = pair_metrics(job, where, decoded.shape[1:3])
    evaluator = Evaluator([*pairs, Usage(tokens), UniqueRatio()], sets, judge(job, where, layers_of(sets)))
    read, progress = Reconstructions(images, decoded), Progress(len(images), f"score {name}", "img")
    for part in distributed.share(list(batches(len(images), where.protocol.batch))):
        evaluator.see(read.batch(part, np.array(ids[part])))
        progress.update(part.stop - part.start)
    evaluator.gather()
    read.gather()
    if distributed.rank():
        return {}
    found = entries(evaluator.compute(reference), where.protocol)
    identical = sum(m.identical for m in pairs if isinstance(m, Psnr))
    write_scores(job, found, read.warnings(where.protocol, ["rfid"]), identical_pairs=identical)
    return {"images": len(images), "protocol": where.protocol.name}


def pair_metrics(job: Job, where: Setting, size: tuple[int, int]) -> tuple[Metric, ...]:
    """The metrics of pairs of (H, W) images that the job's protocol and perceptual network define."""
    name, protocol = job.spec["perceptual"], where.protocol
    spec, done = job.bench.pretrained[name], job.upstream("pretrained", name)
    _check_network(protocol.lpips, spec.kind)
    if spec.kind == "photo-classifier":
        network = classifier_lpips(open_classifier(spec, done, where.device))
    else:
        network = open_lpips(spec.kind, weights_path(spec, done), where.device)
    # Five scales need images of more than 160 pixels: the demo's have none.
    scales = [MsSsim(protocol.ssim)] if min(size) > smallest_side(protocol.ssim) else []
    return Psnr(protocol.psnr), Ssim(protocol.ssim), Lpips(network, where.device), *scales


def _check_network(wanted: Distance, kind: str) -> None:
    if kind != wanted.network:
        raise SpecError(
            f"the protocol's LPIPS is over '{wanted.network}', the scale's perceptual network is '{kind}'; "
            "mend 'protocol' or 'roles.perceptual'"
        )
