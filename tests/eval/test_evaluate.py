"""``evaluate``, ``statistics`` and ``bridge`` on a few photographs, with the small judge and random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from vqbench.cli import main
from vqbench.data import open_images
from vqbench.errors import ArtifactError, DataError, MissingWeights, SpecError
from vqbench.eval.base import Batch
from vqbench.eval.bridge import bridge
from vqbench.eval.evaluate import evaluate
from vqbench.eval.evaluator import Evaluator
from vqbench.eval.make_statistics import statistics
from vqbench.eval.protocols import Protocol, load_protocol, read_protocol
from vqbench.eval.psnr import Psnr
from vqbench.eval.set_metrics import BUILD
from vqbench.eval.ssim import Ssim
from vqbench.specs import DatasetSpec

PHOTOS = DatasetSpec(
    kind="embedded", images=("astronaut", "coffee"), short_side=144, sizes={"train": 48, "validation": 40},
    classes=2, resolution=32,
)  # fmt: skip
SUFFIX = "[demo-judge]"


@pytest.fixture(scope="module")
def real() -> np.ndarray:
    return open_images(PHOTOS, "train").batch(0, 48)


@pytest.fixture(scope="module")
def other() -> np.ndarray:
    return open_images(PHOTOS, "validation").batch(0, 40)


@pytest.fixture
def weights(classifier: nn.Module) -> dict[str, Any]:
    return {"photo-classifier": classifier}


@pytest.fixture
def protocol(demo_protocol: dict[str, Any]) -> Protocol:
    demo_protocol["kid"]["subset_size"] = 20
    demo_protocol["fid_infinity"]["smallest"] = 12
    return read_protocol(demo_protocol)


def noisy(images: np.ndarray, size: int = 9) -> np.ndarray:
    noise = np.random.default_rng(0).integers(-size, size + 1, images.shape)
    return np.clip(images.astype(int) + noise, 0, 255).astype(np.uint8)


def write_folder(folder: Path, images: np.ndarray, suffix: str = "png") -> Path:
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:05d}.{suffix}")
    return folder


def test_a_report_says_what_its_numbers_were_made_by(
    real: np.ndarray, other: np.ndarray, protocol: Protocol, weights: dict[str, Any]
) -> None:
    report = evaluate(other, real, protocol=protocol, weights=weights)
    assert {f"fid{SUFFIX}", f"is{SUFFIX}", f"precision{SUFFIX}", f"recall{SUFFIX}"} <= set(report["metrics"])
    fid = report["metrics"][f"fid{SUFFIX}"]
    assert fid["value"] > 0 and fid["low"] < fid["value"] < fid["high"]
    assert (fid["n"], fid["unit"], fid["higher_is_better"]) == (40, "", False) and "jackknife" in fid["interval"]
    assert report["protocol"]["name"] == "demo" and len(report["protocol_digest"]) == 64
    assert report["generated"]["n"] == 40 and report["reference"]["n"] == 48
    assert {"judge", "read", "total"} <= set(report["seconds"]) and report["peak_memory_mb"] > 0
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_folders_archives_and_tensors_give_the_same_numbers(
    real: np.ndarray, other: np.ndarray, protocol: Protocol, weights: dict[str, Any], tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "png", other)
    np.savez(tmp_path / "a.npz", arr_0=other)
    tensor = torch.from_numpy(other).permute(0, 3, 1, 2)
    found = [
        evaluate(what, real, protocol=protocol, weights=weights)["metrics"]
        for what in (other, folder, tmp_path / "a.npz", tensor)
    ]
    assert found[0] == found[1] == found[2] == found[3]


def test_float_tensors_are_rounded_to_the_levels_that_a_file_would_hold(
    real: np.ndarray, other: np.ndarray, protocol: Protocol, weights: dict[str, Any]
) -> None:
    floats = torch.from_numpy(other).permute(0, 3, 1, 2).float() / 127.5 - 1
    kept = evaluate(floats, real, protocol=protocol, weights=weights, value_range=(-1, 1))["metrics"]
    assert kept == evaluate(other, real, protocol=protocol, weights=weights)["metrics"]
    with pytest.raises(DataError):
        evaluate(2 * floats, real, protocol=protocol, weights=weights, value_range=(-1, 1))


def test_pairs_score_reconstructions_and_their_features_in_one_pass(
    real: np.ndarray, protocol: Protocol, weights: dict[str, Any]
) -> None:
    found = evaluate(noisy(real), real, protocol=protocol, weights=weights, pairs=True)["metrics"]
    assert set(found) == {f"rfid{SUFFIX}", "psnr", "ssim", f"lpips{SUFFIX}"}
    same = evaluate(real, real, protocol=protocol, weights=weights, pairs=True)["metrics"]
    assert same[f"rfid{SUFFIX}"]["value"] == pytest.approx(0, abs=1e-9) and same["ssim"]["value"] == 1
    assert same["psnr"]["value"] is None and same["psnr"]["n"] == 0
    assert found["psnr"]["value"] > 25 and found["psnr"]["low"] < found["psnr"]["value"] < found["psnr"]["high"]
    assert found[f"rfid{SUFFIX}"]["value"] > 0


def test_every_set_metric_can_be_asked_for_by_name(
    real: np.ndarray, other: np.ndarray, protocol: Protocol, weights: dict[str, Any]
) -> None:
    names = [name for name in BUILD if name != "sfid"]
    found = evaluate(other, real, protocol=protocol, weights=weights, metrics=names)["metrics"]
    assert set(found) == {f"{name}{SUFFIX}" for name in names}
    assert all(entry["value"] is not None for entry in found.values())


def test_codes_are_scored_beside_images(
    real: np.ndarray, other: np.ndarray, protocol: Protocol, weights: dict[str, Any]
) -> None:
    ids = np.random.default_rng(0).integers(0, 8, (40, 4, 1))
    found = evaluate(other, real, protocol=protocol, weights=weights, ids=ids, num_codes=16)["metrics"]
    assert found["usage"]["value"] == 100 * len(np.unique(ids)) / 16 and "unique_ratio" in found
    with pytest.raises(SpecError, match="39 ids"):
        evaluate(other, real, protocol=protocol, weights=weights, ids=ids[:39], num_codes=16)
    with pytest.raises(SpecError, match="num-codes"):
        evaluate(other, real, protocol=protocol, weights=weights, ids=ids)


def test_saved_statistics_replace_the_images_of_a_reference(
    real: np.ndarray, other: np.ndarray, protocol: Protocol, weights: dict[str, Any], tmp_path: Path
) -> None:
    header = statistics(real, tmp_path / "ref.npz", protocol="demo", weights=weights)
    assert header["count"] == 48 and header["protocol"] == "demo"
    names = ["fid", "precision", "recall"]
    saved = evaluate(other, tmp_path / "ref.npz", protocol="demo", metrics=names, weights=weights)["metrics"]
    plain = evaluate(other, real, protocol="demo", metrics=names, weights=weights)["metrics"]
    for name, entry in plain.items():
        assert saved[name]["value"] == pytest.approx(entry["value"], rel=1e-6), name


def test_statistics_of_another_judge_are_refused(
    real: np.ndarray, other: np.ndarray, protocol: Protocol, weights: dict[str, Any], tmp_path: Path
) -> None:
    statistics(real, tmp_path / "ref.npz", protocol="demo", weights=weights)
    neighbours = protocol.precision_recall
    assert neighbours is not None
    changed = protocol.model_copy(update={"precision_recall": neighbours.model_copy(update={"seed": 4})})
    with pytest.raises(ArtifactError, match=r"ref\.npz"):
        evaluate(other, tmp_path / "ref.npz", protocol=changed, weights=weights)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ["fidd"]}, "fid"),
        ({"metrics": ["psnr"]}, "--pairs"),
        ({"metrics": ["usage"]}, "--ids"),
        ({"metrics": ["sfid"]}, "defines no 'sfid'"),
        ({"judge": "resnet"}, "resnet"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    real: np.ndarray, other: np.ndarray, protocol: Protocol, weights: dict[str, Any], options: Any, message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        evaluate(other, real, protocol=protocol, weights=weights, **options)


def test_without_weights_it_says_what_to_fetch(
    real: np.ndarray, other: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(MissingWeights, match=r"weights-inception-2015-12-05-6726825d\.pth.*6726825d"):
        evaluate(other, real, protocol="adm")


def test_a_protocols_metric_that_the_set_is_too_small_for_is_left_out_with_a_warning(
    real: np.ndarray, other: np.ndarray, protocol: Protocol, weights: dict[str, Any]
) -> None:
    protocol = protocol.model_copy(update={"metrics": ("fid", "kid")})
    report = evaluate(other[:15], real, protocol=protocol, weights=weights)
    assert set(report["metrics"]) == {f"fid{SUFFIX}"} and any("Kid is left out" in w for w in report["warnings"])
    with pytest.raises(SpecError):
        evaluate(other[:15], real, protocol=protocol, weights=weights, metrics=["kid"])


def test_shards_merge_to_the_bits_of_one_pass(real: np.ndarray, protocol: Protocol) -> None:
    def evaluator() -> Evaluator:
        return Evaluator([Psnr(protocol.psnr), Ssim(protocol.ssim)])

    changed, order = noisy(real), np.random.default_rng(1).permutation(48)
    whole, shards = evaluator(), [evaluator() for _ in range(3)]
    whole.see(Batch(np.arange(48), changed, real))
    for number, part in enumerate(np.array_split(order, 7)):
        shards[number % 3].see(Batch(part, changed[part], real[part]))
    for shard in shards[1:]:
        shards[0].merge(shard)
    assert [f[1:] for f in shards[0].compute()] == [f[1:] for f in whole.compute()]
    with pytest.raises(SpecError, match="merged"):
        whole.merge(Evaluator([Psnr(protocol.psnr)]))


def test_the_bridge_names_the_choices_that_move_a_number(real: np.ndarray, weights: dict[str, Any]) -> None:
    table = bridge(
        noisy(real), real, protocols=["adm", "llamagen-code"], metrics=["psnr", "ssim"], pairs=True, weights=weights
    )
    ssim = table[table["metric"] == "ssim"].set_index("protocol")
    assert ssim.loc["llamagen-code", "change"] > 0 and "data_range" in ssim.loc["llamagen-code", "choices"]
    assert ssim.loc["adm", "change"] == 0 and ssim.loc["adm", "choices"] == ""


def test_the_bridge_goes_on_without_the_protocols_whose_weights_are_missing(
    real: np.ndarray, weights: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    table = bridge(noisy(real), real, protocols=["adm", "demo"], pairs=True, weights=weights)
    assert table[table["protocol"] == "adm"]["note"].str.contains("inception").all()
    assert table[table["protocol"] == "demo"]["value"].notna().any()


def test_the_bridge_leaves_out_only_what_a_protocol_does_not_define(
    real: np.ndarray, other: np.ndarray, weights: dict[str, Any]
) -> None:
    table = bridge(other, real, protocols=["adm", "clean-fid"], metrics=["fid", "is"], judge="photo-classifier",
                   weights=weights)  # fmt: skip
    found = table.set_index(["metric", "protocol"])["value"].notna()
    names = ("adm+photo-classifier", "clean-fid+photo-classifier")
    assert [bool(found[metric, name]) for metric in ("fid", "is") for name in names] == [True, True, True, False]
    assert "defines no 'is'" in " ".join(table["note"])


def test_the_command_writes_the_report_and_prints_it(
    real: np.ndarray, other: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = write_folder(tmp_path / "a", noisy(other)), write_folder(tmp_path / "b", other)
    common = ["evaluate", "--generated", str(a), "--reference", str(b), "--pairs", "--metrics", "psnr,ssim"]
    main([*common, "--out", str(tmp_path / "x.json")])
    printed = capsys.readouterr()
    report = json.loads((tmp_path / "x.json").read_text())
    assert "psnr" in printed.out and f"{report['metrics']['psnr']['value']:.6g} dB" in printed.out
    assert set(report["metrics"]) == {"psnr", "ssim"}
    with pytest.raises(SystemExit) as stopped:
        main([*common, "--out", str(tmp_path / "y.json"), "--protocol", "admm"])
    assert stopped.value.code == 2 and "adm" in capsys.readouterr().err and not (tmp_path / "y.json").exists()


def test_the_command_takes_float_arrays_with_their_range(other: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", noisy(other).astype(np.float32) / 127.5 - 1)
    np.save(tmp_path / "b.npy", other.astype(np.float32) / 127.5 - 1)
    common = ["evaluate", "--generated", str(tmp_path / "a.npy"), "--reference", str(tmp_path / "b.npy"), "--pairs"]
    main([*common, "--metrics", "psnr", "--out", str(tmp_path / "x.json"), "--value-range=-1,1"])
    error = ((noisy(other).astype(float) - other) ** 2).mean((1, 2, 3))
    found = json.loads((tmp_path / "x.json").read_text())["metrics"]["psnr"]["value"]
    assert found == pytest.approx(np.mean(10 * np.log10(255**2 / error)))
    with pytest.raises(SystemExit):
        main([*common, "--metrics", "psnr", "--out", str(tmp_path / "y.json")])


def test_the_shipped_protocols_open() -> None:
    assert load_protocol("adm").judge.network == "inception-v3"
