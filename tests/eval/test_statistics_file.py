"""Saved statistics: what goes in comes out, ADM's layout is read and written, damage is named, a kill leaves no half file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vqbench.artifacts import sha256_file, write_npz
from vqbench.errors import ArtifactError
from vqbench.eval.archive import map_array, read_array
from vqbench.eval.base import Batch, Features, Layer
from vqbench.eval.feature_set import FeatureSet
from vqbench.eval.fid import Fid
from vqbench.eval.protocols import load_protocol
from vqbench.eval.sources import open_source
from vqbench.eval.statistics_file import Reference, is_statistics, open_statistics, save_statistics

META = {"protocol": "adm", "judge_digest": "a" * 64, "source": "b" * 64, "weights": {"inception-v3": "c" * 64},
        "is": {"value": 233.5, "low": 230.0, "high": 237.0}, "crop": [16, 16]}  # fmt: skip
CHOSEN = np.array([1, 4, 5, 17], np.int64)


def features(count: int = 30, seed: int = 0, dims: int = 6) -> Features:
    rng = torch.Generator().manual_seed(seed)
    pooled, spatial, manifold = (torch.randn(count, d, generator=rng) for d in (dims, 5, 4))
    return Features(pooled, None, spatial, manifold)


def filled(
    rows: dict[Layer, np.ndarray | None], moments: frozenset[Layer] = frozenset({"pooled", "spatial"})
) -> FeatureSet:
    found = FeatureSet(moments, rows)
    found.update(Batch(np.arange(30), features=features()))
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ref.npz"


@pytest.mark.parametrize(
    "rows",
    [{}, {"pooled": CHOSEN}, {"pooled": None}, {"manifold": CHOSEN}, {"pooled": CHOSEN, "manifold": None}],
    ids=["moments", "chosen", "all", "manifold", "both"],
)
def test_a_reference_is_the_set_that_was_saved(path: Path, rows: dict[Layer, np.ndarray | None]) -> None:
    saved = filled(rows)
    save_statistics(path, saved, META)
    found = open_statistics(path, {"judge_digest": "a" * 64})
    assert found.meta == META and found.count == 30 and found.layers == ("pooled", "spatial")
    for layer in found.layers:
        mine, theirs = found.gaussian(layer), saved.gaussian(layer)
        assert (
            np.array_equal(mine.mu, theirs.mu) and np.array_equal(mine.sigma, theirs.sigma) and mine.n == theirs.n == 30
        )
    for layer in ("pooled", "manifold", "spatial", "logits"):
        assert found.has_rows(layer) == saved.has_rows(layer)
        if saved.has_rows(layer):
            assert np.array_equal(found.matrix(layer), saved.matrix(layer))
            assert np.array_equal(found.indices(layer), saved.indices(layer))
        else:
            with pytest.raises(ArtifactError, match=rf"ref\.npz holds no features '{layer}'.*vqbench statistics"):
                found.matrix(layer)
    with np.load(path) as data:  # features that serve two layers are stored once
        assert ("features_manifold" in data) == ("manifold" in rows) and ("features" in data) == ("pooled" in rows)


def test_a_score_against_the_file_is_the_score_against_the_set(path: Path) -> None:
    generated, known = FeatureSet(frozenset(), {"pooled": None}), filled({"pooled": None})
    generated.update(Batch(np.arange(25), features=features(25, 1)))
    save_statistics(path, known, META)
    assert Fid().compute(generated, open_statistics(path, {})) == Fid().compute(generated, known)


@pytest.mark.parametrize("rows", [{"pooled": None}, {"pooled": CHOSEN[:2]}, {}])
def test_a_singular_reference_keeps_its_rows(path: Path, rows: dict[Layer, np.ndarray | None]) -> None:
    wide = FeatureSet(frozenset({"pooled"}), rows)
    wide.update(Batch(np.arange(9), features=features(9, dims=40)))
    save_statistics(path, wide, META)
    generated = FeatureSet(frozenset(), {"pooled": None})
    generated.update(Batch(np.arange(12), features=features(12, 2, dims=40)))
    read, whole = (Fid().compute(generated, known)["fid"] for known in (open_statistics(path, {}), wide))
    assert (read.value, read.n) == (whole.value, whole.n)  # of 12 images there is no interval


def test_a_reference_is_finished(path: Path) -> None:
    save_statistics(path, filled({}), META)
    found = open_statistics(path, {})
    with pytest.raises(ArtifactError, match="finished"):
        found.update(Batch(np.arange(30), features=features()))
    with pytest.raises(ArtifactError, match="finished"):
        found.merge(filled({}))


def test_layers_that_are_not_there_are_named(path: Path) -> None:
    save_statistics(path, filled({}, frozenset({"pooled"})), META)
    found = open_statistics(path, {})
    with pytest.raises(ArtifactError, match=r"ref\.npz holds no mu_s and sigma_s"):
        found.gaussian("spatial")
    with pytest.raises(ArtifactError, match="'logits'"):
        found.gaussian("logits")


def test_the_same_set_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_statistics(
            tmp_path / f"{name}.npz", filled({"pooled": CHOSEN}), META if name == "a" else dict(reversed(META.items()))
        )
        time.sleep(0.01)
    assert sha256_file(tmp_path / "a.npz") == sha256_file(tmp_path / "b.npz")


def test_saving_what_was_read_gives_the_same_bytes(tmp_path: Path) -> None:
    save_statistics(tmp_path / "a.npz", filled({"pooled": None, "manifold": CHOSEN}), META)
    save_statistics(tmp_path / "b.npz", open_statistics(tmp_path / "a.npz", {}), META)
    assert sha256_file(tmp_path / "a.npz") == sha256_file(tmp_path / "b.npz")


def adm_reads(path: Path) -> tuple[tuple[Any, ...], ...]:
    """Reads a file the way that ADM's evaluator reads a reference batch: its images first, then both pairs."""
    data = np.load(path)
    assert data["arr_0"].dtype == np.uint8 and data["arr_0"].shape[3] == 3
    assert "mu" in data and "mu_s" in data
    return tuple((data[mu], data[sigma]) for mu, sigma in (("mu", "sigma"), ("mu_s", "sigma_s")))


def test_adms_evaluator_reads_our_moments(path: Path) -> None:
    saved = filled({"pooled": CHOSEN})
    save_statistics(path, saved, META, np.zeros((4, 8, 8, 3), np.uint8))
    for (mu, sigma), rows in zip(adm_reads(path), (features().pooled, features().spatial), strict=True):
        assert rows is not None and mu.dtype == sigma.dtype == np.float64
        assert np.allclose(mu, rows.double().mean(0)) and np.allclose(sigma, np.cov(rows.numpy(), rowvar=False))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_adms_layout_is_read_with_its_images(path: Path, save: Any) -> None:
    rows = features().pooled.numpy()
    images = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), dtype=np.uint8)
    sigma = np.cov(rows, rowvar=False)
    save(path, arr_0=images, mu=rows.mean(0), sigma=sigma, mu_s=rows.mean(0), sigma_s=sigma)
    assert is_statistics(path) and is_statistics(str(path))
    found = open_statistics(path, {"judge_digest": "a" * 64})  # it says of no judge: taken as it is
    assert found.count == 0 and found.meta == {} and found.images_path == path
    assert np.allclose(found.gaussian("spatial").sigma, sigma) and found.gaussian("pooled").rows is None
    assert not found.has_rows("manifold")
    source = open_source(found.images_path, load_protocol("adm").images)
    assert np.array_equal(next(source.batches(7))[1], images)

    kept = FeatureSet(frozenset(), {"manifold": None})
    kept.update(Batch(np.arange(7), features=features(7, 3)))
    whole = found.with_rows(kept)
    assert np.array_equal(whole.matrix("manifold"), kept.matrix("manifold")) and len(whole.indices("manifold")) == 7
    assert np.array_equal(whole.gaussian("pooled").sigma, found.gaussian("pooled").sigma) and whole.images_path == path


def test_only_archives_with_moments_are_statistics(tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", np.zeros((2, 4, 4, 3), np.uint8))
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04")
    write_npz(tmp_path / "mu.txt", mu=np.zeros(2), sigma=np.eye(2))
    for what in (tmp_path / "images.npz", tmp_path / "torn.npz", tmp_path / "mu.txt", tmp_path / "none.npz", tmp_path, None,
                 np.zeros(3), "images"):  # fmt: skip
        assert not is_statistics(what)


def test_another_judge_is_refused_with_the_mend(path: Path) -> None:
    save_statistics(path, filled({}), META)
    with pytest.raises(
        ArtifactError, match=r"ref\.npz was made under judge_digest a{64}.*d{64}; make it again: vqbench statistics"
    ):
        open_statistics(path, {"judge_digest": "d" * 64})


def test_statistics_that_do_not_say_what_they_must_are_refused(path: Path) -> None:
    for meta in ({}, {"rows_digest": "b" * 64}):
        save_statistics(path, filled({}), meta)
        with pytest.raises(
            ArtifactError, match=r"ref\.npz does not say its judge_digest.*make it again: vqbench statistics"
        ):
            open_statistics(path, {"judge_digest": "a" * 64, "rows_digest": "b" * 64})
    save_statistics(path, filled({}), META)
    with pytest.raises(ArtifactError, match="does not say its rows_digest"):
        open_statistics(path, {"judge_digest": "a" * 64, "rows_digest": "b" * 64})


MU, SIGMA = np.zeros(3), np.eye(3)
SKEWED = SIGMA + np.triu(np.full((3, 3), 0.1), 1)
ROWS = np.zeros((2, 3), np.float32)
DAMAGED: dict[str, tuple[dict[str, Any], str]] = {
    "no sigma": ({"mu": MU}, "holds no mu and sigma, it holds mu"),
    "NaN": ({"mu": MU * np.nan, "sigma": SIGMA}, "mu or sigma is not finite"),
    "infinity": ({"mu": MU, "sigma": np.full((3, 3), np.inf)}, "not finite"),
    "not square": ({"mu": MU, "sigma": np.zeros((3, 2))}, r"sigma float64 \(3, 2\)"),
    "another length": ({"mu": np.zeros(4), "sigma": SIGMA}, r"mu is float64 \(4,\)"),
    "integers": ({"mu": np.zeros(3, int), "sigma": SIGMA}, "mu is int64"),
    "objects": ({"mu": np.array([None] * 3), "sigma": SIGMA}, "mu.npy .an array of objects"),
    "not symmetric": ({"mu": MU, "sigma": SKEWED}, "no covariance"),
    "negative": ({"mu": MU, "sigma": -SIGMA}, "no covariance"),
    "spatial": ({"mu": MU, "sigma": SIGMA, "mu_s": MU, "sigma_s": SKEWED}, "sigma_s is no covariance"),
    "count": ({"mu": MU, "sigma": SIGMA, "n": np.array([3, 4])}, "n is not a number"),
    "one image": ({"mu": MU, "sigma": SIGMA, "n": np.array(1)}, "n is not a number"),
    "meta": ({"mu": MU, "sigma": SIGMA, "meta": np.array("{")}, "meta is no JSON"),
    "meta list": ({"mu": MU, "sigma": SIGMA, "meta": np.array("[1]")}, "meta is no JSON object"),
    "rows": ({"mu": MU, "sigma": SIGMA, "features": ROWS * np.nan, "indices": np.arange(2)}, "features is not finite"),
    "double rows": ({"mu": MU, "sigma": SIGMA, "features": ROWS.astype(float), "indices": np.arange(2)}, "features is float64"),
    "few indices": ({"mu": MU, "sigma": SIGMA, "features": ROWS, "indices": np.arange(3)}, r"features is float32 \(2, 3\)"),
    "disorder": ({"mu": MU, "sigma": SIGMA, "features": ROWS, "indices": np.array([1, 1])}, "indices are no indices in order"),
    "narrow rows": ({"mu": MU, "sigma": SIGMA, "features": ROWS[:, :2], "indices": np.arange(2)}, r"expected is float32 \(2, 3\)"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_numbers_are_named(kind: str, path: Path) -> None:
    arrays, message = DAMAGED[kind]
    np.savez(path, **arrays)
    with pytest.raises(ArtifactError, match=rf"ref\.npz.*{message}.*"):
        open_statistics(path, {})


def test_float32_moments_are_taken(path: Path) -> None:
    sigma = np.cov(np.random.default_rng(0).normal(size=(50, 3)), rowvar=False).astype(np.float32)
    np.savez(path, mu=MU.astype(np.float32), sigma=sigma)
    found = open_statistics(path, {}).gaussian("pooled")
    assert found.sigma.dtype == np.float64 and np.array_equal(found.sigma, sigma)


def test_missing_foreign_and_torn_files_are_named(path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"ref\.npz"):
        open_statistics(path, {})
    path.write_bytes(b"something else")
    with pytest.raises(ArtifactError, match=r"ref\.npz is no readable \.npz"):
        open_statistics(path, {})
    save_statistics(path, filled({"pooled": None}), META)
    whole = path.read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(ArtifactError, match=r"ref\.npz"):
            open_statistics(path, {})


def test_a_flipped_bit_in_any_array_is_noticed(path: Path) -> None:
    save_statistics(path, filled({"pooled": CHOSEN}), META)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        ends = {
            info.filename: info.header_offset + 30 + len(info.filename) + info.file_size for info in archive.infolist()
        }
    for name, end in ends.items():
        content = bytearray(whole)
        content[end - 3] ^= 1  # in its last number (an extra field may move it on: still inside)
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match=r"ref\.npz"):
            open_statistics(path, {})
            pytest.fail(f"{name} was read")


def test_features_are_mapped_where_they_lie_uncompressed(path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32)
    write_npz(path, a=np.arange(5), rows=rows, empty=rows[:0])
    found = map_array(path, "rows")
    assert isinstance(found, np.memmap) and np.array_equal(found, rows) and found.dtype == np.float32
    assert torch.from_numpy(found).shape == (50, 7)  # writable, or torch warns
    assert map_array(path, "empty").shape == (0, 7)
    np.savez_compressed(path, rows=rows)
    assert np.array_equal(map_array(path, "rows"), rows) and np.array_equal(read_array(path, "rows"), rows)
    with pytest.raises(ArtifactError, match="nothing"):
        read_array(path, "nothing")


def test_meta_must_be_json(path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        save_statistics(path, filled({}), {"value": float("nan")})
    assert not path.exists()


def test_a_kill_while_writing_leaves_the_old_file_or_the_whole_new_one(path: Path) -> None:
    """The child swaps two large files in a loop and is killed at several moments; whatever is there can be read."""
    child = textwrap.dedent(f"""
        import numpy as np, torch
        from pathlib import Path
        from vqbench.eval.base import Batch, Features
        from vqbench.eval.feature_set import FeatureSet
        from vqbench.eval.statistics_file import save_statistics
        sets = []
        for seed in (0, 1):
            found = FeatureSet(frozenset(["pooled"]), dict(pooled=None))
            found.update(Batch(np.arange(4000), features=Features(torch.full((4000, 256), float(seed)))))
            found.gaussian("pooled")
            sets.append(found)
        while True:
            for seed in (0, 1):
                save_statistics(Path({str(path)!r}), sets[seed], dict(seed=seed))
                print(flush=True)
    """)
    for wait in (0.003, 0.011):
        process = subprocess.Popen(
            [sys.executable, "-c", child], stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        assert process.stdout is not None
        with process.stdout:
            process.stdout.readline()
            time.sleep(wait)
            process.send_signal(signal.SIGKILL)
            process.wait()
        found = open_statistics(path, {})
        assert isinstance(found, Reference) and (found.matrix("pooled") == found.meta["seed"]).all()
