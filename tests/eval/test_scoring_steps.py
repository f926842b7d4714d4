"""The scoring steps on two dozen photographs: reference, tokenizer scores, sample scores, controls."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from vqbench.artifacts import read_json
from vqbench.data import open_images
from vqbench.errors import ArtifactError, SpecError
from vqbench.eval import controls, reference, score_samples, score_tokenizer
from vqbench.eval.archive import Archive, batches
from vqbench.eval.protocols import load_protocol, read_protocol
from vqbench.eval.reconstructions import Reconstructions
from vqbench.specs import DatasetSpec, TokenSpec

# lpips builds its network through an argument of torchvision that is deprecated.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The parameter 'pretrained' is deprecated:UserWarning"),
    pytest.mark.filterwarnings("ignore:Arguments other than a weight enum:UserWarning"),
]

Spec = dict[str, Any]
CODES = {"usage", "usage_above", "entropy", "perplexity"}


@pytest.fixture
def spec(demo_protocol: Spec) -> Spec:
    tokens = TokenSpec(layout="raster", grid=2, num_tokens=4, code_dim=3, num_codes=16).model_dump(mode="json")
    return {
        "tokenizer": "t", "dataset": "photos", "judge": "judge", "perceptual": "judge", "protocol": demo_protocol,
        "tokens": tokens, "samples": "s",
    }  # fmt: skip


@pytest.fixture
def referenced(world: Callable[..., Any], spec: Spec, tmp_path: Path) -> Callable[..., Any]:
    """`world` with both references made by the step itself."""
    for split in ("train", "validation"):
        job = world({**spec, "split": split})
        job.store = tmp_path / f"ref-{split}"
        assert reference.run(job) == {"images": len(open_images(photos(job), split)), "kept": 20, "dimensions": 16}
    return world


def photos(job: Any) -> DatasetSpec:
    found: DatasetSpec = job.bench.datasets["photos"]
    return found


def scores(job: Any) -> dict[str, Any]:
    found: dict[str, Any] = read_json(job.store / "scores.json")
    return found


def test_reference_holds_the_statistics_of_all_and_features_of_some(
    referenced: Callable[..., Any], spec: Spec, tmp_path: Path, classifier: nn.Module
) -> None:
    images = open_images(photos(referenced(spec)), "train")
    with torch.no_grad():
        floats = torch.from_numpy(images.batch(0, 30)).permute(0, 3, 1, 2).float() / 127.5 - 1
        features = classifier.features(floats).double().numpy()  # type: ignore[operator]
    data = np.load(tmp_path / "ref-train" / "statistics.npz")
    np.testing.assert_allclose(data["mu"], features.mean(0), rtol=1e-5)
    np.testing.assert_allclose(data["sigma"], np.cov(features, rowvar=False), rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(data["features"], features[data["indices"]], rtol=1e-4, atol=1e-6)
    assert len(set(data["indices"].tolist())) == 20 and int(data["n"]) == 30
    header = json.loads(str(data["meta"]))
    assert header["crop"] == [16, 16] and header["classes"] == [15, 15, 2]


def test_the_kept_images_do_not_depend_on_the_batch(spec: Spec) -> None:
    protocol = read_protocol(spec["protocol"])
    first = reference.chosen(5000, protocol)
    assert first is not None and np.array_equal(first, reference.chosen(5000, protocol.model_copy(update={"batch": 3})))
    assert len(first) == 20 and (np.diff(first) > 0).all() and first.max() > 2500
    assert np.array_equal(reference.chosen(12, protocol), np.arange(12))


def test_a_reference_that_is_cut_short_is_named(referenced: Callable[..., Any], spec: Spec, tmp_path: Path) -> None:
    path = tmp_path / "ref-train" / "statistics.npz"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ArtifactError, match=r"statistics\.npz"):
        reference.open_reference(
            referenced(spec).upstream("reference", "photos/train"), read_protocol(spec["protocol"])
        )


def test_a_reference_of_another_judge_is_refused(referenced: Callable[..., Any], spec: Spec) -> None:
    protocol = read_protocol({**spec["protocol"], "images": {"crop": "none", "rounding": "nearest"}})
    with pytest.raises(ArtifactError, match=r"statistics\.npz"):
        reference.open_reference(referenced(spec).upstream("reference", "photos/train"), protocol)


def tokenizer_job(make: Callable[..., Any], spec: Spec, decoded: np.ndarray) -> Any:
    ids = np.random.default_rng(0).integers(0, 8, (24, 4, 1)).astype(np.int32)
    return make(spec, reconstruction__t__photos={"images": decoded}, tokens__t__photos__validation={"ids": ids})


def test_tokenizer_scores(referenced: Callable[..., Any], spec: Spec) -> None:
    originals = open_images(photos(referenced(spec)), "validation").batch(0, 24)
    decoded = np.clip(originals.astype(int) + np.random.default_rng(1).integers(-9, 10, originals.shape), 0, 255)
    job = tokenizer_job(referenced, spec, decoded.astype(np.uint8))
    assert score_tokenizer.run(job) == {"images": 24, "protocol": "demo"}
    found, written = scores(job), (job.store / "scores.json").read_bytes()
    score_tokenizer.run(job)
    assert (job.store / "scores.json").read_bytes() == written
    metrics = found["metrics"]
    assert set(metrics) == {"rfid[demo-judge]", "psnr", "ssim", "lpips[demo-judge]", "unique_ratio", *CODES}
    assert {m["n"] for m in metrics.values()} == {24}
    assert all(m["low"] <= m["value"] <= m["high"] and m["interval"] for m in metrics.values())
    mse = ((originals - decoded) ** 2).mean((1, 2, 3))
    assert metrics["psnr"]["value"] == pytest.approx(np.mean(10 * np.log10(255**2 / mse)))
    assert metrics["usage"]["value"] == 50.0
    assert metrics["rfid[demo-judge]"]["value"] > 0 and metrics["lpips[demo-judge]"]["value"] > 0
    assert (found["protocol"]["name"], found["judge"], found["dataset"]) == ("demo", "judge", "photos")
    assert len(found["protocol_digest"]) == 64


FEW = ("{} of {} {} images against {} reference images: below 10,000 a side it is biased upwards by about 1/N, so "
       "compare it only with values of the same counts, or take fid_infinity or kid")  # fmt: skip


def test_tokenizer_scores_say_what_they_are_worth(referenced: Callable[..., Any], spec: Spec) -> None:
    images = open_images(photos(referenced(spec)), "validation").batch(0, 24)
    assert copies(images) == 1, "crops are drawn, and one was drawn twice"
    decoded = 255 - images
    decoded[5:9] = decoded[4]
    for given in (255 - images, decoded, images):
        job = tokenizer_job(referenced, spec, given)
        score_tokenizer.run(job)
        few, ours, theirs, *same = scores(job)["warnings"]
        assert few == FEW.format("rfid", 24, "reconstructed", 24)
        assert ours.startswith(f"{copies(given)} of 24 reconstructed images are copies of another one, pixel for pixel")
        assert theirs.startswith("1 of 24 reference images are copies")
        assert [each.partition(":")[0] for each in same] == (
            ["the 24 reconstructed images are the reference's own, pixel for pixel"] if given is images else []
        )


def copies(images: np.ndarray) -> int:
    """Images that are pixel for pixel another one."""
    return len(images) - len(np.unique(images, axis=0))


def test_originals_are_known_by_their_files(tmp_path: Path) -> None:
    rng, protocol = np.random.default_rng(0), load_protocol("demo")

    def of(sizes: list[int], suffix: str) -> list[str]:
        folder = tmp_path / f"{suffix}{len(list(tmp_path.iterdir()))}"
        for i, size in enumerate(sizes):
            path = folder / "validation" / f"c{i < 2}" / f"{i}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(path)
        known = DatasetSpec(kind="folder", path=str(folder), sizes={"validation": len(sizes)}, classes=2, resolution=16)
        images = open_images(known, "validation")
        read = Reconstructions(images, rng.integers(0, 256, (len(sizes), 16, 16, 3), dtype=np.uint8))
        for part in batches(len(sizes), 3):
            read.batch(part)
        return read.warnings(protocol, ["precision"])  # the counts are another test's

    assert of([16, 16, 16, 16], "png") == of([40, 40, 20, 20], "jpg") == []  # resampled: its blocks are gone
    (lossy,) = of([16, 16, 16, 20], "jpg")
    assert lossy.startswith("4 of 4 reference images are JPEG files taken at their own size")
    (small,) = of([16, 16, 16, 12], "png")
    assert small.startswith("1 reference images are smaller than those scored and were enlarged")
    (uneven,) = of([16] * 7, "png")
    assert uneven.startswith("reference classes are uneven, from 2 to 5 images over 2 classes")


def test_reconstructions_of_another_set_are_refused(referenced: Callable[..., Any], spec: Spec) -> None:
    with pytest.raises(ArtifactError, match="24 images, 23 reconstructions"):
        score_tokenizer.run(tokenizer_job(referenced, spec, np.zeros((23, 16, 16, 3), np.uint8)))


def test_a_perceptual_network_that_is_not_the_protocols_is_refused(referenced: Callable[..., Any], spec: Spec) -> None:
    job = tokenizer_job(referenced, spec, np.zeros((24, 16, 16, 3), np.uint8))
    job.spec = {**spec, "protocol": {**spec["protocol"], "lpips": {"network": "lpips-vgg16", "suffix": ""}}}
    with pytest.raises(SpecError, match="LPIPS is over 'lpips-vgg16'"):
        score_tokenizer.run(job)


def sample_job(
    make: Callable[..., Any], spec: Spec, images: np.ndarray, ids: np.ndarray, labels: np.ndarray | None = None
) -> Any:
    spec = {**spec, "tokens": "t/photos/train"}
    trained = np.arange(30 * 4).reshape(30, 4, 1) % 12  # three quarters of the 16 codes
    job = make(spec, samples__s={"ids": ids}, tokens__t__photos__train={"ids": trained})
    labels = np.zeros(len(images), np.int64) if labels is None else labels
    np.savez(job.upstream("samples", "s").store / "samples.npz", images, labels)
    return job


def test_sample_scores(referenced: Callable[..., Any], spec: Spec) -> None:
    rng = np.random.default_rng(3)
    near = open_images(photos(referenced(spec)), "train").batch(0, 30)
    noise = rng.integers(0, 256, near.shape).astype(np.uint8)
    ids = rng.integers(0, 4, (30, 4, 1)).astype(np.int32)
    found = []
    for images in (near, noise):
        job = sample_job(referenced, spec, images, ids)
        assert score_samples.run(job) == {"images": 30, "protocol": "demo"}
        found.append(scores(job)["metrics"])
    names = {f"{n}[demo-judge]" for n in ("fid", "is", "precision", "recall")}
    assert set(found[0]) == {*names, *CODES, *(f"{code}_train" for code in CODES)}
    assert found[0]["usage"]["value"] == 25.0 and found[0]["usage_train"]["value"] == 75.0
    assert found[0]["fid[demo-judge]"]["value"] == pytest.approx(0, abs=1e-6)
    assert found[1]["fid[demo-judge]"]["value"] > 100 * found[0]["fid[demo-judge]"]["value"]
    assert found[0]["precision[demo-judge]"]["value"] == found[0]["recall[demo-judge]"]["value"] == 1
    assert found[1]["recall[demo-judge]"]["value"] < 0.9
    assert {m["n"] for m in found[0].values()} == {30}


def test_sample_scores_say_what_they_are_worth(referenced: Callable[..., Any], spec: Spec) -> None:
    rng = np.random.default_rng(3)
    images, ids = rng.integers(0, 256, (30, 16, 16, 3)).astype(np.uint8), rng.integers(0, 4, (30, 4, 1))

    def warnings(labels: np.ndarray, **blocks: Any) -> list[str]:
        job = sample_job(referenced, spec, images, ids, labels)
        job.spec = {**job.spec, "protocol": {**spec["protocol"], **blocks}}
        score_samples.run(job)
        written = (job.store / "scores.json").read_bytes()
        score_samples.run(job)
        assert (job.store / "scores.json").read_bytes() == written
        found: list[str] = scores(job)["warnings"]
        assert found[0] == FEW.format("fid", 30, "generated", 30)
        return found[1:]

    even, in_order = np.arange(30) % 2, {"split_size": 10, "shuffle": False, "seed": 0}
    assert warnings(even) == warnings(np.zeros(30, np.int64)) == []
    (uneven,) = warnings(np.where(np.arange(30) < 7, 0, 1)[::-1])
    assert uneven.startswith("generated classes are uneven, from 7 to 23 images over 2 classes")
    (sorted_,) = warnings(np.sort(even), **{"is": in_order})
    assert sorted_.startswith("generated images are sorted by class (2 classes)") and "3 chunks" in sorted_
    (rest,) = warnings(even, **{"is": in_order | {"split_size": 8}})
    assert rest.startswith("is: the last part of 6 images")
    images[20:] = images[:10]
    (again,) = warnings(even)
    assert again.startswith("10 of 30 generated images are copies") and "a seed that is used twice" in again


def test_a_protocol_without_is_and_recall_scores_fid_alone(referenced: Callable[..., Any], spec: Spec) -> None:
    job = sample_job(referenced, spec, np.zeros((5, 16, 16, 3), np.uint8), np.zeros((5, 4, 1), np.int32))
    job.spec = {**job.spec, "protocol": {**spec["protocol"], "is": None, "precision_recall": None, "metrics": ["fid"]}}
    score_samples.run(job)
    assert set(scores(job)["metrics"]) == {"fid[demo-judge]", *CODES, *(f"{code}_train" for code in CODES)}


def test_samples_and_ids_must_be_equally_many(referenced: Callable[..., Any], spec: Spec) -> None:
    job = sample_job(referenced, spec, np.zeros((5, 16, 16, 3), np.uint8), np.zeros((4, 4, 1), np.int32))
    with pytest.raises(ArtifactError, match="5 samples and 4 rows"):
        score_samples.run(job)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_archives_are_read_in_parts(tmp_path: Path, save: Callable[..., None]) -> None:
    array = np.random.default_rng(0).integers(0, 256, (11, 4, 4, 3)).astype(np.uint8)
    save(tmp_path / "a.npz", array, np.arange(11))
    archive = Archive(tmp_path / "a.npz", "arr_0")
    parts = list(archive.batches(4))
    assert [len(p) for p in parts] == [4, 4, 3] and np.array_equal(np.concatenate(parts), array)
    assert np.array_equal(next(Archive(tmp_path / "a.npz", "arr_1").batches(20)), np.arange(11))
    assert [s.stop for s in batches(11, 4)] == [4, 8, 11]


def test_damaged_archives_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", np.zeros(3))
    with pytest.raises(ArtifactError, match=r"no readable arr_7\.npy"):
        Archive(tmp_path / "a.npz", "arr_7")
    (tmp_path / "b.npz").write_bytes(b"not a zip")
    with pytest.raises(ArtifactError, match=r"b\.npz"):
        Archive(tmp_path / "b.npz", "arr_0")


def test_controls(
    referenced: Callable[..., Any], spec: Spec, monkeypatch: pytest.MonkeyPatch, patch_tokenizer: nn.Module
) -> None:
    monkeypatch.setattr(controls, "open_tokenizer", lambda *_: patch_tokenizer)
    job = referenced(spec, tokenizer__t={})
    assert controls.run(job) == {"images": 24, "protocol": "demo"}
    found = scores(job)
    rows = found["rows"]
    assert set(rows) == {"real", "identity", "random-codes"}
    assert rows["real"]["rfid[demo-judge]"]["value"] == pytest.approx(0, abs=1e-6)
    assert rows["real"]["fid[demo-judge]"]["value"] > 0
    assert rows["random-codes"]["fid[demo-judge]"]["value"] > rows["real"]["fid[demo-judge]"]["value"]
    identity = {name: e["value"] for name, e in rows["identity"].items()}
    assert identity == {"psnr": None, "ssim": pytest.approx(1), "lpips[demo-judge]": pytest.approx(0)}
    assert rows["random-codes"]["usage"]["value"] == 100.0  # 96 draws of 16 codes
    assert "identity/psnr" not in found["metrics"] and found["metrics"]["identity/ssim"]["n"] == 24


def test_random_codes_belong_to_the_image_not_the_batch() -> None:
    tokens = TokenSpec(layout="channel", grid=2, num_tokens=6, code_dim=4, num_codes=1000, num_slots=2)
    whole = controls.random_ids(tokens, slice(0, 5))
    assert whole.shape == (5, 6, 2) and np.array_equal(whole[3:], controls.random_ids(tokens, slice(3, 5)))
    assert whole.max() < 1000 and len(np.unique(whole)) > 50
