"""What the benchmarks score: photographs as PNG and JPEG, reconstructions of them, and random weights of the true shapes.

Speed does not depend on the weights' values; agreement of two sides over the same weights does show on random ones.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vqbench.data import load_photo
from vqbench.seeds import numpy_rng

PHOTOS = ("astronaut", "chelsea", "coffee", "china", "flower", "rocket")
DISTINCT = 512  # images among the files that are read
INCEPTION = "weights-inception-2015-12-05-6726825d.pth"


def crop(index: int, size: int) -> np.ndarray:
    """A random crop of one of the embedded photographs, (size, size, 3) uint8, flipped at random."""
    rng, photo = numpy_rng(0, "benchmark", index), load_photo(PHOTOS[index % len(PHOTOS)])
    side = max(size + 32, 300)
    scale = side / min(photo.size)
    image = np.asarray(photo.resize((round(photo.width * scale), round(photo.height * scale))))
    top, left = rng.integers(image.shape[0] - size + 1), rng.integers(image.shape[1] - size + 1)
    found = image[top : top + size, left : left + size]
    return found[:, ::-1] if rng.random() < 0.5 else found


def distort(image: np.ndarray, index: int) -> np.ndarray:
    """What a tokenizer might make of it: fewer details and a little noise."""
    small = Image.fromarray(image).resize((image.shape[1] // 2, image.shape[0] // 2), Image.Resampling.BILINEAR)
    blurred = np.asarray(small.resize((image.shape[1], image.shape[0]), Image.Resampling.BICUBIC)).astype(int)
    noise = numpy_rng(0, "noise", index).integers(-6, 7, image.shape)
    return np.clip(blurred + noise, 0, 255).astype(np.uint8)


def write_images(folder: Path, count: int, size: int) -> None:
    """``real/``, ``other/`` (different images) and ``made/`` (reconstructions of ``real/``), `count` PNGs each."""
    for name in ("real", "other", "made"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        image = crop(index, size)
        Image.fromarray(image).save(folder / "real" / f"{index:06d}.png")
        Image.fromarray(crop(count + index, size)).save(folder / "other" / f"{index:06d}.png")
        Image.fromarray(distort(image, index)).save(folder / "made" / f"{index:06d}.png")


def write_files(folder: Path, count: int, size: int) -> None:
    """`count` PNG and as many JPEG files of one size, for reading; after the first ones come copies: encoding takes minutes."""
    for kind, suffix, options in (("png", "png", {}), ("jpeg", "jpg", {"quality": 95})):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            path = folder / kind / f"{index:06d}.{suffix}"
            if index < DISTINCT:
                Image.fromarray(crop(index, size)).save(path, **options)
            else:
                shutil.copyfile(path.with_name(f"{index % DISTINCT:06d}.{suffix}"), path)


def write_weights(folder: Path) -> None:
    """Inception's and AlexNet's, where torch's hub cache has them, below `folder` (a TORCH_HOME)."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    from random_weights import write_inception  # with torchvision: a side that is measured does without

    cache = folder / "hub" / "checkpoints"
    cache.mkdir(parents=True, exist_ok=True)
    write_inception(cache / INCEPTION)
    from torchvision.models import alexnet

    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(alexnet(weights=None).state_dict(), cache / "alexnet-owt-7be5be79.pth")


def weights(folder: Path) -> dict[str, Path]:
    """Kind of network -> file, as ``evaluate`` takes them."""
    cache = folder / "hub" / "checkpoints"
    return {"inception-v3": cache / INCEPTION, "lpips-alexnet": cache / "alexnet-owt-7be5be79.pth"}
