"""Saved statistics of a reference, one ``.npz``: ADM's layout and more. Given ``arr_0``, ADM's evaluator reads it as well.

| array | what | ADM has it |
|---|---|---|
| mu (d,), sigma (d, d) | mean and covariance of the layer "pooled", float64 | yes |
| mu_s (s,), sigma_s (s, s) | the same of "spatial", for sFID | yes |
| arr_0 (m, H, W, 3) | images that precision and recall compare with, uint8; ours only where asked for | yes, instead of features |
| rows, rows_s (n, d) | features of all images where n <= d: sigma is then singular, and FID goes by the rows, float32 | no |
| n | how many images mu and sigma are of | no |
| features[_LAYER] (R, d), indices[_LAYER] (R,) | kept float32 features of "pooled" (or of LAYER), and of which images | no |
| meta | JSON: protocol, digests of judge, weights and images, count, crop, the reference's own Inception Score ... | no |

Source of ADM's layout: openai/guided-diffusion:evaluations/evaluator.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vqbench.artifacts import write_npz
from vqbench.errors import ArtifactError
from vqbench.eval.archive import map_array, members, read_array
from vqbench.eval.base import Layer
from vqbench.eval.feature_set import FeatureSet, Gaussian
from vqbench.eval.saved_reference import MEND, MOMENTS, ROWS, SINGULAR, Kept, Reference

__all__ = ["Reference", "is_statistics", "open_statistics", "save_statistics"]
CHUNK = 4096  # rows that are checked together
SKEW = 1e-6  # of the largest entry: how far sigma and its transpose may lie apart (float32 files)


def save_statistics(
    path: Path, features: FeatureSet, meta: Mapping[str, Any], images: np.ndarray | None = None
) -> None:
    """Write a finished set, whole or not at all; the same set gives the same bytes.

    Args:
        meta: JSON-able; ``judge_digest`` is what :func:`open_statistics` compares.
        images: (m, H, W, 3) uint8 for ADM's evaluator, ``arr_0``.
    """
    arrays: dict[str, np.ndarray] = {"n": np.array(features.count, np.int64)}
    arrays |= {} if images is None else {"arr_0": images}
    for layer in features.layers:
        if layer in MOMENTS:
            arrays |= _moments(layer, features.gaussian(layer))
    for layer, (name, indices) in ROWS.items():
        if features.has_rows(layer) and not any(features.matrix(layer) is array for array in arrays.values()):
            arrays |= {name: features.matrix(layer), indices: features.indices(layer)}
    text = json.dumps(dict(meta), sort_keys=True, allow_nan=False)
    write_npz(path, meta=np.array(text), **arrays)


def _moments(layer: Layer, found: Gaussian) -> dict[str, np.ndarray]:
    arrays = dict(zip(MOMENTS[layer], (found.mu, found.sigma), strict=True))
    return arrays | ({SINGULAR[layer]: found.rows} if found.rows is not None and found.singular else {})


def is_statistics(what: object) -> bool:
    """Whether `what` is a path to an ``.npz`` that holds mu and sigma; a damaged file is none."""
    if not isinstance(what, str | Path) or Path(what).suffix != ".npz":
        return False
    path = Path(what).expanduser()
    try:
        return {"mu", "sigma"} <= members(path)
    except ArtifactError:
        return False


def open_statistics(path: Path, expect: Mapping[str, Any]) -> Reference:
    """Read saved statistics, ours or ADM's; moments are checked, features mapped from the file and checked.

    Args:
        expect: what ``meta`` must say, e.g. the ``judge_digest``; a file without ``meta`` (ADM's) is taken as it is, one
            whose ``meta`` lacks a key is not.

    Raises:
        ArtifactError: not statistics, truncated, damaged, or made under another judge.
    """
    path = path.expanduser()
    held = members(path)
    if not {"mu", "sigma"} <= held:
        raise ArtifactError(f"{path} holds no mu and sigma, it holds {', '.join(sorted(held)) or 'nothing'}; {MEND}")
    meta = _meta(path) if "meta" in held else {}
    for key, value in expect.items():
        if "meta" in held and key not in meta:
            raise ArtifactError(f"{path} does not say its {key}, so nothing shows that it fits this protocol; {MEND}")
        if key in meta and meta[key] != value:
            raise ArtifactError(f"{path} was made under {key} {meta[key]}, this protocol's is {value}; {MEND}")
    count = _count(path) if "n" in held else 0
    gaussians = {layer: _gaussian(path, *names, count) for layer, names in MOMENTS.items() if held.issuperset(names)}
    for layer, found in gaussians.items():
        if SINGULAR[layer] in held:
            rows = _matrix(path, SINGULAR[layer], (count, len(found.mu)))
            gaussians[layer] = Gaussian(found.mu, found.covariance, found.n, rows)
    width = {layer: len(gaussian.mu) for layer, gaussian in gaussians.items()}
    kept = {layer: _kept(path, *names, width.get(layer)) for layer, names in ROWS.items() if held.issuperset(names)}
    return Reference(str(path), count, gaussians, kept, meta, path if "arr_0" in held else None)


def _meta(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(str(read_array(path, "meta")))
    except ValueError as error:
        raise _damaged(path, f"meta is no JSON ({error})") from None
    if not isinstance(found, dict):
        raise _damaged(path, "meta is no JSON object")
    return found


def _count(path: Path) -> int:
    found = read_array(path, "n")
    if found.shape != () or found.dtype.kind not in "iu" or found < 2:
        raise _damaged(path, "n is not a number of images")
    return int(found)


def _gaussian(path: Path, mean: str, covariance: str, count: int) -> Gaussian:
    mu, sigma = read_array(path, mean), read_array(path, covariance)
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)) or mu.dtype.kind != "f" or sigma.dtype.kind != "f":
        raise _damaged(path, f"{mean} is {mu.dtype} {mu.shape} and {covariance} {sigma.dtype} {sigma.shape}")
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise _damaged(path, f"{mean} or {covariance} is not finite")
    mu, sigma = mu.astype(np.float64), sigma.astype(np.float64)
    if np.abs(sigma - sigma.T).max() > SKEW * np.abs(sigma).max() or (sigma.diagonal() < 0).any():
        raise _damaged(path, f"{covariance} is no covariance: not symmetric, or a variance below 0")
    return Gaussian(mu, sigma, count)


def _kept(path: Path, features: str, indices: str, width: int | None) -> Kept:
    places = read_array(path, indices)
    if places.ndim != 1 or places.dtype.kind not in "iu" or (np.diff(places) <= 0).any():
        raise _damaged(path, f"{indices} are no indices in order")
    return Kept(places.astype(np.int64), _matrix(path, features, (len(places), width)))


def _matrix(path: Path, name: str, shape: tuple[int, int | None]) -> np.ndarray:
    """Features (n, d), mapped; `shape` with None for any d."""
    found = map_array(path, name)
    if found.ndim != 2 or found.dtype != np.float32 or found.shape != (shape[0], shape[1] or found.shape[1]):
        raise _damaged(path, f"{name} is {found.dtype} {found.shape}, expected is float32 {shape}")
    for start in range(0, len(found), CHUNK):
        if not np.isfinite(found[start : start + CHUNK]).all():
            raise _damaged(path, f"{name} is not finite")
    return found


def _damaged(path: Path, why: str) -> ArtifactError:
    return ArtifactError(f"{path} is damaged: {why}; {MEND}")
