"""Scores shards of one set in as many processes as torchrun starts: ``python tests/gathering.py FOLDER``. Each process writes
how much it held at the end to ``FOLDER/<number>.json``, process 0 all values to ``FOLDER/found.json``.
"""

from __future__ import annotations

import json
import sys
import weakref
from pathlib import Path

import numpy as np
import torch

from vqbench import distributed
from vqbench.eval.archive import batches
from vqbench.eval.base import Batch, Features
from vqbench.eval.evaluator import Evaluator
from vqbench.eval.feature_set import FeatureSet
from vqbench.eval.protocols import load_protocol
from vqbench.eval.psnr import Psnr
from vqbench.eval.seen import Seen
from vqbench.eval.set_metrics import set_metrics
from vqbench.eval.unique_ratio import UniqueRatio
from vqbench.eval.usage import Usage
from vqbench.seeds import numpy_rng

IMAGES, BATCH, LENGTH, CODES = 61, 4, 12, 16
OWN = 50  # images from here on are copies of the first ones


def batch_of(part: slice) -> Batch:
    """Images, originals, ids and a judge's features that follow from their indices."""
    rngs = [numpy_rng(0, "gathered", index % OWN) for index in range(part.start, part.stop)]
    pixels = np.stack([rng.integers(0, 256, (2, 8, 8, 3)).astype(np.uint8) for rng in rngs])
    rows = torch.from_numpy(np.stack([rng.normal(size=LENGTH).astype(np.float32) for rng in rngs]))
    ids = np.stack([rng.integers(0, CODES, (9, 1)) for rng in rngs])
    places = np.arange(part.start, part.stop)
    return Batch(places, pixels[:, 0], pixels[:, 1], Features(rows, rows), ids)


def reference() -> FeatureSet:
    """Of 70 other images."""
    rows = torch.from_numpy(numpy_rng(0, "reference").normal(size=(70, LENGTH)).astype(np.float32))
    found = FeatureSet(frozenset({"pooled"}), {"pooled": None})
    found.update(Batch(np.arange(70), features=Features(rows)))
    return found


class Held:
    """What a process gives to the first one."""

    def __init__(self) -> None:
        self.number = distributed.rank()


def one_at_a_time() -> list[int]:
    """The numbers of those that gave, none of them held any more when the next one came."""
    numbers, earlier = [], []
    for held in distributed.sent_to_first(Held()):
        assert not any(known() for known in earlier)
        numbers.append(held.number)
        earlier.append(weakref.ref(held))
        del held
    return numbers


def main(folder: Path) -> None:
    """Score a share, gather, write."""
    torch.set_num_threads(1)
    distributed.join()
    protocol = load_protocol("demo")
    sets = set_metrics(["fid", "is", "precision", "recall"], protocol)
    evaluator = Evaluator([Psnr(protocol.psnr), Usage(CODES), UniqueRatio()], sets)
    seen = Seen(IMAGES, (8, 8))
    for part in distributed.share(list(batches(IMAGES, BATCH))):
        evaluator.see(batch := batch_of(part))
        assert batch.images is not None
        seen.add(batch.indices, batch.images, "array")
    evaluator.gather()
    seen.gather()
    assert evaluator.features is not None
    held = {"images": evaluator.features.count, "given": one_at_a_time()}
    (folder / f"{distributed.rank()}.json").write_text(json.dumps(held))
    if distributed.rank() == 0:
        found: dict[str, object] = {name: list(each) for _, name, each in evaluator.compute(reference())}
        found |= {"copies": seen.copies(), "digest": seen.digest(), "formats": seen.formats}
        (folder / "found.json").write_text(json.dumps(found))
    distributed.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
