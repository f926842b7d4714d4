"""A tokenizer's reconstructions beside the data set's own crops, as scoring steps read them; both noted for the guards.

Letters: B images of a batch, H W pixels, N ids an image, Q codes a position.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from vqbench.data import FolderImages, Images
from vqbench.eval.base import Batch
from vqbench.eval.decoding_images import kind_of, size_of
from vqbench.eval.guards import Guards
from vqbench.eval.protocols import Protocol
from vqbench.eval.seen import Noted, Seen, digest_of_pixels, fitting_rule


class Reconstructions:
    """Pairs in the data set's order; several processes may read a share each.

    Args:
        images: the originals.
        decoded: (n, H, W, 3) uint8, their reconstructions.
    """

    def __init__(self, images: Images, decoded: np.ndarray) -> None:
        self.images, self.decoded = images, decoded
        self.seen = Seen(len(decoded), decoded.shape[1:3])
        self.originals = Seen(len(images), decoded.shape[1:3], images.labels)

    def batch(self, part: slice, ids: np.ndarray | None = None) -> Batch:
        """The pairs `part`, and the ids (B, N, Q) that come with them."""
        places = np.arange(part.start, part.stop)
        decoded = np.array(self.decoded[part])  # (B, H, W, 3)
        originals = self.images.batch(part.start, part.stop - part.start)
        self.seen.add(places, decoded, "npy")
        for index, pixels in zip(places.tolist(), originals, strict=True):
            self.originals.note(index, _noted(self.images, index, pixels))
        return Batch(places, decoded, originals, ids=ids)

    def gather(self) -> None:
        """Add, in the first process, what the others saw."""
        self.seen.gather()
        self.originals.gather()

    def warnings(self, protocol: Protocol, names: Sequence[str]) -> list[str]:
        """What is to be said of both sides, once all were seen, where the metrics `names` are scored.

        That originals were cropped is no warning here: the tokenizer's input were these very crops.
        """
        return Guards(protocol, names, made="reconstructed").warnings(self.seen, self.originals)


def _noted(images: Images, index: int, pixels: np.ndarray) -> Noted:
    """Of a file, its format and what the data set's crop did to it; its header is read again for that."""
    digest, size = digest_of_pixels(pixels), size_of(pixels)
    if not isinstance(images, FolderImages):
        return Noted(digest, size, images.spec.kind)
    with Image.open(images.root / images.files[index]) as file:
        before, kind = size_of(file), kind_of(file, "unknown")
    if before == size:
        return Noted(digest, size, kind)
    return Noted(digest, size, kind, (fitting_rule(before, size, images.spec.crop),), before)
