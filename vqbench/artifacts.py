"""Files that are whole or absent: atomic writes, digests, safetensors, and the manifest beside every artifact.

``manifest.json`` is deterministic (spec, code, inputs, outputs, seed); ``run.json`` holds what may differ between two
runs of the same thing (commit, versions, device, time, memory). No rule depends on run.json.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from vqbench.errors import ArtifactError
from vqbench.specs import digest_of

if TYPE_CHECKING:
    import numpy as np
    import torch


def write_atomic(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write through a temporary file in the same folder, then rename: readers see the old file or the whole new one.

    Raises:
        ArtifactError: the disk is full or the folder is not writable; the old file, if any, is untouched.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise _unwritable(path, error) from None
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except OSError as error:
        raise _unwritable(path, error) from None
    finally:
        Path(name).unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Find out before the work whether its result can be written; makes the folder.

    Raises:
        ArtifactError: the path is a folder, or lies in one that cannot be made or written.
    """
    if path.is_dir():
        raise ArtifactError(f"cannot write {path}: it is a folder; name a file in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise _unwritable(path, error) from None


def _unwritable(path: Path, error: OSError) -> ArtifactError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ArtifactError(f"disk full while writing {path}; nothing finished was lost: free space and run again")
    return ArtifactError(f"cannot write {path}: {error.strerror or error}; check the folder's permissions")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_atomic(path, lambda f: f.write(text.encode()))


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, keys sorted, NaN refused."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


def write_npy(path: Path, array: np.ndarray) -> None:
    """Write a ``.npy`` atomically."""
    import numpy as np

    write_atomic(path, lambda f: np.save(f, array, allow_pickle=False))


def read_array(path: Path) -> np.ndarray:
    """A ``.npy``, memory-mapped.

    Raises:
        ArtifactError: missing, truncated or no ``.npy``.
    """
    import numpy as np

    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        return array
    except (OSError, ValueError, EOFError) as error:
        raise ArtifactError(f"cannot read {path}: {error}; remove it and run again") from None


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """Write an uncompressed ``.npz`` atomically; deterministic (zip entries carry no time)."""
    import numpy as np

    write_atomic(path, lambda f: np.savez(f, allow_pickle=False, **arrays))


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors, atomically."""
    from safetensors.torch import save

    data = save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, metadata=metadata)
    write_atomic(path, lambda f: f.write(data))


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file.

    Raises:
        ArtifactError: missing, truncated or not safetensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
        return tensors
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"cannot read {path}: {error}; remove it and run again") from None


def sha256_file(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes.

    Raises:
        ArtifactError: the file is missing or unreadable.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}") from None


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises:
        ArtifactError: missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise ArtifactError(f"{path} is missing; run the step that makes it") from None
    except ValueError as error:
        raise ArtifactError(f"{path} is damaged ({error})") from None


def sealed(body: dict[str, Any]) -> dict[str, Any]:
    """`body` with the digest of itself under ``self``, by which a reader finds any damage."""
    return body | {"self": digest_of(body)}


def read_sealed(path: Path) -> dict[str, Any]:
    """Read what :func:`sealed` gave.

    Raises:
        ArtifactError: missing, not JSON, or not what was written.
    """
    found = read_json(path)
    if not isinstance(found, dict) or found != sealed({k: v for k, v in found.items() if k != "self"}):
        raise ArtifactError(f"{path} is damaged: it does not match its own digest")
    return found


def describe(folder: Path, files: Iterable[str]) -> dict[str, dict[str, Any]]:
    """``{file: {sha256, bytes}}`` for files in a folder, as manifests list them."""
    return {f: {"sha256": sha256_file(folder / f), "bytes": (folder / f).stat().st_size} for f in sorted(files)}


def verify(folder: Path, outputs: dict[str, dict[str, Any]], manifest: Path) -> None:
    """Check each listed file against its digest.

    Raises:
        ArtifactError: a file is missing or its bytes differ; names file and manifest.
    """
    for name, listed in outputs.items():
        path = folder / name
        if not path.is_file():
            raise ArtifactError(f"{path} is missing although {manifest} lists it")
        if path.stat().st_size != listed["bytes"] or sha256_file(path) != listed["sha256"]:
            raise ArtifactError(f"{path} does not match the digest in {manifest}: the file was changed or damaged")
