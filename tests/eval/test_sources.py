"""Reading images: every container gives the same pixels, every kind of file goes by its rule, what is wrong is named."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vqbench.data import centre_crop, resize_centre
from vqbench.errors import DataError, UserError
from vqbench.eval.sources import open_source

from .image_sets import ADM, CENTRE, UNCROPPED, Items, one, read, write


def containers(images: np.ndarray, folder: Path) -> dict[str, Any]:
    first = torch.from_numpy(images).permute(0, 3, 1, 2)
    np.savez(folder / "a.npz", arr_0=images)
    np.savez_compressed(folder / "c.npz", arr_0=images)
    np.save(folder / "a.npy", images)
    return {
        "png": write(folder / "png", images), "bmp": write(folder / "bmp", images, ".BMP"),
        "webp": write(folder / "webp", images, ".webp", lossless=True), "nested": write(folder / "nested", images, classes=3),
        "npz": folder / "a.npz", "string": str(folder / "c.npz"), "npy": folder / "a.npy", "array": images,
        "channels first": images.transpose(0, 3, 1, 2), "tensor": torch.from_numpy(images), "tensor first": first,
        "data set": Items([*first]), "pairs": Items([(x, 3) for x in first]),
        "pillow": Items([Image.fromarray(x) for x in images]), "floats": Items([x.float() / 255 for x in first]),
    }  # fmt: skip


def test_every_container_gives_the_same_pixels_and_the_same_digest(images: np.ndarray, tmp_path: Path) -> None:
    digests = set()
    for name, what in containers(images, tmp_path).items():
        source = open_source(what, ADM, value_range=(0, 1))
        assert len(source) == 11 and source.size == (12, 10), name
        assert np.array_equal(read(source), images), name
        digests.add(source.digest())
        assert sum(source.formats.values()) == 11 and dict(source.sizes) == {(12, 10): 11}
        assert source.converted == ({"floats to 256 levels (nearest)": 11} if name == "floats" else {}), name
    assert len(digests) == 1
    assert open_source(images[::-1], ADM).digest() not in digests  # order counts
    reshaped = images.reshape(11, 10, 12, 3)
    assert open_source(reshaped, ADM).digest() not in digests  # and so does shape


def test_a_source_can_be_read_again_and_counts_each_image_once(images: np.ndarray, tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "a", images, ".jpg"), ADM)
    first = read(source)
    digest = source.digest()
    assert np.array_equal(first, read(source, 3)) and source.digest() == digest
    assert source.formats == {"jpeg": 11}


def test_the_digest_does_not_hang_on_names_places_or_times(images: np.ndarray, tmp_path: Path) -> None:
    a = open_source(write(tmp_path / "a", images), ADM)
    b = open_source(write(tmp_path / "elsewhere" / "b", images, ".bmp", classes=2), ADM)
    assert a.digest() == b.digest()  # neither was read before
    assert read(a).shape == images.shape


@settings(max_examples=25, deadline=None)
@given(st.lists(st.from_regex(r"[a-zA-Z0-9_-]{1,3}(/[a-z0-9-]{1,3}){0,2}", fullmatch=True), min_size=1, max_size=8, unique=True),
       st.integers(1, 9))  # fmt: skip
def test_files_come_in_the_order_of_their_relative_paths(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], batch: int
) -> None:
    root = tmp_path_factory.mktemp("tree")
    files = [f"{name}.png" for name in names]
    for value, name in enumerate(files):
        one((root / name).parent, Image.new("RGB", (2, 2), (value, 0, 0)), Path(name).name)
    found = read(open_source(root, ADM), batch)[:, 0, 0, 0].tolist()
    assert found == [files.index(name) for name in sorted(files)]


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 23), batch=st.integers(1, 30))
def test_batches_of_any_size_hold_the_same_images(count: int, batch: int) -> None:
    images = np.random.default_rng(count).integers(0, 256, (count, 5, 6, 3), dtype=np.uint8)
    source = open_source(images, ADM)
    assert np.array_equal(read(source, batch), images)
    assert [len(x) for _, x in source.batches(batch)] == [min(batch, count - i) for i in range(0, count, batch)]


def test_hidden_files_stay_out_and_linked_folders_count_once(images: np.ndarray, tmp_path: Path) -> None:
    root = write(tmp_path / "set", images[:3], classes=3)
    one(root / ".ipynb_checkpoints", Image.new("RGB", (2, 2)))
    (root / "c0" / "._00000.png").write_bytes(b"resource fork")
    (root / "notes.txt").write_text("not an image")
    write(tmp_path / "other", images[3:5])
    (root / "linked").symlink_to(tmp_path / "other", target_is_directory=True)
    (root / "c1" / "loop").symlink_to(root, target_is_directory=True)
    assert np.array_equal(read(open_source(root, ADM)), images[:5])


def test_sub_folders_are_classes(images: np.ndarray, tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "a", images, classes=3), ADM)
    assert source.classes == ("c0", "c1", "c2") and source.labels is not None
    assert source.labels.tolist() == [i * 3 // 11 for i in range(11)]
    one(tmp_path / "a", Image.new("RGB", (10, 12)), "zz.png")
    assert open_source(tmp_path / "a", ADM).labels is None


def test_labels_of_archives_and_data_sets_are_known(images: np.ndarray, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images, np.arange(11) % 4)
    np.savez(tmp_path / "b.npz", images, np.ones((11, 3)))
    labels = open_source(tmp_path / "a.npz", ADM).labels
    assert labels is not None and labels.tolist() == (np.arange(11) % 4).tolist()
    assert open_source(tmp_path / "b.npz", ADM).labels is None
    targets = open_source(Items([*images], targets=[1] * 11), ADM).labels
    assert targets is not None and targets.tolist() == [1] * 11


def test_gray_palette_opaque_and_cmyk_files_are_converted_and_counted(tmp_path: Path) -> None:
    photo = Image.fromarray(np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    kinds = {
        "a.png": ("L", "grayscale to RGB"), "b.png": ("P", "palette to RGB"), "c.png": ("RGBA", "opaque alpha dropped"),
        "d.jpg": ("CMYK", "CMYK to RGB"), "e.png": ("1", "bilevel to RGB"), "f.png": ("LA", "opaque alpha dropped"),
        "g.jpg": ("L", "grayscale to RGB"), "h.png": ("RGB", ""),
    }  # fmt: skip
    for name, (mode, _) in kinds.items():
        one(tmp_path, photo.convert(mode), name)
    one(tmp_path, photo.convert("P"), "i.png", transparency=bytes([255] * 256))
    source = open_source(tmp_path, ADM)
    found = read(source)
    assert source.converted == {
        "grayscale to RGB": 2, "palette to RGB": 1, "opaque alpha dropped": 3, "CMYK to RGB": 1, "bilevel to RGB": 1
    }  # fmt: skip
    assert source.formats == {"png": 7, "jpeg": 2}
    for image, name in zip(found, sorted(kinds), strict=False):
        with Image.open(tmp_path / name) as file:
            assert np.array_equal(image, np.asarray(file.convert("RGB"))), name
    assert np.array_equal(found[2], np.asarray(photo)) and np.array_equal(found[0][..., 0], found[0][..., 2])


def test_orientation_tags_are_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    one(tmp_path, Image.new("RGB", (6, 4), (9, 9, 9)), "a.jpg", exif=exif)
    assert open_source(tmp_path, ADM).size == (4, 6)


def test_the_first_frame_of_an_animation_is_taken_and_counted(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), (value, 0, 0)) for value in (10, 200)]
    one(tmp_path, frames[0], "a.png", save_all=True, append_images=frames[1:])
    source = open_source(tmp_path, ADM)
    assert read(source)[0, 0, 0, 0] == 10 and source.converted == {"first frame of an animation": 1}


def sixteen_bit_rgb(folder: Path) -> None:
    """A 16-bit RGB PNG, which Pillow cannot write: written chunk by chunk."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes(range(24)) for _ in range(4))
    header = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (folder / "deep.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)


def gray_key(folder: Path) -> None:
    one(folder, Image.new("L", (4, 4), 7), "key.png", transparency=7)


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "16-bit gray": (lambda f: one(f, Image.fromarray(np.full((4, 4), 700, np.uint16)), "deep.png"), "8 bits.*-depth 8"),
    "16-bit RGB": (sixteen_bit_rgb, r"deep\.png.*8 bits"),
    "transparent": (lambda f: one(f, Image.new("RGBA", (4, 4), (1, 2, 3, 254)), "ghost.png"), r"ghost\.png.*-flatten"),
    "palette": (lambda f: one(f, Image.new("P", (4, 4)), "ghost.png", transparency=0), r"ghost\.png.*transparent"),
    "colour key": (gray_key, r"key\.png.*transparent"),
    "text": (lambda f: (f / "a.png").write_text("no image"), r"a\.png cannot be decoded.*restore"),
    "empty file": (lambda f: (f / "a.jpg").write_bytes(b""), r"a\.jpg cannot be decoded"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_no_rule_covers_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    make, message = REFUSED[kind]
    make(tmp_path)
    with pytest.raises(DataError, match=message):
        read(open_source(tmp_path, ADM))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp"])
def test_a_truncated_file_is_named_wherever_it_lies(images: np.ndarray, tmp_path: Path, suffix: str) -> None:
    root = write(tmp_path / "set", images, suffix)
    torn = root / f"00007{suffix}"
    torn.write_bytes(torn.read_bytes()[: torn.stat().st_size // 2])
    source = open_source(root, ADM)
    with pytest.raises(DataError, match=rf"00007\{suffix} cannot be decoded"):
        read(source)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), suffix=st.sampled_from(["png", "jpeg", "webp", "bmp"]))
def test_damage_anywhere_is_an_error_with_a_name_or_an_image(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, suffix: str
) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8))
    image.save(buffer := io.BytesIO(), suffix)
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / f"a.{suffix}").write_bytes(content[: data.draw(st.integers(1, len(content)))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of huge sizes and odd metadata
        try:
            source = open_source(folder, ADM)
            assert read(source).shape == (1, *source.size, 3)
        except DataError as error:
            assert f"a.{suffix}" in str(error)


def test_images_of_two_sizes_are_refused_unless_cropped(tmp_path: Path) -> None:
    photo = Image.fromarray(np.random.default_rng(2).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    one(tmp_path, photo.crop((0, 0, 16, 16)), "a.png")
    one(tmp_path, photo, "b.png")
    with pytest.raises(DataError, match=r"a\.png is 16x16.*b\.png is 60x40"):
        read(open_source(tmp_path, ADM))
    for rules, crop in ((ADM, centre_crop), (CENTRE, resize_centre)):
        source = open_source(tmp_path, rules, crop_to=(16, 16))
        found = read(source)
        assert np.array_equal(found[1], crop(photo, 16)) and np.array_equal(found[0], np.asarray(photo)[:16, :16])
        assert source.converted == {f"cropped to 16x16 ({rules.crop})": 1}
    with pytest.raises(DataError, match=r"b\.png is 60x40, wanted is 16x16, and the protocol crops nothing"):
        read(open_source(tmp_path, UNCROPPED, crop_to=(16, 16)))
    with pytest.raises(DataError, match="crops are square"):
        read(open_source(tmp_path, ADM, crop_to=(16, 12)))


def test_arrays_are_cropped_by_the_same_rule(images: np.ndarray, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images)
    wanted = np.stack([centre_crop(Image.fromarray(x), 6) for x in images])
    for what in (images, tmp_path / "a.npz", write(tmp_path / "a", images)):
        source = open_source(what, ADM, crop_to=(6, 6))
        assert source.size == (6, 6) and np.array_equal(read(source), wanted)
        assert source.digest() == open_source(wanted, ADM).digest()


def test_several_sizes_can_be_asked_for_and_batches_hold_one_each(tmp_path: Path) -> None:
    for i, width in enumerate([4, 4, 6, 6, 6, 4]):
        one(tmp_path, Image.new("RGB", (width, 5), (i, 0, 0)), f"{i}.png")
    source = open_source(tmp_path, UNCROPPED, any_size=True)
    parts = list(source.batches(2))
    assert [x.shape[:3] for _, x in parts] == [(2, 5, 4), (2, 5, 6), (1, 5, 6), (1, 5, 4)]
    assert [int(x[0, 0, 0, 0]) for _, x in parts] == [int(i[0]) for i, _ in parts] == [0, 2, 4, 5]
    assert source.sizes == {(5, 4): 3, (5, 6): 3}


def torn_zip(path: Path) -> Path:
    np.savez(path, arr_0=np.zeros((4, 8, 8, 3), np.uint8))
    path.write_bytes(path.read_bytes()[:600])
    return path


def flipped_zip(path: Path) -> Path:
    np.savez(path, arr_0=np.zeros((40, 16, 16, 3), np.uint8))
    content = bytearray(path.read_bytes())
    content[20_000] ^= 1
    path.write_bytes(content)
    return path


def no_images(path: Path) -> Path:
    np.savez(path, mu=np.zeros(3), sigma=np.zeros((3, 3)))
    return path


BAD_PATHS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda f: f / "nowhere", "nowhere does not exist"),
    "empty": (lambda f: f, "holds no image"),
    "one file": (
        lambda f: one(f, Image.new("RGB", (4, 4)), "a.png") / "a.png",
        r"a\.png is no folder.*folder that holds",
    ),
    "torn npz": (lambda f: torn_zip(f / "t.npz"), r"t\.npz"),
    "flipped bit": (lambda f: flipped_zip(f / "t.npz"), r"t\.npz.*damaged"),
    "statistics": (lambda f: no_images(f / "s.npz"), r"s\.npz holds no arr_0, it holds mu, sigma"),
    "bad npy": (lambda f: ((f / "b.npy").write_bytes(b"\x93NUMPY"), f / "b.npy")[1], r"b\.npy cannot be read"),
}


@pytest.mark.parametrize("kind", BAD_PATHS)
def test_paths_without_images_are_named(kind: str, tmp_path: Path) -> None:
    make, message = BAD_PATHS[kind]
    with pytest.raises(UserError, match=message):
        read(open_source(make(tmp_path), ADM))


def test_an_open_source_is_taken_as_it_is(images: np.ndarray) -> None:
    source = open_source(images, ADM)
    assert open_source(source, ADM) is source and open_source(source, ADM, crop_to=(12, 10)) is source
    with pytest.raises(DataError, match="open at 10x12, wanted is 6x6"):
        open_source(source, ADM, crop_to=(6, 6))
