"""Files are whole or absent: atomic writes, digests, damage found, a full disk survived."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from vqbench import artifacts
from vqbench.errors import ArtifactError


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    artifacts.write_text(path, "old")

    def broken(file: object) -> None:
        raise RuntimeError("midway")

    with pytest.raises(RuntimeError):
        artifacts.write_atomic(path, broken)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]


def test_disk_full_is_a_clear_error_and_loses_nothing(tmp_path: Path) -> None:
    """A real limit: the kernel refuses the write (RLIMIT_FSIZE), as it does when a disk or quota is full."""
    path = tmp_path / "weights.safetensors"
    artifacts.write_tensors(path, {"w": torch.ones(4)})
    code = (
        "import resource, sys, torch; from pathlib import Path; from vqbench import artifacts\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        "try:\n    artifacts.write_tensors(Path(sys.argv[1]), {'w': torch.zeros(1_000_000)})\n"
        "except artifacts.ArtifactError as error:\n    print(error); sys.exit(3)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    assert "disk full while writing" in done.stdout and "weights.safetensors" in done.stdout
    assert torch.equal(artifacts.read_tensors(path)["w"], torch.ones(4))
    assert [p.name for p in tmp_path.iterdir()] == ["weights.safetensors"]


def test_a_flipped_byte_is_found(tmp_path: Path) -> None:
    artifacts.write_npy(tmp_path / "ids.npy", np.arange(10))
    listed = artifacts.describe(tmp_path, ["ids.npy"])
    artifacts.verify(tmp_path, listed, tmp_path / "manifest.json")
    data = bytearray((tmp_path / "ids.npy").read_bytes())
    data[-1] ^= 1
    (tmp_path / "ids.npy").write_bytes(bytes(data))
    with pytest.raises(ArtifactError, match=r"ids\.npy does not match the digest"):
        artifacts.verify(tmp_path, listed, tmp_path / "manifest.json")


def test_npz_bytes_do_not_depend_on_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifacts.write_npz(tmp_path / "a.npz", x=np.arange(3))
    monkeypatch.setattr("time.time", lambda: 2e9)
    artifacts.write_npz(tmp_path / "b.npz", x=np.arange(3))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_nan_is_not_written_as_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        artifacts.write_json(tmp_path / "x.json", {"x": float("nan")})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"not safetensors", b"\x08\x00\x00\x00\x00\x00\x00\x00{}"])
def test_damaged_tensors_are_a_clear_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    if content.endswith(b"{}"):
        content = content[:5]
        (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"model\.safetensors"):
        artifacts.read_tensors(tmp_path / "model.safetensors")
