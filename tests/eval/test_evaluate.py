"""``evaluate``, ``statistics`` and ``bridge`` on a few photographs, with the small judge and random weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from vqbench.cli import main
from vqbench.errors import ArtifactError, DataError, MissingWeights, SpecError
from vqbench.eval.base import Batch
from vqbench.eval.evaluate import evaluate, score
from vqbench.eval.evaluator import Evaluator
from vqbench.eval.extras import Extras
from vqbench.eval.make_statistics import statistics
from vqbench.eval.protocols import FOLDER, Distance, Protocol, load_protocol
from vqbench.eval.psnr import Psnr
from vqbench.eval.request import make_request
from vqbench.eval.set_metrics import BUILD, set_metrics
from vqbench.eval.ssim import Ssim

from .image_sets import noisy, write

SUFFIX = "[demo-judge]"


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
    folder = write(tmp_path / "png", other)
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


def test_pairs_are_no_reference_of_files_as_they_are(
    real: np.ndarray, protocol: Protocol, weights: dict[str, Any]
) -> None:
    """As in vqgan-lc-code, whose FID is against uncropped files: not another number under its name."""
    files = protocol.model_copy(update={"sets": protocol.sets.model_copy(update={"uncropped": True})})
    found = evaluate(noisy(real), real, protocol=files, weights=weights, pairs=True)["metrics"]
    assert set(found) == {"psnr", "ssim", f"lpips{SUFFIX}"}
    with pytest.raises(SpecError, match=r"'rfid' of protocol 'demo' is against all training images.*leave --pairs out"):
        evaluate(noisy(real), real, protocol=files, weights=weights, pairs=True, metrics=["rfid"])
    found = evaluate(noisy(real), real, protocol=files, weights=weights, metrics=["rfid"])["metrics"]
    assert set(found) == {f"rfid{SUFFIX}"}
    assert [p for p in FOLDER.glob("*.yaml") if load_protocol(p.stem).sets.uncropped] == [FOLDER / "vqgan-lc-code.yaml"]


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


def test_usage_is_counted_scale_by_scale_where_the_scales_are_given(
    real: np.ndarray, other: np.ndarray, protocol: Protocol, weights: dict[str, Any], tmp_path: Path
) -> None:
    ids = np.random.default_rng(0).integers(0, 8, (40, 5, 1))  # scales of 1 and 4 positions
    np.save(tmp_path / "ids.npy", ids)
    np.savez(tmp_path / "a.npz", arr_0=other)
    main(["evaluate", "--generated", str(tmp_path / "a.npz"), "--ids", str(tmp_path / "ids.npy"), "--num-codes", "16",
          "--scales", "1,2", "--metrics", "perplexity", "--out", str(tmp_path / "x.json")])  # fmt: skip
    found = json.loads((tmp_path / "x.json").read_text())["metrics"]
    for name, part in (("usage", ids), ("usage[scale0]", ids[:, :1]), ("usage[scale1]", ids[:, 1:])):
        assert found[name]["value"] == 100 * len(np.unique(part)) / 16
    shares = np.bincount(ids[:, 1:].ravel()) / ids[:, 1:].size
    bits = -(shares[shares > 0] * np.log2(shares[shares > 0])).sum()
    assert found["perplexity[scale1]"]["value"] == pytest.approx(2**bits)
    with pytest.raises(SystemExit):
        main(["evaluate", "--generated", str(tmp_path / "a.npz"), "--scales", "1,x", "--out", str(tmp_path / "y.json")])


def test_uncropped_references_of_mixed_sizes_are_saved_and_said(
    real: np.ndarray, other: np.ndarray, protocol: Protocol, weights: dict[str, Any], tmp_path: Path
) -> None:
    write(tmp_path / "ref" / "a", real[:30])
    write(tmp_path / "ref" / "b", real[30:, :20, :24])
    header = statistics(tmp_path / "ref", tmp_path / "ref.npz", protocol="torch-fidelity", judge="photo-classifier",
                        weights=weights)  # fmt: skip
    assert header["sizes"] == [[20, 24, 18], [32, 32, 30]]
    found = [evaluate(other, what, protocol="torch-fidelity", judge="photo-classifier", metrics=["fid"], weights=weights)
             for what in (tmp_path / "ref", tmp_path / "ref.npz")]  # fmt: skip
    (plain, saved) = (report["metrics"][f"fid[torch-fidelity]{SUFFIX}"]["value"] for report in found)
    assert saved == pytest.approx(plain, rel=1e-6)
    assert all(any("reference images are 24x20" in w for w in report["warnings"]) for report in found)
    with pytest.raises(SpecError, match=r"several sizes.*--resolution"):
        statistics(tmp_path / "ref", tmp_path / "x.npz", protocol="torch-fidelity", judge="photo-classifier",
                   weights=weights, images=True)  # fmt: skip


def test_originals_are_cropped_with_a_warning_and_never_enlarged(real: np.ndarray, tmp_path: Path) -> None:
    report = evaluate(noisy(real[:, :16, :16]), real, protocol="adm", metrics=["psnr"], pairs=True)
    assert any("originals were cropped from 32x32 to 16x16 (adm)" in warning for warning in report["warnings"])
    small = write(tmp_path / "b", real[:, :16, :16])
    for engine in ("vqbench", "reference"):
        with pytest.raises(DataError, match=r"original .*00000\.png is 16x16, smaller than the image of 32x32.*; give"):
            evaluate(real, small, protocol="adm", metrics=["psnr"], pairs=True, engine=engine)  # type: ignore[arg-type]


def test_a_reference_that_was_enlarged_is_said_of_images_and_of_statistics(
    real: np.ndarray, other: np.ndarray, weights: dict[str, Any], tmp_path: Path
) -> None:
    small = np.ascontiguousarray(real[:, :24, :24])
    statistics(small, tmp_path / "ref.npz", protocol="demo", weights=weights, resolution=32)
    for reference in (small, tmp_path / "ref.npz"):
        report = evaluate(other, reference, protocol="demo", metrics=["fid"], weights=weights)
        assert any("48 reference images are smaller" in warning for warning in report["warnings"])


def test_statistics_with_images_open_in_adms_evaluator(
    real: np.ndarray, weights: dict[str, Any], tmp_path: Path
) -> None:
    common = {"protocol": "demo", "weights": weights}
    statistics(real, tmp_path / "bare.npz", **common)
    statistics(real, tmp_path / "ref.npz", images=True, **common)
    with np.load(tmp_path / "ref.npz") as found, np.load(tmp_path / "bare.npz") as bare:
        assert np.array_equal(found["arr_0"], real[found["indices"]]) and set(found) == {"arr_0", *bare}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bare.npz", "ref.npz"]


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
        ({"engine": "xyz"}, "unknown engine 'xyz'; known: reference, vqbench"),
        ({"device": "foo"}, "unknown device 'foo'"),
        ({"device": "meta"}, "on cpu or cuda, not on 'meta'"),
        ({"device": f"cuda:{torch.cuda.device_count()}"}, r"is not here, torch sees \d+ GPUs; give --device cpu"),
        ({"ids": np.zeros((40, 4, 1)), "num_codes": 4}, r"ids are float64 \(40, 4, 1\); give integers"),
        ({"ids": [[[0]]] * 40, "num_codes": 4}, "ids are a list; give an integer array"),
        ({"ids": np.array(3), "num_codes": 4}, r"ids are int64 \(\); give integers"),
        ({"ids": np.zeros((40, 4), int), "num_codes": 4}, r"of one code a position: ids\[\.\.\., None\]"),
        ({"ids": np.zeros((40, 4, 1), int), "num_codes": -4}, "codebook of -4 codes; --num-codes is a whole number"),
        ({"weights": {"inceptionv3": "x.pth"}}, "unknown kind of network 'inceptionv3'; did you mean 'inception-v3'"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    real: np.ndarray, other: np.ndarray, protocol: Protocol, weights: dict[str, Any], options: Any, message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        evaluate(other, real, protocol=protocol, **{"weights": weights, **options})


def test_without_weights_it_says_what_to_fetch(
    real: np.ndarray, other: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    published = r"https://\S+weights-inception-2015-12-05-6726825d\.pth.*SHA-256 starts with 6726825d"
    wrong = tmp_path / "x.pth"
    torch.save(nn.Linear(1, 1).state_dict(), wrong)
    for given, message in (({}, "are not in"), ({"inception-v3": tmp_path / "none.pth"}, "does not exist; mend --weights"),
                           ({"inception-v3": wrong}, "does not hold the weights")):  # fmt: skip
        with pytest.raises(MissingWeights, match=f"{message}.*{published}"):
            evaluate(other, real, protocol="adm", weights=given)


def test_weights_that_are_not_the_published_ones_are_said_and_all_have_a_digest(
    real: np.ndarray, alexnet_file: Path, weights: dict[str, Any]
) -> None:
    report = evaluate(noisy(real), real, protocol="demo", metrics=["lpips_alex", "rfid"], pairs=True,
                      weights={"lpips-alexnet": alexnet_file, **weights})  # fmt: skip
    assert set(report["metrics"]) == {"lpips_alex", f"rfid{SUFFIX}"} and report["metrics"]["lpips_alex"]["value"] > 0
    assert any("published weights of 'lpips-alexnet' start with 7be5be79" in w for w in report["warnings"])
    assert set(report["weights"]) == {"lpips-alexnet", "lpips-alexnet linear", "photo-classifier"}
    assert all(len(digest) == 64 for digest in report["weights"].values())


def test_a_protocols_metric_that_the_set_is_too_small_for_is_left_out_with_a_warning(
    real: np.ndarray, other: np.ndarray, protocol: Protocol, weights: dict[str, Any]
) -> None:
    protocol = protocol.model_copy(update={"metrics": ("fid", "kid")})
    report = evaluate(other[:15], real, protocol=protocol, weights=weights)
    assert set(report["metrics"]) == {f"fid{SUFFIX}"} and any("Kid is left out" in w for w in report["warnings"])
    with pytest.raises(SpecError):
        evaluate(other[:15], real, protocol=protocol, weights=weights, metrics=["kid"])


def test_a_report_of_nothing_is_an_error(
    real: np.ndarray, other: np.ndarray, protocol: Protocol, weights: dict[str, Any], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    np.save(tmp_path / "a.npy", other)
    with pytest.raises(SystemExit) as stopped:
        main(
            [
                "evaluate",
                "--generated",
                str(tmp_path / "a.npy"),
                "--protocol",
                "taming",
                "--out",
                str(tmp_path / "x.json"),
            ]
        )
    assert stopped.value.code == 2 and not (tmp_path / "x.json").exists()
    assert "protocol 'taming' has nothing to compute; give --reference or --metrics" in capsys.readouterr().err
    kid = protocol.model_copy(update={"metrics": ("kid",)})
    with pytest.raises(SpecError, match="nothing could be computed: Kid is left out: KID draws subsets of 20 images"):
        evaluate(other[:15], real, protocol=kid, weights=weights)


def test_a_dictionary_is_no_set_of_images(real: np.ndarray, protocol: Protocol, weights: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="dict is no set of images"):
        evaluate({"a": real}, real, protocol=protocol, weights=weights)  # type: ignore[arg-type]


def test_statistics_are_refused_before_anything_is_read(
    real: np.ndarray, weights: dict[str, Any], tmp_path: Path
) -> None:
    for resolution in (-5, 0):
        with pytest.raises(SpecError, match=f"--resolution {resolution}: a side in pixels"):
            statistics(tmp_path / "none", tmp_path / "x.npz", resolution=resolution)
    for name in ("x", "x.npy", "x.json"):
        with pytest.raises(SpecError, match=r"one file that ends in \.npz, e\.g\. x\.npz"):
            statistics(tmp_path / "none", tmp_path / name)
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="cannot write"):
        statistics(tmp_path / "none", tmp_path / "file" / "x.npz")
    statistics(real, tmp_path / "a" / "b" / "x.npz", protocol="demo", weights=weights, images=True)
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["x.npz"]


@pytest.mark.parametrize("side", [8, 16, 30])
def test_images_too_small_for_lpips_cost_its_line_alone(side: int, real: np.ndarray, alexnet_file: Path) -> None:
    small, files = np.ascontiguousarray(real[:, :side, :side]), {"lpips-alexnet": alexnet_file}
    shipped = load_protocol("adm").model_copy(update={"lpips": Distance(network="lpips-alexnet", suffix="[alexnet]")})
    protocol = shipped.model_copy(update={"metrics": ("psnr", "lpips")})
    for engine in ("vqbench", "reference"):
        with pytest.raises(
            SpecError, match=f"needs images of 31x31 or more, these are {side}x{side}; leave 'lpips' out"
        ):
            evaluate(
                noisy(small), small, protocol=protocol, metrics=["lpips"], pairs=True, weights=files, engine=engine
            )  # type: ignore[arg-type]
    request = make_request(protocol, None, True, None, files, "cpu", True, None)
    request.names.remove("rfid")
    report = score(request, noisy(small), small, Extras([], None, None))
    assert list(report["metrics"]) == ["psnr"] and any("Lpips is left out" in w for w in report["warnings"])


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
    with pytest.raises(SpecError, match=r"metrics \['Psnr', 'Ssim'\] and \['Psnr'\]"):
        whole.merge(Evaluator([Psnr(protocol.psnr)]))


def test_shards_of_other_set_metrics_are_refused(protocol: Protocol) -> None:
    assert protocol.kid is not None
    larger = protocol.model_copy(update={"kid": protocol.kid.model_copy(update={"subset_size": 21})})

    def evaluator(names: Sequence[str], under: Protocol) -> Evaluator:
        return Evaluator((), set_metrics(names, under))

    evaluator(["fid", "kid"], protocol).merge(evaluator(["fid", "kid"], protocol))
    for names, under in ((["rfid", "kid"], protocol), (["fid", "kid"], larger), (["kid", "fid"], protocol)):
        with pytest.raises(SpecError, match="evaluation: shards of different settings cannot be merged"):
            evaluator(["fid", "kid"], protocol).merge(evaluator(names, under))


def test_the_command_writes_the_report_and_prints_it(
    real: np.ndarray, other: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = write(tmp_path / "a", noisy(other)), write(tmp_path / "b", other)
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
