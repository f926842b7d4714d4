"""What is known of a set of images once each of them was seen: what warnings are found from.

Letters: n images, B images of a batch, H W pixels.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vqbench import distributed
from vqbench.errors import ArtifactError
from vqbench.eval.base import check_alike, shape


class Noted(NamedTuple):
    """One image.

    Attributes:
        digest: :func:`digest_of_pixels`.
        size: (H, W).
        kind: format of its file, or what held it.
        rules: what was done to it, e.g. "grayscale to RGB".
        before: (H, W) that were cropped or enlarged; None: it was not.
    """

    digest: bytes
    size: tuple[int, int]
    kind: str
    rules: tuple[str, ...] = ()
    before: tuple[int, int] | None = None


class ClassSizes(NamedTuple):
    """Images of the smallest and the largest class, and how many classes there are."""

    smallest: int
    largest: int
    classes: int


class Seen:
    """A set of images as far as it was seen; shards of it merge, and nothing depends on the order.

    Attributes:
        size: (H, W) of its images; where they differ, of the first one.
        formats: file format, or what held the images -> how many of those seen so far.
        sizes: (H, W) -> how many of those seen so far.
        cropped: (H, W) before the crop -> how many of those seen so far were cropped or enlarged.
        converted: rule, e.g. "grayscale to RGB" -> on how many of those seen so far.
        labels: (n,) int64 classes where they are known.
    """

    size: tuple[int, int]

    def __init__(self, count: int, size: Sequence[int] | None = None, labels: np.ndarray | None = None) -> None:
        if size is not None:  # else whoever reads the images learns it
            self.size = (size[0], size[1])
        self.labels = labels
        self.formats: Counter[str] = Counter()
        self.sizes: Counter[tuple[int, int]] = Counter()
        self.converted: Counter[str] = Counter()
        self.cropped: Counter[tuple[int, int]] = Counter()
        self._hashes, self._seen = np.zeros((count, 32), np.uint8), np.zeros(count, bool)

    def __len__(self) -> int:
        return len(self._seen)

    def note(self, index: int, image: Noted) -> None:
        """Add an image; each counts once, however often it comes."""
        if self._seen[index]:
            return
        self._seen[index] = True
        self._hashes[index] = np.frombuffer(image.digest, np.uint8)
        self.formats[image.kind] += 1
        self.sizes[image.size] += 1
        if image.before is not None:
            self.cropped[image.before] += 1
        self.converted.update(image.rules)

    def add(self, indices: np.ndarray, images: np.ndarray, kind: str) -> None:
        """Add a batch as it is: indices (B,) and images (B, H, W, 3) uint8."""
        for index, pixels in zip(indices.tolist(), images, strict=True):
            self.note(index, Noted(digest_of_pixels(pixels), pixels.shape[:2], kind))

    def merge(self, other: Seen) -> None:
        """Add what was seen in another shard of the set.

        Raises:
            SpecError: of a set of another number of images.
            ArtifactError: an image was seen in both.
        """
        check_alike("images seen", {"count": len(self)}, {"count": len(other)})
        if (self._seen & other._seen).any():
            raise ArtifactError("an image was counted twice; shards must not overlap")
        self._hashes[other._seen] = other._hashes[other._seen]
        self._seen |= other._seen
        for mine, theirs in ((self.formats, other.formats), (self.converted, other.converted)):
            mine.update(theirs)
        for mine_, theirs_ in ((self.sizes, other.sizes), (self.cropped, other.cropped)):
            mine_.update(theirs_)

    def gather(self) -> None:
        """Add, in the first process, what the others saw."""
        for other in distributed.sent_to_first(self):
            self.merge(other)

    def copies(self) -> int:
        """How many of the images seen so far are pixel for pixel an earlier one."""
        seen = self._hashes[self._seen]
        return len(seen) - len(np.unique(seen.view("V32")))

    def digest(self) -> str:
        """SHA-256 (hex) of the images as they are scored, in order: converted and cropped pixels, no names or paths.

        The same images have the same digest in any container.
        """
        assert self._seen.all(), "the digest of a set is known once all of it was seen"
        return hashlib.sha256(self._hashes.tobytes()).hexdigest()

    def image_sizes(self) -> set[tuple[int, int]]:
        """All (H, W) of its images so far."""
        return {self.size, *self.sizes}

    def class_sizes(self) -> ClassSizes | None:
        """Of the whole set, where its classes are known."""
        return None if self.labels is None else class_sizes(self.labels)


def class_sizes(labels: np.ndarray) -> ClassSizes:
    """Of labels (n,) int64, classes without an image left out."""
    counts = np.unique(labels, return_counts=True)[1]
    return ClassSizes(int(counts.min()), int(counts.max()), len(counts))


def digest_of_pixels(pixels: np.ndarray) -> bytes:
    """SHA-256 of an image (H, W, 3) uint8 and its size."""
    found = hashlib.sha256(shape(pixels.shape).encode())
    found.update(np.ascontiguousarray(pixels).data)
    return found.digest()


def fitting_rule(size: tuple[int, int], crop: tuple[int, int], rule: str) -> str:
    """What a crop to `crop` by `rule` does to an image of (H, W), as :attr:`Seen.converted` has it."""
    smaller = size[0] < crop[0] or size[1] < crop[1]
    return f"{'enlarged' if smaller else 'cropped'} to {shape(crop)} ({rule})"
