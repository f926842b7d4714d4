"""Images to score, whatever holds them: opened by kind, paired by name or order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from vqbench.errors import DataError
from vqbench.eval.archive import UNREADABLE
from vqbench.eval.base import shape
from vqbench.eval.protocols import ImageRules
from vqbench.eval.source_base import Rules, Source
from vqbench.eval.source_kinds import Array, Folder, Items, Zipped

__all__ = ["Source", "open_source", "pairs"]
SHOWN = 3  # names in an error


def open_source(
    what: Any,
    rules: ImageRules,
    crop_to: tuple[int, int] | None = None,
    value_range: tuple[float, float] | None = None,
    any_size: bool = False,
    enlarge: bool = True,
) -> Source:
    """Open images to score.

    Args:
        what: a folder (nested; PNG, JPEG, WebP, BMP), an ``.npz`` with ``arr_0``, a ``.npy``, an array or tensor
            ((n, H, W, C) or (n, C, H, W), uint8 or floats), a map-style data set, or a source, which is given back.
        rules: how images are cropped and floats rounded.
        crop_to: (H, W); images of another size are cropped by ``rules.crop``. None: all have one size already.
        value_range: of floats, (0, 1) or (-1, 1).
        any_size: take images of several sizes as they are; each batch then holds one size.
        enlarge: enlarge images that are smaller than `crop_to`; False refuses them.

    Raises:
        DataError: nothing there, no images in it, or not images that can be scored.
        SpecError: another range.
    """
    settings = Rules(rules, crop_to, value_range, any_size, enlarge)
    if isinstance(what, Source):
        return _same(what, crop_to)
    if isinstance(what, str | Path):
        return _open_path(Path(what).expanduser(), settings)
    if isinstance(what, np.ndarray | torch.Tensor):
        kind = "array" if isinstance(what, np.ndarray) else "tensor"
        return Array(what, kind, kind, settings)
    if isinstance(what, Mapping) or not (hasattr(what, "__len__") and hasattr(what, "__getitem__")):
        raise DataError(f"{type(what).__name__} is no set of images; give a folder, .npz, array or map-style data set")
    return Items(what, settings)


def _same(source: Source, crop_to: tuple[int, int] | None) -> Source:
    if crop_to is not None and source.size != crop_to:
        raise DataError(
            f"{source.name} is open at {shape(source.size)}, wanted is {shape(crop_to)}; open it with crop_to={crop_to}"
        )
    return source


def _open_path(path: Path, settings: Rules) -> Source:
    if path.is_dir():
        return Folder(path, settings)
    if not path.exists():
        raise DataError(f"{path} does not exist; give a folder of images, an .npz or a .npy")
    if path.suffix == ".npz":
        return Zipped(path, settings)
    if path.suffix == ".npy":
        return Array(_mapped(path), "npy", path.name, settings)
    raise DataError(f"{path} is no folder, .npz or .npy; give the folder that holds the images")


def _mapped(path: Path) -> np.ndarray:
    try:
        found: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        return found
    except UNREADABLE as error:
        raise DataError(f"{path} cannot be read ({error}); write it again with numpy.save") from None


def pairs(source: Source, originals: Source, batch: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Indices of `source` (B,), its images and their originals, both (B, H, W, 3) uint8.

    Two folders are matched by relative path without the suffix, everything else by order.

    Raises:
        DataError: counts or sizes differ, or an image has no original; names them.
    """
    order = _matched(source, originals) if isinstance(source, Folder) and isinstance(originals, Folder) else None
    if len(source) != len(originals):
        raise DataError(f"pairs need equal counts: {source.name} has {len(source)} images, "
                        f"{originals.name} {len(originals)}; give the originals of exactly these images")  # fmt: skip
    if source.size != originals.size:
        raise DataError(f"pairs need equal sizes: {source.name} is {shape(source.size)}, {originals.name} "
                        f"{shape(originals.size)}; crop the originals as the tokenizer's input was")  # fmt: skip
    for (indices, images), (_, before) in zip(source.batches(batch), originals.batches(batch, order), strict=True):
        if images.shape != before.shape:
            raise DataError(f"pairs need equal sizes: {source.image_name(int(indices[0]))} is {shape(images.shape[1:])}, "
                            f"its original {shape(before.shape[1:])}; crop the originals beforehand")  # fmt: skip
        yield indices, images, before


def _matched(source: Folder, originals: Folder) -> np.ndarray:
    """The originals' indices in the order of `source`."""
    mine, theirs = _places(source), _places(originals)
    lonely = [key for key in mine if key not in theirs], [key for key in theirs if key not in mine]
    if any(lonely):
        sides = [
            f"{_some(names)} only in {where.root}"
            for names, where in zip(lonely, (source, originals), strict=True)
            if names
        ]
        raise DataError(f"pairs are matched by file name without suffix: {'; '.join(sides)}; name both sides alike")
    return np.array([theirs[key] for key in mine], dtype=np.int64)


def _places(folder: Folder) -> dict[str, int]:
    """Relative path without suffix -> index, in order."""
    found: dict[str, int] = {}
    for index, file in enumerate(folder.files):
        key = PurePosixPath(file).with_suffix("").as_posix()
        if key in found:
            raise DataError(
                f"pairs are matched by file name without suffix: {folder.root} holds {folder.files[found[key]]} and {file}; "
                "keep one of them"
            )
        found[key] = index
    return found


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(sorted(names)[:SHOWN]) + rest
