"""``vqbench statistics``: reusable statistics of a reference, one file."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from vqbench.artifacts import check_writable
from vqbench.errors import SpecError
from vqbench.eval.base import Layer
from vqbench.eval.feature_set import FeatureSet
from vqbench.eval.inception_score import InceptionScore
from vqbench.eval.judges import Judges, with_judge
from vqbench.eval.passes import collect
from vqbench.eval.protocols import Protocol, load_protocol
from vqbench.eval.reference import chosen, meta, reference_layers, reference_set
from vqbench.eval.request import Images, Request
from vqbench.eval.scoring import device_of, scoring_device
from vqbench.eval.sources import Source
from vqbench.eval.statistics_file import save_statistics


def statistics(
    reference: Images,
    out: Path,
    *,
    protocol: str = "adm",
    judge: str | None = None,
    weights: Mapping[str, str | Path | nn.Module] | None = None,
    resolution: int | None = None,
    value_range: tuple[float, float] | None = None,
    images: bool = False,
    device: str | torch.device | None = None,
) -> dict[str, Any]:
    """Extract the features of a reference once and write ``out`` (npz: mu, sigma, n, mu_s, sigma_s, features ...).

    ``vqbench evaluate --reference OUT`` reads it under the same protocol's judge.

    Args:
        resolution: crop images to this side by the protocol's rule; by default they are taken as they are.
        images: add those that precision and recall compare with, as ``arr_0``: ADM's evaluator opens a reference only
            where it has them (10,000 of 256x256: 2 GB), and reads its moments then.

    Raises:
        SpecError: `out` is no name of an npz, or the resolution no side.
        ArtifactError: `out` cannot be written.

    Returns:
        the file's ``meta``: protocol, digests of judge, weights and images.
    """
    if resolution is not None and resolution < 1:
        raise SpecError(f"--resolution {resolution}: a side in pixels, 1 or more")
    out = _writable(out)
    found = with_judge(load_protocol(protocol), judge) if judge else load_protocol(protocol)
    where = scoring_device()  # and TF32 off, whichever device is taken
    where = device_of(device) if device else where
    request = Request(found, [], True, False, where, Judges(found, where, weights), value_range)
    crop = (resolution, resolution) if resolution else None
    source = request.open(reference, crop=crop)
    layers = reference_layers(found) | frozenset[Layer]({"logits"} if found.judge.logits else ())
    known, logits = reference_set(len(source), found), FeatureSet(frozenset(), {"logits": None})
    sets = (known, logits) if found.inception_score is not None else (known,)
    collect(source, request.judges.extractor(layers), found.batch, request.seconds, *sets)
    header = meta(found, source.digest(), request.judges.digests) | {
        "count": known.count,
        "crop": crop,
        "classes": source.class_sizes(),
        "converted": dict(sorted(source.converted.items())),
        "formats": dict(sorted(source.formats.items())),
        "copies": source.copies(),
        "sizes": [[*size, count] for size, count in sorted(source.sizes.items())],
    }
    header |= _own_score(found, logits)
    with _chosen_images(source, chosen(len(source), found), found.batch, out) if images else nullcontext() as kept:
        save_statistics(out, known, header, kept)
    return header


def _writable(out: Path) -> Path:
    """The path of an npz in a folder that is there: whoever reads it goes by its suffix."""
    out = Path(out).expanduser()
    if out.suffix != ".npz":
        raise SpecError(f"--out {out}: statistics are one file that ends in .npz, e.g. {out.with_suffix('.npz').name}")
    check_writable(out)
    return out


@contextmanager
def _chosen_images(source: Source, places: np.ndarray | None, batch: int, out: Path) -> Iterator[np.ndarray]:
    """(m, H, W, 3) uint8, on the disk beside `out` for as long as it is used."""
    if len(source.sizes) > 1:
        raise SpecError(f"{source.name} holds images of several sizes, ADM's layout has one; give --resolution")
    wanted = np.arange(len(source)) if places is None else places
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        found = np.lib.format.open_memmap(
            Path(folder) / "images.npy", "w+", dtype=np.uint8, shape=(len(wanted), *source.size, 3)
        )
        start = 0
        for indices, images in source.batches(batch):
            some = images[np.isin(indices, wanted)]
            found[start : start + len(some)] = some
            start += len(some)
        yield found


def _own_score(protocol: Protocol, logits: FeatureSet) -> dict[str, Any]:
    """The reference's own Inception Score, what a perfect model would reach; nothing for fewer images than splits."""
    if protocol.inception_score is None or logits.count < (protocol.inception_score.splits or 2):
        return {}
    return {"is": InceptionScore(protocol.inception_score).compute(logits, None)["is"].value}
