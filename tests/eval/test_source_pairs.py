"""Pairing two sources, and decoding ahead in threads."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vqbench.errors import DataError
from vqbench.eval.decoding_images import in_order
from vqbench.eval.sources import open_source, pairs

from .image_sets import ADM, Items, one, read, write


def test_folders_are_paired_by_name_whatever_their_suffix_and_order(images: np.ndarray, tmp_path: Path) -> None:
    names = ["a", "a-1", "a_b", "c/x", "c/x-2", "c.d"]  # with suffixes these sort another way than without
    for name, image in zip(names, images, strict=False):
        one((tmp_path / "g" / name).parent, Image.fromarray(image), f"{Path(name).name}.png")
        one((tmp_path / "o" / name).parent, Image.fromarray(image), f"{Path(name).name}.webp", lossless=True)
    source, originals = open_source(tmp_path / "g", ADM), open_source(tmp_path / "o", ADM)
    found = list(pairs(source, originals, 4))
    assert np.concatenate([i for i, _, _ in found]).tolist() == list(range(6))
    assert all(np.array_equal(x, y) for _, x, y in found)
    assert sum(originals.formats.values()) == 6
    assert np.array_equal(read(open_source(tmp_path / "o", ADM)), np.concatenate([images[[names.index(n)]] for n in
        ("a-1", "a", "a_b", "c.d", "c/x-2", "c/x")]))  # fmt: skip


def test_everything_else_is_paired_by_order(images: np.ndarray, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images[::-1])
    for _, x, y in pairs(open_source(write(tmp_path / "a", images), ADM), open_source(tmp_path / "a.npz", ADM), 11):
        assert np.array_equal(x, images) and np.array_equal(y, images[::-1])


def test_sides_that_do_not_pair_are_named(images: np.ndarray, tmp_path: Path) -> None:
    def start(a: Any, b: Any) -> None:
        next(pairs(open_source(a, ADM), open_source(b, ADM), 4))

    folder = write(tmp_path / "a", images)
    with pytest.raises(DataError, match="array has 11 images, array 10"):
        start(images, images[:10])
    with pytest.raises(DataError, match=r"10x12.*8x12"):
        start(images, images[:, :, :8])
    with pytest.raises(DataError, match=r"00005, 00006, 00007 and 3 more only in .*a;"):
        start(folder, write(tmp_path / "b", images[:5]))
    one(tmp_path / "b", Image.new("RGB", (10, 12)), "extra.png")
    with pytest.raises(DataError, match=r"; extra only in .*b;"):
        start(folder, tmp_path / "b")
    one(folder, Image.new("RGB", (10, 12)), "00001.jpg")
    with pytest.raises(DataError, match=r"holds 00001\.jpg and 00001\.png"):
        start(folder, folder)


def test_decoding_runs_ahead_but_not_far() -> None:
    started: list[int] = []
    source = in_order(lambda i: started.append(i) or i, range(1000), threads=2, ahead=5)
    assert [next(source) for _ in range(3)] == [0, 1, 2]
    source.close()  # type: ignore[attr-defined]
    assert len(started) <= 3 + 5 + 1


def test_a_reader_that_stops_early_leaves_no_thread(images: np.ndarray, tmp_path: Path) -> None:
    before = threading.active_count()
    stream = open_source(write(tmp_path / "a", images), ADM).batches(2)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_errors_come_in_the_order_of_the_images() -> None:
    def work(i: int) -> int:
        if i >= 5:
            raise DataError(str(i))
        return i

    found = in_order(work, range(20), threads=4, ahead=10)
    assert [next(found) for _ in range(5)] == list(range(5))
    with pytest.raises(DataError, match=r"^5$"):
        next(found)


def test_data_sets_are_read_by_one_thread() -> None:
    class Watching(Items):
        threads: set[int] = set()  # noqa: RUF012

        def __getitem__(self, index: int) -> Any:
            self.threads.add(threading.get_ident())
            return torch.zeros(3, 8, 8, dtype=torch.uint8)

    source = open_source(Watching([0] * 9), ADM)
    Watching.threads.clear()  # the first item is looked at for its size
    read(source)
    assert len(Watching.threads) == 1
