"""Image files to uint8 RGB by declared rules; decoding runs ahead in threads, results keep their order.

EXIF orientation, colour profiles and gamma are not applied, as in torchvision and in the libraries that scores are compared
with: pixels are taken as stored.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from vqbench.data import centre_crop, resize_centre
from vqbench.errors import DataError
from vqbench.eval.base import shape
from vqbench.eval.protocols import ImageRules

# What Pillow raises on damaged files, beside OSError of truncated ones.
DAMAGED = (OSError, UnidentifiedImageError, SyntaxError, ValueError, EOFError, IndexError, TypeError, struct.error,
           zlib.error, Image.DecompressionBombError)  # fmt: skip
CONVERTED = {"1": "bilevel", "L": "grayscale", "P": "palette", "CMYK": "CMYK", "YCbCr": "YCbCr"}

T = TypeVar("T")
R = TypeVar("R")


class Decoded(NamedTuple):
    """One image.

    Attributes:
        image: RGB, as a Pillow image or as uint8 (H, W, 3).
        format: of its file, e.g. "png", or what held it, e.g. "tensor".
        rules: what was done to it, e.g. "grayscale to RGB".
    """

    image: Image.Image | np.ndarray
    format: str
    rules: tuple[str, ...] = ()


def decode(path: Path, name: str) -> Decoded:
    """Decode a file fully.

    Raises:
        DataError: missing, truncated, corrupt or not an image, or of a kind that :func:`to_rgb` refuses; says `name`.
    """
    try:
        with Image.open(path) as image:
            moving = ("first frame of an animation",) if getattr(image, "is_animated", False) else ()
            rgb, rules = to_rgb(image, name)
            rgb.load()
            return Decoded(rgb, kind_of(image, "unknown"), (*rules, *moving))
    except DAMAGED as error:
        raise DataError(f"image {name} cannot be decoded ({error}); restore it or take it out of the set") from None


def kind_of(image: Image.Image, otherwise: str) -> str:
    """Format of the file that an image comes from; `otherwise` of none. A JPEG of several pictures (mpo) is a JPEG."""
    kind = (image.format or otherwise).lower()
    return "jpeg" if kind == "mpo" else kind


def to_rgb(image: Image.Image, name: str) -> tuple[Image.Image, tuple[str, ...]]:
    """RGB and the rule that made it so: gray, palette and CMYK are converted by Pillow, opaque alpha is dropped.

    Raises:
        DataError: 16 bits a channel, transparent pixels, or another kind of pixel: no rule is declared for those.
    """
    if _deep(image):
        raise DataError(
            f"image {name} has more than 8 bits a channel ({image.mode}) and scores are of 8-bit images; "
            "convert it the way that you mean, e.g. magick in.png -depth 8 out.png"
        )
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        return _without_alpha(image, name), ("opaque alpha dropped",)
    if image.mode == "RGB":
        return image, ()
    if image.mode not in CONVERTED:
        raise DataError(f"image {name} has pixels of kind '{image.mode}'; save it as 8-bit RGB")
    return image.convert("RGB"), (f"{CONVERTED[image.mode]} to RGB",)


def _deep(image: Image.Image) -> bool:
    """Pillow opens 16-bit RGB PNG as 8-bit RGB without a word; the raw mode of its data still tells, before it is loaded."""
    tiles: Iterable[Any] = getattr(image, "tile", ())  # (decoder, extent, offset, raw mode)
    raw = [str(tile[3]) for tile in tiles] if image.format == "PNG" else []
    return image.mode.startswith("I") or image.mode == "F" or any(mode.endswith(";16B") for mode in raw)


def _without_alpha(image: Image.Image, name: str) -> Image.Image:
    full = image.convert("RGBA")
    if full.getchannel("A").getextrema() != (255, 255):
        raise DataError(
            f"image {name} has transparent pixels and no background is declared; "
            "flatten it first, e.g. magick in.png -background white -flatten out.png"
        )
    return full.convert("RGB")


def fit(image: Image.Image | np.ndarray, size: tuple[int, int], rules: ImageRules, name: str) -> np.ndarray:
    """The image at (H, W): as it is, or cropped by the protocol's rule to a square. uint8 (H, W, 3).

    Raises:
        DataError: it is of another size, and the protocol crops nothing or the size is no square.
    """
    found = size_of(image)
    if found == size:
        return np.asarray(image)
    if rules.crop == "none" or size[0] != size[1]:
        why = "the protocol crops nothing" if rules.crop == "none" else "crops are square"
        raise DataError(f"image {name} is {shape(found)}, wanted is {shape(size)}, and {why}; crop the set beforehand")
    crop = centre_crop if rules.crop == "adm" else resize_centre
    return crop(image if isinstance(image, Image.Image) else Image.fromarray(image), size[0])


def size_of(image: Image.Image | np.ndarray) -> tuple[int, int]:
    """(H, W) of an image."""
    return (image.shape[0], image.shape[1]) if isinstance(image, np.ndarray) else (image.height, image.width)


def cores() -> int:
    """Cores that this process may use, at most 16: beyond, Python's own work per image is the limit."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(16, found)


def in_order(work: Callable[[T], R], items: Iterable[T], threads: int, ahead: int) -> Iterator[R]:
    """``map(work, items)`` in threads, at most `ahead` items beyond the one taken; the first error in order is raised."""
    pool, waiting = ThreadPoolExecutor(threads, "decode"), deque[Future[R]]()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # also where the consumer stops early: what is still queued is not decoded
        pool.shutdown(wait=True, cancel_futures=True)
