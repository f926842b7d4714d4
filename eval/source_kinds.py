"""Where images come from: folders, archives, arrays and tensors, data sets.

Letters: n images, H W pixels, C channels.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image

from vqbench.data import EXTENSIONS
from vqbench.errors import ArtifactError, DataError
from vqbench.eval.archive import Archive, members
from vqbench.eval.decoding_images import Decoded, cores, decode, kind_of, size_of, to_rgb
from vqbench.eval.image_numbers import Numbers, numbers_of
from vqbench.eval.source_base import CHUNK, Rules, Source


class Folder(Source):
    """Image files below a folder in the order of their relative paths, which is that of every machine.

    Hidden files and folders are left out. Sub-folders at the top are classes where every image lies in one.

    Attributes:
        files: relative paths with "/".
    """

    def __init__(self, root: Path, rules: Rules) -> None:
        self.root, self.files = root, list_images(root)
        super().__init__(f"folder {root.name}", len(self.files), rules)
        self.name, self.threads = root.name or str(root), cores()
        tops = [PurePosixPath(file).parts[0] if "/" in file else "" for file in self.files]
        if "" not in tops:
            self.classes = tuple(sorted(set(tops)))
            place = {name: i for i, name in enumerate(self.classes)}
            self.labels = np.array([place[top] for top in tops], dtype=np.int64)
        self.size = rules.crop_to or size_of(self.reader()(0).image)

    def reader(self) -> Callable[[int], Decoded]:
        return lambda index: decode(self.root / self.files[index], self.image_name(index))

    def image_name(self, index: int) -> str:
        return str(self.root / self.files[index])


def list_images(root: Path) -> list[str]:
    """Relative paths of the images below a folder, sorted; links to folders are followed, each folder once.

    Raises:
        DataError: there is none.
    """
    found, entered = [], {root.resolve()}
    for folder, inner, files in os.walk(root, followlinks=True):
        inside = {name: (Path(folder) / name).resolve() for name in inner if not name.startswith(".")}
        inner[:] = [name for name, real in inside.items() if real not in entered]
        entered.update(inside.values())
        relative = Path(folder).relative_to(root)
        found += [
            (relative / name).as_posix()
            for name in files
            if not name.startswith(".") and Path(name).suffix.lower() in EXTENSIONS
        ]
    if not found:
        raise DataError(f"folder {root} holds no image ({', '.join(sorted(EXTENSIONS))})")
    return sorted(found)


class Zipped(Source):
    """``arr_0`` of an ``.npz``, read as a stream; whole-number ``arr_1`` are its labels, as ADM's sampler writes them."""

    def __init__(self, path: Path, rules: Rules) -> None:
        if "arr_0" not in (held := members(path)):
            raise DataError(
                f"{path} holds no arr_0, it holds {', '.join(sorted(held)) or 'nothing'}; images go there as uint8 "
                "(n, H, W, 3), and saved statistics can only be the reference of image sets"
            )
        self.archive = Archive(path, "arr_0")
        super().__init__(path.name, len(self.archive) if self.archive.shape else 0, rules)
        self.numbers = _numbers(self.archive.shape, self.archive.dtype, rules, path.name)
        self.size = rules.crop_to or self.numbers.size(self.archive.shape[1:])
        self.labels = _labels_of(path, len(self))

    def reader(self) -> Callable[[int], Decoded]:
        rows = (row for part in self.archive.batches(CHUNK) for row in part)
        return lambda index: self.numbers.image(next(rows), "npz", self.image_name(index))

    def image_name(self, index: int) -> str:
        return f"{index} of {self.name}"


def _labels_of(path: Path, count: int) -> np.ndarray | None:
    try:
        labels = Archive(path, "arr_1")
    except ArtifactError:
        return None
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        return None
    return next(labels.batches(count)).astype(np.int64)


class Array(Source):
    """An array or tensor in memory, or one mapped from a ``.npy``: (n, H, W, C) or (n, C, H, W)."""

    def __init__(self, what: np.ndarray | torch.Tensor, kind: str, name: str, rules: Rules) -> None:
        super().__init__(name, len(what) if what.ndim else 0, rules)
        self.what, self.kind, self.threads = what, kind, cores()
        self.numbers = _numbers(tuple(what.shape), what.dtype, rules, name)
        self.size = rules.crop_to or self.numbers.size(tuple(what.shape[1:]))

    def reader(self) -> Callable[[int], Decoded]:
        return lambda index: self.numbers.image(self.what[index], self.kind, self.image_name(index))

    def image_name(self, index: int) -> str:
        return f"{index} of {self.name}"


def _numbers(dims: tuple[int, ...], dtype: Any, rules: Rules, name: str) -> Numbers:
    return numbers_of(dims[1:], dtype, rules.value_range, rules.images.rounding, name)


class Items(Source):
    """A map-style data set whose items are a Pillow image, a tensor or an array, or a tuple that begins with one.

    Read by one thread, ahead of the metrics: data sets need not bear several. ``targets`` are its labels.
    """

    def __init__(self, dataset: Any, rules: Rules) -> None:
        super().__init__(type(dataset).__name__, len(dataset), rules)
        self.dataset = dataset
        targets = getattr(dataset, "targets", None)
        if targets is not None and len(targets) == len(self):
            self.labels = np.asarray(targets).astype(np.int64)
        self.size = rules.crop_to or size_of(self.reader()(0).image)

    def reader(self) -> Callable[[int], Decoded]:
        return self._image

    def _image(self, index: int) -> Decoded:
        item, name = self.dataset[index], self.image_name(index)
        item = item[0] if isinstance(item, tuple | list) else item
        if isinstance(item, Image.Image):
            rgb, rules = to_rgb(item, name)
            return Decoded(rgb, kind_of(item, "dataset"), rules)
        if not isinstance(item, np.ndarray | torch.Tensor):
            raise DataError(f"image {name} is a {type(item).__name__}; give a tensor, an array or a Pillow image")
        rules_ = self.rules
        numbers = numbers_of(tuple(item.shape), item.dtype, rules_.value_range, rules_.images.rounding, name)
        return numbers.image(item, "dataset", name)

    def image_name(self, index: int) -> str:
        return f"{index} of {self.name}"
