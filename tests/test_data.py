"""Data sets: disjoint splits, draws by index, crops against a reference, and errors that name the file."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vqbench import data
from vqbench.errors import DataError
from vqbench.papers import bench
from vqbench.specs import DatasetSpec

PHOTOS = bench("demo").datasets["photos"]


def folder_spec(root: Path, **changes: object) -> DatasetSpec:
    base = {
        "kind": "folder",
        "path": str(root),
        "resolution": 16,
        "classes": 2,
        "sizes": {"train": 6},
        "augment": "flip",
    }
    return DatasetSpec.model_validate(base | changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for i in range(3):
            pixels = rng.integers(0, 256, (40 + i, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "train" / name / f"{i}.png")
    return tmp_path


@pytest.mark.parametrize("name", ["photos", "photos-64"])
def test_train_and_validation_share_no_pixel(name: str) -> None:
    spec = bench("demo").datasets[name]
    for photo in spec.images:
        whole = data.load_photo(photo)
        (top, cut), (again, bottom) = (data.region_rows(whole.height, s) for s in ("train", "validation"))
        assert (top, bottom) == (0, whole.height) and cut == again, "the regions tile the source rows, no overlap"
        # Paint one split's rows: the other's region must not change by a single level.
        train, held = (data.photo_region(photo, spec.short_side, s) for s in ("train", "validation"))
        painted = np.asarray(whole).copy()
        painted[cut:] = 255 - painted[cut:]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(data, "load_photo", lambda _, image=painted: Image.fromarray(image))
            assert np.array_equal(data.photo_region.__wrapped__(photo, spec.short_side, "train"), train)
            assert not np.array_equal(data.photo_region.__wrapped__(photo, spec.short_side, "validation"), held)
        assert min(*train.shape[:2], *held.shape[:2]) >= spec.resolution


def test_crops_stay_in_their_region() -> None:
    for split in ("train", "validation"):
        images = data.PhotoImages(PHOTOS, split)
        for index in range(64):
            label, top, left = images.position(index)
            region = images.regions[label]
            assert 0 <= top <= region.shape[0] - 32 and 0 <= left <= region.shape[1] - 32
            assert np.array_equal(images.plain(index), region[top : top + 32, left : left + 32])


def test_classes_are_colourful_and_not_flat() -> None:
    for name in (*PHOTOS.images, *bench("demo").datasets["photos-ood"].images):
        pixels = np.asarray(data.load_photo(name), dtype=np.float64)
        assert pixels.std((0, 1)).max() > 25, f"{name} is near-constant"
        assert np.abs(pixels - pixels.mean(2, keepdims=True)).mean() > 3, f"{name} is grey"


def test_the_stream_does_not_depend_on_how_it_is_cut() -> None:
    images = data.open_images(PHOTOS, "train")
    whole, labels = images.stream(100, 12, seed=3)
    parts = [images.stream(100 + i, 4, seed=3) for i in (0, 4, 8)]
    assert np.array_equal(whole, np.concatenate([p[0] for p in parts]))
    assert np.array_equal(labels, np.concatenate([p[1] for p in parts]))
    assert not np.array_equal(whole, images.stream(100, 12, seed=4)[0])


@given(st.lists(st.integers(0, 255), min_size=12, max_size=12))
def test_uint8_survives_the_round_trip(values: list[int]) -> None:
    pixels = np.array(values, dtype=np.uint8).reshape(1, 2, 2, 3)
    assert np.array_equal(data.to_uint8(data.to_float(pixels)), pixels)


def test_every_level_survives_and_out_of_range_is_clipped() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    assert np.array_equal(data.to_uint8(data.to_float(levels)), levels)
    wild = torch.tensor([-5.0, 5.0, 0.0]).view(1, 3, 1, 1)
    assert data.to_uint8(wild).flatten().tolist() == [0, 255, 128]


def test_adm_crop_is_box_then_bicubic() -> None:
    """Against a mean over 2x2 blocks, then bicubic, on a size where the box filter runs once."""
    rng = np.random.default_rng(0)
    image = Image.fromarray((rng.integers(0, 64, (50, 70, 3)) * 4).astype(np.uint8))
    half = np.asarray(image, dtype=np.float64).reshape(25, 2, 35, 2, 3).mean((1, 3))
    small = np.asarray(Image.fromarray(half.astype(np.uint8)).resize((28, 20), Image.Resampling.BICUBIC))
    found = data.centre_crop(image, 20)
    assert found.shape == (20, 20, 3)
    assert np.abs(found.astype(int) - small[:, 4:24].astype(int)).max() <= 1


def test_a_folder_is_read_in_sorted_order(folder: Path) -> None:
    images = data.open_images(folder_spec(folder), "train")
    assert len(images) == 6 and images.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert images.batch(4, 10).shape == (2, 16, 16, 3)
    epoch = [images.augmented(g, 0)[1] for g in range(6)]
    assert sorted(epoch) == [0, 0, 0, 1, 1, 1], "an epoch sees each image once"


def test_random_crops_are_drawn_by_position(folder: Path) -> None:
    images = data.open_images(folder_spec(folder, augment="random-crop-flip"), "train")
    assert np.array_equal(images.augmented(7, 0)[0], images.augmented(7, 0)[0])
    assert not np.array_equal(images.augmented(7, 0)[0], images.augmented(7, 1)[0])


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_truncated_image_is_named(folder: Path) -> None:
    truncate(folder / "train" / "dog" / "1.png")
    with pytest.raises(DataError, match=r"dog/1\.png cannot be decoded.*on_bad_image: skip"):
        data.check_dataset(folder_spec(folder), "train", workers=1)


@pytest.mark.timeout(20)  # decoding all of them takes a minute
def test_the_check_stops_at_the_first_bad_image(tmp_path: Path) -> None:
    """Not after the whole data set: what is still queued is not decoded."""
    (tmp_path / "train" / "cat").mkdir(parents=True)
    (tmp_path / "train" / "dog").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (600, 600, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "train" / "dog" / "0.png")
    for i in range(4000):
        (tmp_path / "train" / "dog" / f"{i + 1}.png").hardlink_to(tmp_path / "train" / "dog" / "0.png")
    (tmp_path / "train" / "cat" / "0.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"cat/0\.png"):
        data.check_dataset(folder_spec(tmp_path), "train", workers=1)


def test_skipped_images_are_counted_and_listed(folder: Path) -> None:
    truncate(folder / "train" / "dog" / "1.png")
    index = data.check_dataset(folder_spec(folder, on_bad_image="skip"), "train", workers=1)
    assert index["skipped"] == ["dog/1.png"] and len(index["files"]) == 5 == len(index["labels"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "/nowhere"}, "/nowhere/train does not exist"),
        ({"path": "$VQBENCH_UNSET_VARIABLE"}, "is not set"),
        ({"path": None}, "is not set"),
        ({"classes": 3}, "2 class folders, its entry says 3"),
        ({"splits": {"train": "empty"}}, "holds no image"),
    ],
)
def test_a_data_set_that_is_not_there_says_how_to_mend_it(
    folder: Path, change: dict[str, object], message: str
) -> None:
    (folder / "empty" / "cat").mkdir(parents=True)
    (folder / "empty" / "dog").mkdir()
    with pytest.raises(DataError, match=message):
        data.open_images(folder_spec(folder, **change), "train")


def test_unknown_split_and_photograph(folder: Path) -> None:
    with pytest.raises(DataError, match="did you mean 'train'"):
        data.open_images(folder_spec(folder), "trian")
    with pytest.raises(DataError, match="did you mean 'coffee'"):
        data.load_photo("cofee")


def test_the_path_is_not_hashed(folder: Path) -> None:
    from vqbench.specs import digest_of

    assert digest_of(folder_spec(folder)) == digest_of(folder_spec(Path(os.sep)))
