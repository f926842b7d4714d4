"""Images: a folder of class folders, or photographs that ship inside scikit-image and scikit-learn.

Everything is drawn by index and seed: example g of a training stream is the same whichever process or worker asks,
so a resumed run sees what an undisturbed one sees. Images are uint8 RGB (B, H, W, 3) until :func:`to_float`.
"""

from __future__ import annotations

import hashlib
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from vqbench.artifacts import read_json, write_json
from vqbench.errors import DataError, WorkerLost, nearest
from vqbench.progress import Progress
from vqbench.seeds import numpy_rng
from vqbench.specs import DatasetSpec

if TYPE_CHECKING:
    import torch

    from vqbench.jobs import Finished, Job

EXTENSIONS = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
TRAIN_SHARE = 0.7  # embedded: share of a photograph's rows, from the top, that belongs to the training split


def to_float(images: np.ndarray) -> torch.Tensor:
    """uint8 (B, H, W, 3) -> float32 (B, 3, H, W) in [-1, 1]."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float().div(127.5).sub(1.0).contiguous()


def to_uint8(images: torch.Tensor) -> np.ndarray:
    """Float (B, 3, H, W) nominally in [-1, 1] -> uint8 (B, H, W, 3), clipped and rounded to the nearest level."""
    levels = images.detach().float().add(1.0).mul(127.5).round().clamp(0, 255)
    return levels.byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()


def centre_crop(image: Image.Image, size: int) -> np.ndarray:
    """ADM's crop: halve by box filter while twice too large, bicubic to the short side, cut the centre.

    Source: openai/guided-diffusion:guided_diffusion/image_datasets.py (the protocol of ADM, DiT, LlamaGen, VAR).
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.asarray(image)[top : top + size, left : left + size]


def resize_centre(image: Image.Image, size: int) -> np.ndarray:
    """Bicubic (antialiased) to the short side in one go, then the centre."""
    scale = size / min(image.size)
    shape = (max(size, round(image.width * scale)), max(size, round(image.height * scale)))
    image = image.resize(shape, Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.asarray(image)[top : top + size, left : left + size]


class Images(ABC):
    """One split of a data set."""

    labels: np.ndarray  # (n,) int64

    def __init__(self, spec: DatasetSpec, split: str) -> None:
        self.spec, self.split = spec, split

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def plain(self, index: int) -> np.ndarray:
        """The evaluation crop of image `index`, uint8 (H, W, 3)."""

    @abstractmethod
    def augmented(self, position: int, seed: int) -> tuple[np.ndarray, int]:
        """Example `position` of the endless training stream: augmented uint8 (H, W, 3) and its label."""

    def batch(self, start: int, count: int) -> np.ndarray:
        """Evaluation crops ``start .. start + count`` (fewer at the end), uint8 (B, H, W, 3)."""
        return np.stack([self.plain(i) for i in range(start, min(start + count, len(self)))])

    def stream(self, start: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Training examples ``start .. start + count``: uint8 (B, H, W, 3) and int64 (B,)."""
        pairs = [self.augmented(g, seed) for g in range(start, start + count)]
        return np.stack([p[0] for p in pairs]), np.array([p[1] for p in pairs], dtype=np.int64)


class PhotoImages(Images):
    """Crops of embedded photographs, one class each, or all of one class where ``classes`` is 1.

    The photograph is scaled to ``short_side``; its upper 70% is the training region, the rest the validation region, so
    no pixel is shared (the lower parts are the least smooth). Crops are drawn by index and never stored.
    """

    def __init__(self, spec: DatasetSpec, split: str) -> None:
        super().__init__(spec, split)
        self.regions = [photo_region(name, spec.short_side, split) for name in spec.images]
        self.labels = np.arange(spec.sizes[split], dtype=np.int64) % spec.classes

    def position(self, index: int, *path: str | int) -> tuple[int, int, int]:
        """(photograph, top, left) of a crop inside its region."""
        photo = index % len(self.regions)
        height, width = self.regions[photo].shape[:2]
        rng, size = numpy_rng(self.spec.seed, self.split, *path, index), self.spec.resolution
        return photo, int(rng.integers(height - size + 1)), int(rng.integers(width - size + 1))

    def _cut(self, photo: int, top: int, left: int) -> np.ndarray:
        size = self.spec.resolution
        return self.regions[photo][top : top + size, left : left + size]

    def plain(self, index: int) -> np.ndarray:
        return self._cut(*self.position(index))

    def augmented(self, position: int, seed: int) -> tuple[np.ndarray, int]:
        photo, top, left = self.position(position, "stream", seed)
        image = self._cut(photo, top, left)
        flip = self.spec.augment != "none" and numpy_rng(seed, "flip", position).random() < 0.5
        return (image[:, ::-1] if flip else image), photo % self.spec.classes


@lru_cache(maxsize=64)
def photo_region(name: str, short_side: int, split: str) -> np.ndarray:
    """The part of an embedded photograph that belongs to a split, uint8 (h, w, 3)."""
    photo = load_photo(name)
    top, bottom = region_rows(photo.height, split)
    scale = short_side / min(photo.size)
    part = photo.crop((0, top, photo.width, bottom))  # cut first: a resize after it cannot carry pixels across
    size = (round(photo.width * scale), round((bottom - top) * scale))
    return np.asarray(part.resize(size, Image.Resampling.LANCZOS))


def region_rows(height: int, split: str) -> tuple[int, int]:
    """Rows ``top .. bottom`` of a photograph that belong to a split."""
    cut = round(height * TRAIN_SHARE)
    return (0, cut) if split == "train" else (cut, height)


def load_photo(name: str) -> Image.Image:
    """A colour photograph from the wheels of scikit-image (``data/``) or scikit-learn (``datasets/images/``).

    Raises:
        DataError: no such photograph ships with the installed versions.
    """
    from importlib.util import find_spec

    folders = []
    for package, inner in (("skimage", "data"), ("sklearn", "datasets/images")):
        found = find_spec(package)
        folders += [Path(found.origin).parent / inner] if found and found.origin else []
    known = {p.stem: p for folder in folders for p in sorted(folder.glob("*")) if p.suffix in {".png", ".jpg"}}
    if name not in known:
        raise DataError(f"photograph '{name}' does not ship with scikit-image or scikit-learn; {nearest(name, known)}")
    with Image.open(known[name]) as photo:
        return photo.convert("RGB")


class Several(Images):
    """Splits one after the other, to be looked at: nothing trains on them."""

    def __init__(self, spec: DatasetSpec, split: str, parts: list[Images]) -> None:
        super().__init__(spec, split)
        self.parts, self.labels = parts, np.concatenate([part.labels for part in parts])
        self.ends = np.cumsum([len(part) for part in parts])

    def plain(self, index: int) -> np.ndarray:
        part = int(np.searchsorted(self.ends, index, side="right"))
        return self.parts[part].plain(index - (int(self.ends[part - 1]) if part else 0))

    def augmented(self, position: int, seed: int) -> tuple[np.ndarray, int]:
        raise DataError(f"training takes one split, not '{self.split}'")


class FolderImages(Images):
    """A folder of class folders (or one flat folder, then one class), in sorted order."""

    def __init__(self, spec: DatasetSpec, split: str, index: dict[str, Any]) -> None:
        super().__init__(spec, split)
        self.root = split_folder(spec, split)
        self.files: list[str] = index["files"]
        self.labels = np.array(index["labels"], dtype=np.int64)

    def _open(self, index: int) -> Image.Image:
        return read_image(self.root / self.files[index])

    def plain(self, index: int) -> np.ndarray:
        crop = centre_crop if self.spec.crop == "adm" else resize_centre
        return crop(self._open(index), self.spec.resolution)

    def augmented(self, position: int, seed: int) -> tuple[np.ndarray, int]:
        epoch, place = divmod(position, len(self))
        index = int(_permutation(len(self), seed, epoch)[place])
        rng, size = numpy_rng(seed, "augment", position), self.spec.resolution
        random_crop = self.spec.augment == "random-crop-flip"
        image = _random_crop(self._open(index), size, rng) if random_crop else self.plain(index)
        flip = self.spec.augment != "none" and rng.random() < 0.5
        return (image[:, ::-1] if flip else image), int(self.labels[index])


def _random_crop(image: Image.Image, size: int, rng: np.random.Generator) -> np.ndarray:
    """A square of 0.8 to 1.0 of the short side, resized. Source: FoundationVision/LlamaGen:dataset/augmentation.py."""
    side = max(1, int(min(image.size) * rng.uniform(0.8, 1.0)))
    left, top = int(rng.integers(image.width - side + 1)), int(rng.integers(image.height - side + 1))
    cut = image.crop((left, top, left + side, top + side))
    return np.asarray(cut.resize((size, size), Image.Resampling.BICUBIC))


@lru_cache(maxsize=2)
def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    return numpy_rng(seed, "epoch", epoch).permutation(count)


def read_image(path: Path) -> Image.Image:
    """Decode an image fully, as RGB.

    Raises:
        DataError: missing, truncated, corrupt or not an image; names the file.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"image {path} cannot be decoded: {error}; restore it or set 'on_bad_image: skip'") from None


def split_folder(spec: DatasetSpec, split: str) -> Path:
    """The folder of a split, $VARIABLES expanded.

    Raises:
        DataError: no path set, a variable is not set, or the folder does not exist.
    """
    raw = spec.path or ""
    if not raw or not all(os.environ.get(name) for name in re.findall(r"\$\{?(\w+)", raw)):
        raise DataError(f"data set path '{raw}' is not set; set it in workflow/datasets.yaml or export the variable")
    folder = Path(os.path.expandvars(raw)).expanduser() / spec.splits.get(split, split)
    if not folder.is_dir():
        raise DataError(f"data set folder {folder} does not exist; mend 'path' or 'splits' in workflow/datasets.yaml")
    return folder


def scan_folder(spec: DatasetSpec, split: str) -> dict[str, Any]:
    """Files (relative, sorted) and labels of a split.

    Raises:
        DataError: no image in it, or another number of class folders than the spec says.
    """
    folder = split_folder(spec, split)
    names = sorted(p.name for p in folder.iterdir() if p.is_dir()) if spec.classes > 1 else [""]
    files = [(str(p.relative_to(folder)), i) for i, name in enumerate(names) for p in _images_below(folder / name)]
    if not files:
        raise DataError(f"data set folder {folder} holds no image ({', '.join(sorted(EXTENSIONS))})")
    if len(names) != spec.classes:
        raise DataError(
            f"{folder} has {len(names)} class folders, its entry says {spec.classes}; mend 'classes' or the folder"
        )
    return {"files": [f for f, _ in files], "labels": [c for _, c in files], "skipped": []}


def _images_below(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in EXTENSIONS)


def open_images(spec: DatasetSpec, split: str, finished: Finished | None = None) -> Images:
    """A split of a data set. With `finished` (the checked data set), its index is used and skipped images stay out.

    ``train+validation``, and the like, are several in that order.

    Raises:
        DataError: unknown split, missing or empty folder, unknown photograph.
    """
    if "+" in split:
        return Several(spec, split, [open_images(spec, part, finished) for part in split.split("+")])
    if split not in spec.sizes:
        raise DataError(f"no split '{split}'; {nearest(split, spec.sizes)}")
    if spec.kind == "embedded":
        return PhotoImages(spec, split)
    index = read_json(finished.file(f"{split}.json")) if finished else scan_folder(spec, split)
    return FolderImages(spec, split, index)


def check_dataset(spec: DatasetSpec, split: str, workers: int | None = None) -> dict[str, Any]:
    """Decode every image of a folder split; returns the index with a SHA-256 over all bytes.

    Raises:
        DataError: an image cannot be decoded and ``on_bad_image`` is ``fail``; names the file.
        WorkerLost: a process that decodes was killed.
    """
    index, folder = scan_folder(spec, split), split_folder(spec, split)
    progress, whole = Progress(len(index["files"]), f"check {split}", "img"), hashlib.sha256()
    kept: list[tuple[str, int]] = []
    for name, label, digest in _decode_all(folder, index, workers):
        progress.update()
        if digest.startswith("bad:"):
            if spec.on_bad_image == "fail":
                raise DataError(digest[4:])
            index["skipped"].append(name)
            continue
        kept.append((name, label))
        whole.update(f"{name}:{digest}\n".encode())
    return {"files": [k[0] for k in kept], "labels": [k[1] for k in kept], "skipped": index["skipped"],
            "sha256": whole.hexdigest()}  # fmt: skip


def _decode_all(folder: Path, index: dict[str, Any], workers: int | None) -> Iterator[tuple[str, int, str]]:
    paths = [folder / name for name in index["files"]]
    pool = ProcessPoolExecutor(workers)
    try:
        digests = pool.map(_digest_image, paths, chunksize=64)
        yield from zip(index["files"], index["labels"], digests, strict=True)
    except BrokenProcessPool:
        raise WorkerLost(
            f"a process that decodes the images of {folder} was killed; run the same command again, and if it happens "
            "again, give the job more memory"
        ) from None
    finally:  # the first bad image ends the check: what is still queued is not decoded
        pool.shutdown(wait=True, cancel_futures=True)


def _digest_image(path: Path) -> str:
    try:
        read_image(path)
    except DataError as error:
        return f"bad:{error}"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run(job: Job) -> dict[str, Any]:
    """Step ``dataset``: the pre-flight check. Writes one index per split; embedded data list their photographs."""
    spec: DatasetSpec = job.spec
    facts: dict[str, Any] = {"images": {}, "skipped": {}}
    for split in spec.sizes:
        if spec.kind == "embedded":
            regions = [photo_region(name, spec.short_side, split) for name in spec.images]
            index: dict[str, Any] = {"photographs": list(spec.images), "skipped": [], "drawn": spec.sizes[split],
                                     "sha256": [hashlib.sha256(r.tobytes()).hexdigest() for r in regions]}  # fmt: skip
            facts["images"][split] = spec.sizes[split]
        else:
            index = check_dataset(spec, split)
            found = len(index["files"]) + len(index["skipped"])
            if found != spec.sizes[split]:
                raise DataError(
                    f"data set {job.key[1]}/{split} holds {found} images, its entry says {spec.sizes[split]}; "
                    "complete the folder, or mend 'sizes' in workflow/datasets.yaml"
                )
            facts["images"][split] = len(index["files"])
        facts["skipped"][split] = len(index["skipped"])
        write_json(job.store / f"{split}.json", index)
    return facts
