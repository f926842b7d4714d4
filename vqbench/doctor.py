"""``vqbench doctor``: what this machine lacks for a target, each with its mend. Looks, and changes nothing."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from vqbench.data import check_dataset, load_photo, scan_folder
from vqbench.errors import MissingWeights, SpecError, UserError, nearest
from vqbench.papers import Bench, Key
from vqbench.plan import ESTIMATED, estimate
from vqbench.slurm import examine_slurm
from vqbench.weights import check_weights, locate


def examine(found: Bench, keys: list[Key], base: Path, profile: str = "") -> tuple[str, bool]:
    """(report, whether nothing is lacking) for a target: data sets, weights, GPU (or the cluster of "slurm"), disk."""
    needed = found.with_upstream(keys)
    lines, healthy = [], True
    place = examine_slurm(found, needed) if profile else _gpu(found)
    for good, text in (*_datasets(found, needed), *_weights(found, needed), *place, *_disk(found, needed, base)):
        lines.append(f"{'ok  ' if good else 'LACK'}  {text}")
        healthy = healthy and good
    return "\n".join(lines), healthy


def _datasets(found: Bench, keys: list[Key]) -> Iterator[tuple[bool, str]]:
    for name in [n for kind, n in keys if kind == "dataset"]:
        spec = found.datasets[name]
        for split in spec.sizes:
            try:
                if spec.kind == "embedded":
                    for photo in spec.images:
                        load_photo(photo)
                    yield True, f"data set {name}/{split}: {len(spec.images)} photographs"
                else:
                    yield True, f"data set {name}/{split}: {len(scan_folder(spec, split)['files'])} images"
            except UserError as error:
                yield False, f"data set {name}/{split}: {error}"


def _weights(found: Bench, keys: list[Key]) -> Iterator[tuple[bool, str]]:
    for name in [n for kind, n in keys if kind == "pretrained"]:
        spec = found.pretrained[name]
        if spec.training is not None:
            yield True, f"network {name}: trained here"
            continue
        try:
            path = locate(spec)
            check_weights(spec, path)
            yield True, f"weights {name}: {path}"
        except MissingWeights as error:
            yield False, f"weights {name}: {error}"


def _gpu(found: Bench) -> Iterator[tuple[bool, str]]:
    wanted = max((r["gpu"] for r in found.overlay.resources.values()), default=0)
    if not wanted:
        yield True, "GPU: none needed at this scale"
        return
    try:
        command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
        names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().splitlines()
    except (OSError, subprocess.CalledProcessError):
        names = []
    if len(names) >= wanted:
        yield True, f"GPU: {'; '.join(names)}"
    else:
        yield (
            False,
            (
                f"GPU: {len(names)} here, a job asks for {wanted}: submit with --profile slurm, or lower 'resources' in "
                f"workflow/scales/{found.scale}.yaml"
            ),
        )


def _disk(found: Bench, keys: list[Key], base: Path) -> Iterator[tuple[bool, str]]:
    left = [k for k in keys if k[0] in ESTIMATED and not found.is_current(k, base)]
    need = sum(estimate(found, k)[2] for k in left)
    free = shutil.disk_usage(base).free
    text = f"disk: {need / 1e9:,.1f} GB needed for {len(left)} unfinished steps, {free / 1e9:,.1f} GB free at {base}"
    yield free > need, text if free > need else f"{text}: free some, or let results/ be a link to a larger disk"


def examine_dataset(found: Bench, name: str) -> str:
    """Decode every image of a data set.

    Raises:
        SpecError: no such data set.
        DataError: an image is broken and the entry does not say to skip it; names the file.
    """
    if name not in found.datasets:
        raise SpecError(f"unknown data set '{name}'; {nearest(name, found.datasets)}")
    spec = found.datasets[name]
    if spec.kind == "embedded":
        sizes = [f"{photo} {load_photo(photo).size}" for photo in spec.images]
        return f"data set {name}: {', '.join(sizes)}: all decoded"
    lines = []
    for split in spec.sizes:
        index = check_dataset(spec, split)
        lines.append(f"data set {name}/{split}: {len(index['files'])} images decoded, {len(index['skipped'])} skipped")
        lines += [f"  skipped: {file}" for file in index["skipped"][:20]]
    return "\n".join(lines)
