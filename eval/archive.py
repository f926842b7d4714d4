"""An ``.npz`` of images read as a stream."""

from __future__ import annotations

import lzma
import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from vqbench.errors import ArtifactError

# What NumPy, zipfile and the decompressors raise over a damaged, encrypted or otherwise unreadable .npy or .npz.
UNREADABLE = (
    OSError, EOFError, KeyError, ValueError, RuntimeError, SyntaxError, tokenize.TokenError, lzma.LZMAError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def batches(count: int, size: int) -> Iterator[slice]:
    """``0 .. count`` in slices of `size`, the last one shorter."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


class Archive:
    """One array of an ``.npz``, read in order without loading it: 50,000 samples of 256x256 are 9.8 GB.

    Attributes:
        shape: of the whole array.

    Raises:
        ArtifactError: no such array, not an archive, or truncated.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.member = path, f"{name}.npy"
        with (one := self._open()) as (self.shape, self.dtype, _):
            if one.fortran:
                raise ArtifactError(f"{path}: {self.member} is in Fortran order; write it in C order")

    def __len__(self) -> int:
        return self.shape[0]

    def batches(self, size: int) -> Iterator[np.ndarray]:
        """Rows in order, `size` at a time."""
        row = int(np.prod(self.shape[1:])) * self.dtype.itemsize
        with self._open() as (_, _, stream):
            for part in batches(len(self), size):
                data = self._bytes(stream, row * (part.stop - part.start))
                if len(data) != row * (part.stop - part.start):
                    raise ArtifactError(f"{self.path} ends in the middle of {self.member}; sample again")
                yield np.frombuffer(bytearray(data), self.dtype).reshape(-1, *self.shape[1:])

    def _bytes(self, stream: IO[bytes], count: int) -> bytes:
        try:
            return stream.read(count)
        except UNREADABLE as error:  # a checksum that does not fit, too
            raise ArtifactError(f"{self.path}: {self.member} is damaged ({error}); make it again") from None

    def _open(self) -> _Member:
        return _Member(self.path, self.member)


class _Member:
    """Context: (shape, dtype, stream behind the header) of a member of an archive."""

    def __init__(self, path: Path, member: str) -> None:
        self.path, self.member = path, member
        self.archive: zipfile.ZipFile | None = None
        self.stream: IO[bytes] | None = None

    def __enter__(self) -> tuple[tuple[int, ...], np.dtype[Any], Any]:
        try:
            self.archive = zipfile.ZipFile(self.path)
            self.stream = self.archive.open(self.member)
            version = np.lib.format.read_magic(self.stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, self.fortran, dtype = read(self.stream)
            if dtype.hasobject:  # pickled: reading it would run what it says
                raise ValueError("an array of objects")
        except UNREADABLE as error:
            self._close()
            raise ArtifactError(f"{self.path} holds no readable {self.member} ({error}); sample again") from None
        return shape, dtype, self.stream

    def holds(self, size: int) -> bool:
        """Whether that many bytes stand behind the header."""
        assert self.archive is not None and self.stream is not None, "open"
        return self.archive.getinfo(self.member).file_size - self.stream.tell() >= size

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        for opened in (self.stream, self.archive):
            if opened is not None:
                opened.close()


def members(path: Path) -> frozenset[str]:
    """Names of the arrays of an ``.npz``.

    Raises:
        ArtifactError: missing, truncated or not an archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return frozenset(name.removesuffix(".npy") for name in archive.namelist())
    except UNREADABLE as error:
        raise ArtifactError(f"{path} is no readable .npz ({error}); make it again") from None


def read_array(path: Path, name: str) -> np.ndarray:
    """A whole array of an ``.npz``, its checksum compared.

    Raises:
        ArtifactError: no such array, of objects, or damaged.
    """
    with (one := _Member(path, f"{name}.npy")) as (shape, dtype, _):
        if not one.holds(math.prod(shape) * dtype.itemsize):  # else room for all that it promises would be asked for
            raise ArtifactError(f"{path}: {name} is cut short; make it again")
    try:
        with np.load(path, allow_pickle=False) as archive:
            found: np.ndarray = archive[name]
            return found
    except UNREADABLE as error:
        raise ArtifactError(f"{path}: {name} cannot be read ({error}); make it again") from None


def map_array(path: Path, name: str) -> np.ndarray:
    """The same, mapped from the file where it lies there uncompressed: it takes no memory of its own.

    The checksum is compared by reading the bytes once. What is written to it stays in memory (torch wants it writable).

    Raises:
        ArtifactError: no such array, or damaged.
    """
    member = Archive(path, name)
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(member.member)
    if info.compress_type != zipfile.ZIP_STORED or member.dtype.hasobject or not np.prod(member.shape):
        return read_array(path, name)
    for _ in member.batches(max(1, (1 << 24) // max(1, info.file_size // len(member)))):
        pass
    size = int(np.prod(member.shape)) * member.dtype.itemsize
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)
        lengths = file.read(4)  # of name and extra field, little-endian: the data follow them
    start = info.header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
    return np.memmap(path, member.dtype, "c", start + info.file_size - size, member.shape)
