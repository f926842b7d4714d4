"""Files that are not what they are called: one line that names them, before anything is scored, and no traceback."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vqbench.cli import main
from vqbench.eval.archive import members, read_array
from vqbench.eval.base import Batch
from vqbench.eval.usage import Usage

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)


def npy(array: np.ndarray, header: bytes | None = None) -> bytes:
    """A .npy file, with another header of the same length in its place."""
    file = io.BytesIO()
    np.save(file, array)
    data = file.getvalue()
    return data if header is None else data[:10] + header.ljust(118)[:117] + b"\n" + data[128:]


def damaged_deflate(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("arr_0.npy", npy(IMAGES))
    data = bytearray(path.read_bytes())
    data[39:43] = b"\xff\xff\xff\xff"  # where the member's bytes begin
    path.write_bytes(data)


def encrypted(path: Path) -> None:
    np.savez(path, arr_0=IMAGES)
    data = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = data.index(signature) + flags
        data[place : place + 2] = struct.pack("<H", 1)
    path.write_bytes(data)


def unclosed_header(path: Path) -> None:
    path.write_bytes(npy(IMAGES, b"{'descr': '|u1', 'fortran_order': False, 'shape': (12, 8, 8, 3"))


def unclosed_member(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", npy(IMAGES, b"{'descr': '|u1', 'fortran_order': False, 'shape': (12, 8, 8, 3"))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("deflate.npz", damaged_deflate),
        ("encrypted.npz", encrypted),
        ("header.npz", unclosed_member),
        ("header.npy", unclosed_header),
    ],
)
def test_images_that_cannot_be_read(
    name: str, write: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / name)
    assert name in refused(tmp_path, capsys, "--generated", str(tmp_path / name), "--metrics", "fid")


def test_an_archive_s_arrays_that_cannot_be_read(tmp_path: Path) -> None:
    from vqbench.errors import ArtifactError

    for write in (damaged_deflate, encrypted, unclosed_member):
        write(tmp_path / "x.npz")
        assert members(tmp_path / "x.npz") == {"arr_0"}
        with pytest.raises(ArtifactError, match=r"x\.npz"):
            read_array(tmp_path / "x.npz", "arr_0")


def refused(folder: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What ``vqbench evaluate`` says of a mistake, nothing written."""
    np.save(folder / "images.npy", IMAGES)
    given = ["--generated", str(folder / "images.npy")] if "--generated" not in words else []
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", *given, "--reference", str(folder / "images.npy"), "--out", str(folder / "out.json"), *words])
    assert ended.value.code in (1, 2) and not (folder / "out.json").exists()
    return capsys.readouterr().err


# Their first bytes are read as pickle's instructions, each of which fails in a way of its own.
ANSWERS = (b"<html>", b"error code: 1015", b"access denied", b"busy", b"too many requests", b"unknown", b"R", b"\x80", b"",
           b"version https://git-lfs.github.com/spec/v1\n")  # fmt: skip
LPIPS = ("--metrics", "lpips_alex", "--pairs")


@pytest.mark.parametrize(
    ("kind", "suffix", "words", "text"),
    [
        *(("inception-v3", ".pth", ("--metrics", "fid"), text) for text in ANSWERS),
        *(("lpips-alexnet", ".pth", LPIPS, text) for text in ANSWERS[:4]),
        ("clip-vitb32", ".pt", ("--metrics", "clip_score"), ANSWERS[1]),
        ("clip-vitb32", ".safetensors", ("--metrics", "clip_score"), ANSWERS[1]),
    ],
)
def test_weights_that_are_a_server_s_answer(
    kind: str, suffix: str, words: tuple[str, ...], text: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(text)
    (tmp_path / "captions.txt").write_text("a\n" * len(IMAGES))
    more = ("--captions", str(tmp_path / "captions.txt")) if "clip_score" in words else ()
    said = refused(tmp_path, capsys, *words, *more, "--weights", f"{kind}={path}")
    assert path.name in said and "fetch it again: https://" in said


def test_captions_and_ids_that_are_something_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "captions.txt").write_bytes("Schönes Bild\n".encode("latin-1") * len(IMAGES))
    said = refused(tmp_path, capsys, "--metrics", "clip_score", "--captions", str(tmp_path / "captions.txt"))
    assert "captions.txt is no UTF-8 text" in said
    unclosed_header(tmp_path / "ids.npy")
    said = refused(tmp_path, capsys, "--metrics", "usage", "--ids", str(tmp_path / "ids.npy"), "--num-codes", "4")
    assert "ids.npy is no .npy file of ids" in said


def test_a_result_that_could_not_be_written_is_refused_before_scoring(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for out, why in ((tmp_path, "it is a folder"), (tmp_path / "file" / "x.csv", "cannot write")):
        for verb in ("evaluate", "bridge"):
            with pytest.raises(SystemExit) as ended:
                main([verb, "--generated", "nowhere", "--reference", "nowhere", "--out", str(out)])
            said = capsys.readouterr().err
            assert ended.value.code == 1 and why in said and "nowhere" not in said


def test_ids_of_any_integers_count_alike() -> None:
    ids = np.random.default_rng(1).integers(0, 16, (12, 9, 1))
    counted = []
    for dtype in (np.int64, np.uint64, np.uint8, np.int16):
        usage = Usage(16)
        usage.update(Batch(np.arange(12), ids=ids.astype(dtype)))
        counted.append(usage.compute())
    assert counted[0] == counted[1] == counted[2] == counted[3]
