"""A set of images: the same uint8 batches whatever holds them; decoded ahead, cropped, hashed, counted.

Letters: n images, B images of a batch, H W pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from vqbench.errors import DataError
from vqbench.eval.base import shape
from vqbench.eval.decoding_images import Decoded, fit, in_order, size_of
from vqbench.eval.protocols import ImageRules
from vqbench.eval.seen import Noted, Seen, digest_of_pixels, fitting_rule

CHUNK = 16  # images of a batch where nobody looks at them


class Rules(NamedTuple):
    """How a source reads its images.

    Attributes:
        images: the protocol's.
        crop_to: (H, W) of every image; None takes them as they are.
        value_range: of float images.
        any_size: images may differ in size; a batch still holds one size.
        enlarge: images smaller than `crop_to` are enlarged; otherwise refused, as originals of pairs are.
    """

    images: ImageRules
    crop_to: tuple[int, int] | None = None
    value_range: tuple[float, float] | None = None
    any_size: bool = False
    enlarge: bool = True


class Source(Seen, ABC):
    """A set of images, read in order any number of times; memory is bounded whatever n.

    What it was seen to hold (:class:`vqbench.eval.seen.Seen`) is noted as it is read; images differ in size only with
    ``any_size``.

    Attributes:
        name: short, for people.
        classes: names of the classes where they are known.
    """

    classes: tuple[str, ...] = ()
    threads = 1

    def __init__(self, name: str, count: int, rules: Rules) -> None:
        if not count:
            raise DataError(f"{name} holds no images")
        super().__init__(count)
        self.name, self.rules = name, rules

    @abstractmethod
    def reader(self) -> Callable[[int], Decoded]:
        """Gives the image of an index; called from :attr:`threads` threads, in order where that is one."""

    @abstractmethod
    def image_name(self, index: int) -> str:
        """What errors call an image."""

    def batches(self, batch: int, order: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Indices (B,) int64 and images (B, H, W, 3) uint8; the next batch is decoded while this one is worked on.

        Args:
            order: indices in the order wanted; only of a :class:`Folder`.

        Raises:
            DataError: an image that cannot be read or has another size than the first; names it.
        """
        order = np.arange(len(self)) if order is None else order
        held: list[np.ndarray] = []
        start = 0
        for found in self._decoded(order, batch):
            if held and (len(held) == batch or held[0].shape != found.shape):
                yield order[start : start + len(held)], np.stack(held)
                start, held = start + len(held), []
            held.append(found)
        yield order[start:], np.stack(held)

    def _decoded(self, order: np.ndarray, ahead: int) -> Iterator[np.ndarray]:
        """Images (H, W, 3) in order, noted as they come."""
        read, indices = self.reader(), order.tolist()
        found = in_order(lambda index: self._read(read, index), indices, self.threads, ahead + self.threads)
        for index, each in zip(indices, found, strict=True):
            self.note(index, each.noted)
            yield each.pixels

    def _read(self, read: Callable[[int], Decoded], index: int) -> _Pixels:
        """In a decoding thread: decode, crop, hash."""
        image, kind, rules = read(index)
        name, crop = self.image_name(index), self.rules.crop_to
        size = size_of(image)
        if crop is not None and size != crop:
            image = fit(image, crop, self.rules.images, name)
            rules = (*rules, self._fitted(size, crop, name))
        elif size != self.size and not self.rules.any_size:
            raise DataError(
                f"images of one set have one size: {self.image_name(0)} is {shape(self.size)}, {name} is {shape(size)}; "
                "crop them to one size"
            )
        pixels = np.asarray(image)
        fitted = size_of(pixels)
        return _Pixels(pixels, Noted(digest_of_pixels(pixels), fitted, kind, rules, None if size == fitted else size))

    def _fitted(self, size: tuple[int, int], crop: tuple[int, int], name: str) -> str:
        """What the crop does to an image of that size."""
        smaller = size[0] < crop[0] or size[1] < crop[1]
        if smaller and not self.rules.enlarge:
            raise DataError(
                f"original {name} is {shape(size)}, smaller than the image of {shape(crop)} that it is compared with; "
                f"give originals of {shape(crop)} or more, or score images of {shape(size)}"
            )
        return fitting_rule(size, crop, self.rules.images.crop)

    def digest(self) -> str:
        """:meth:`Seen.digest`, taken along with the first pass over the images; where there was none, one is made."""
        if not self._seen.all():
            for _ in self.batches(CHUNK):
                pass
        return super().digest()


class _Pixels(NamedTuple):
    pixels: np.ndarray
    noted: Noted
