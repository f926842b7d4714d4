"""Images in files and arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vqbench.eval.protocols import ImageRules
from vqbench.eval.sources import Source

ADM = ImageRules(crop="adm", rounding="nearest")
TRUNCATE = ImageRules(crop="adm", rounding="truncate")
CENTRE = ImageRules(crop="resize-centre", rounding="nearest")
UNCROPPED = ImageRules(crop="none", rounding="nearest")


def read(source: Source, batch: int = 4) -> np.ndarray:
    """All images, the indices checked."""
    parts = list(source.batches(batch))
    assert np.concatenate([i for i, _ in parts]).tolist() == list(range(len(source)))
    assert all(i.dtype == np.int64 and x.dtype == np.uint8 and 0 < len(i) <= batch for i, x in parts)
    return np.concatenate([x for _, x in parts])


def write(folder: Path, images: np.ndarray, suffix: str = ".png", classes: int = 1, **options: Any) -> Path:
    for i, image in enumerate(images):
        path = folder / (f"c{i * classes // len(images)}" if classes > 1 else "") / f"{i:05d}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path, **options)
    return folder


def noisy(images: np.ndarray, size: int = 9) -> np.ndarray:
    noise = np.random.default_rng(0).integers(-size, size + 1, images.shape)
    return np.clip(images.astype(int) + noise, 0, 255).astype(np.uint8)


def one(folder: Path, image: Image.Image, name: str = "a.png", **options: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    image.save(folder / name, **options)
    return folder


class Items(torch.utils.data.Dataset[Any]):
    def __init__(self, items: list[Any], targets: Any = None) -> None:
        self.items = items
        if targets is not None:
            self.targets = targets

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]
