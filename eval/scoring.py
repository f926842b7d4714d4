"""What all scoring steps share: batches, the device, the archive of samples, and ``scores.json``."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from vqbench.artifacts import write_json
from vqbench.errors import ArtifactError
from vqbench.eval.base import Metric
from vqbench.eval.features import Extractor, open_extractor
from vqbench.eval.protocols import Protocol, metric_name, read_protocol
from vqbench.specs import digest_of
from vqbench.steps import Job


class Setting(NamedTuple):
    """What a scoring job runs under."""

    protocol: Protocol
    device: torch.device


def setting(job: Job) -> Setting:
    """The job's protocol and device; sets the threads that its scale states."""
    torch.set_num_threads(job.bench.overlay.threads)
    # Inception's convolutions in TF32 move FID in its third digit; numbers should not depend on the machine.
    torch.backends.cudnn.allow_tf32 = False
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Setting(read_protocol(job.spec["protocol"]), device)


def judge(job: Job, where: Setting) -> Extractor:
    """The extractor of the job's judge."""
    name = job.spec["judge"]
    return open_extractor(
        where.protocol.judge, job.bench.pretrained[name], job.upstream("pretrained", name), where.device
    )


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
        with self._open() as (shape, dtype, _):
            self.shape, self.dtype = shape, dtype

    def __len__(self) -> int:
        return self.shape[0]

    def batches(self, size: int) -> Iterator[np.ndarray]:
        """Rows in order, `size` at a time."""
        row = int(np.prod(self.shape[1:])) * self.dtype.itemsize
        with self._open() as (_, _, stream):
            for part in batches(len(self), size):
                data = stream.read(row * (part.stop - part.start))
                if len(data) != row * (part.stop - part.start):
                    raise ArtifactError(f"{self.path} ends in the middle of {self.member}; sample again")
                yield np.frombuffer(bytearray(data), self.dtype).reshape(-1, *self.shape[1:])

    def _open(self) -> _Member:
        return _Member(self.path, self.member)


class _Member:
    """Context: (shape, dtype, stream behind the header) of a member of an archive."""

    def __init__(self, path: Path, member: str) -> None:
        self.path, self.member = path, member

    def __enter__(self) -> tuple[tuple[int, ...], np.dtype[Any], Any]:
        try:
            self.archive = zipfile.ZipFile(self.path)
            self.stream = self.archive.open(self.member)
            version = np.lib.format.read_magic(self.stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(self.stream)
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise ArtifactError(f"{self.path} holds no readable {self.member} ({error}); sample again") from None
        if fortran:
            raise ArtifactError(f"{self.path}: {self.member} is in Fortran order; write it in C order")
        return shape, dtype, self.stream

    def __exit__(self, *_: object) -> None:
        self.stream.close()
        self.archive.close()


def entries(metrics: Iterable[Metric], protocol: Protocol) -> dict[str, dict[str, Any]]:
    """``{name: {"value", "unit", "higher_is_better", "n"}}``; a value that is undefined (NaN) is null."""
    found: dict[str, dict[str, Any]] = {}
    for metric in metrics:
        for base, value in metric.compute().items():
            found[metric_name(base, protocol)] = entry(metric, value)
    return found


def entry(metric: Any, value: float) -> dict[str, Any]:
    """One metric's line in ``scores.json``; `metric` states unit, direction and count."""
    return {
        "value": value if math.isfinite(value) else None, "unit": metric.unit,
        "higher_is_better": metric.higher_is_better, "n": metric.count,
    }  # fmt: skip


def write_scores(job: Job, metrics: Mapping[str, Any], **more: Any) -> None:
    """Write ``scores.json``: metrics, the whole protocol (as data) with its digest, judge and data set."""
    protocol = job.spec["protocol"]
    write_json(job.store / "scores.json", {
        "metrics": dict(metrics), "protocol": protocol, "protocol_digest": digest_of(protocol),
        "judge": job.spec.get("judge"), "dataset": job.spec.get("dataset"), **more,
    })  # fmt: skip
