"""``vqbench bridge``: one set under many protocols; what one of them cannot have costs its own lines alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from random_weights import write_inception, write_vgg16

from vqbench.cli import main
from vqbench.errors import SpecError
from vqbench.eval.bridge import REACH, _choices, _flat, bridge
from vqbench.eval.evaluate import evaluate
from vqbench.eval.protocols import FOLDER, PAIRED, load_protocol
from vqbench.eval.set_metrics import BUILD
from vqbench.specs import digest_of

from .image_sets import noisy, write


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
    adm = table[table["protocol"] == "adm"].set_index("metric")
    assert "inception" in adm.loc["rfid", "note"] and "vgg16" in adm.loc["lpips", "note"]
    assert adm.loc[["psnr", "ssim"], "value"].notna().all() and (adm.loc[["psnr", "ssim"], "note"] == "").all()
    assert table[table["protocol"] == "demo"]["value"].notna().all()


def test_pairs_cost_a_protocol_of_uncropped_files_its_fid_alone(real: np.ndarray, weights: dict[str, Any]) -> None:
    table = bridge(noisy(real), real, protocols=["demo", "vqgan-lc-code"], metrics=["rfid", "psnr"], pairs=True,
                   weights=weights)  # fmt: skip
    found = table.set_index(["metric", "protocol"])
    assert "leave --pairs out" in found.loc[("rfid", "vqgan-lc-code"), "note"]
    assert found["value"].notna().sum() == 3


def test_the_bridge_leaves_out_only_what_a_protocol_does_not_define(
    real: np.ndarray, other: np.ndarray, weights: dict[str, Any]
) -> None:
    table = bridge(other, real, protocols=["adm", "clean-fid"], metrics=["fid", "is"], judge="photo-classifier",
                   weights=weights)  # fmt: skip
    found = table.set_index(["metric", "protocol"])["value"].notna()
    names = ("adm+photo-classifier", "clean-fid+photo-classifier")
    assert [bool(found[metric, name]) for metric in ("fid", "is") for name in names] == [True, True, True, False]
    assert "defines no 'is'" in " ".join(table["note"])


def test_a_metric_that_fails_costs_its_own_line(real: np.ndarray, other: np.ndarray, weights: dict[str, Any]) -> None:
    """KID's subsets are larger than these sets."""
    found = bridge(other[:15], real, protocols=["demo"], metrics=["fid", "kid"], weights=weights).set_index("metric")
    assert found.loc["fid", "value"] > 0 and "Kid is left out" in found.loc["kid", "note"]


def test_images_too_small_for_lpips_cost_its_line_alone(real: np.ndarray, published: dict[str, Path]) -> None:
    small = np.ascontiguousarray(real[:, :12, :12])
    found = bridge(noisy(small), small, protocols=["adm"], metrics=["psnr", "lpips"], pairs=True, weights=published)
    found = found.set_index("metric")
    assert (
        found.loc["psnr", "value"] > 0
        and "needs images of 16x16 or more, these are 12x12" in found.loc["lpips", "note"]
    )


def test_a_line_is_what_evaluate_says(real: np.ndarray, other: np.ndarray, weights: dict[str, Any]) -> None:
    table = bridge(other, real, protocols=["demo"], weights=weights)
    report = evaluate(other, real, protocol="demo", weights=weights)
    for line in table.to_dict("records"):
        entry = report["metrics"][f"{line['metric']}[demo-judge]"]
        assert all(line[k] == entry[k] for k in ("value", "low", "high", "n", "unit", "higher_is_better"))
        assert line["protocol_digest"] == report["protocol_digest"]
    assert table.attrs["warnings"] == [f"demo: {warning}" for warning in report["warnings"]] != []
    assert report["protocol_digest"] == digest_of(load_protocol("demo").model_dump(mode="json", by_alias=True))


def test_the_command_writes_the_table_with_its_warnings(
    real: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "a.npy", noisy(real).astype(np.float32) / 255)
    np.save(tmp_path / "b.npy", real.astype(np.float32) / 255)
    main(["bridge", "--generated", str(tmp_path / "a.npy"), "--reference", str(tmp_path / "b.npy"), "--pairs", "--metrics",
          "psnr,ssim", "--protocols", "adm,taming", "--value-range=0,1", "--out", str(tmp_path / "x.csv")])  # fmt: skip
    printed = capsys.readouterr()
    text = (tmp_path / "x.md").read_text()
    assert "psnr" in printed.out and "images.rounding nearest -> truncate" in text
    assert (tmp_path / "x.csv").read_text().count("\n") == 5


def test_the_table_is_not_named_after_its_copy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["bridge", "--generated", "none", "--reference", "none", "--out", str(tmp_path / "x.md")])
    assert stopped.value.code == 2 and "x.csv; its .md is written beside it" in capsys.readouterr().err


def choices(table: pd.DataFrame, metric: str, protocol: str) -> set[str]:
    (text,) = table[(table["metric"] == metric) & (table["protocol"] == protocol)]["choices"]
    return {choice.split(" ")[0] for choice in text.split("; ") if choice}


def test_only_choices_that_can_act_are_named(real: np.ndarray, other: np.ndarray, weights: dict[str, Any]) -> None:
    clean, taming = "clean-fid+photo-classifier", "taming+photo-classifier"
    names: dict[str, Any] = {
        "protocols": ["adm", "clean-fid", "taming"],
        "judge": "photo-classifier",
        "weights": weights,
    }
    table = bridge(other, real, metrics=["fid"], **names)  # uint8 of one size: no crop and no rounding
    assert choices(table, "fid", clean) == choices(table, "fid", taming) == set()
    table = bridge(other[:, :16, :16], real, metrics=["fid"], **names)
    assert choices(table, "fid", clean) == choices(table, "fid", taming) == {"images.crop"}
    floats = [images.astype(np.float32) / 255 for images in (other, real)]
    table = bridge(*floats, metrics=["fid"], value_range=(0, 1), **names)
    assert choices(table, "fid", taming) == {"images.rounding"} and choices(table, "fid", clean) == set()


def test_each_metric_is_reached_by_its_own_choices() -> None:
    assert set(REACH) == {*BUILD, *PAIRED}
    lines = {name: {"data": _flat(load_protocol(name).model_dump(mode="json", by_alias=True)), "acted": frozenset()}
             for name in ("adm", "dgm-eval", "torch-fidelity", "clean-fid")}  # fmt: skip

    def named(metric: str, protocol: str) -> set[str]:
        return {choice.split(" ")[0] for choice in _choices(metric, lines["adm"], lines[protocol])}

    judge = {"judge.network", "judge.resize", "judge.size"}
    assert named("fid", "dgm-eval") == named("rfid", "dgm-eval") == {*judge, "judge.features"}
    assert named("kid", "dgm-eval") == {*judge, "judge.features", "kid.seed"}
    assert named("sfid", "dgm-eval") == {*judge, "judge.spatial"}
    assert named("fid", "torch-fidelity") == set()  # no spatial layer, and precision's own judge: FID reads neither
    assert named("precision", "torch-fidelity") == {
        "judge.network", "judge.size", "judge.features", "precision_recall.reference_count",
    }  # fmt: skip
    assert named("psnr", "dgm-eval") == named("lpips", "clean-fid") == set()


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random weights of the true shapes, but for the two networks that take a gigabyte."""
    folder = tmp_path_factory.mktemp("weights")
    return {"inception-v3": write_inception(folder / "inception.pth"), "lpips-vgg16": write_vgg16(folder / "vgg.pth")}


def test_every_shipped_protocol_has_its_lines(
    real: np.ndarray, other: np.ndarray, published: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    names = sorted(p.stem for p in FOLDER.glob("*.yaml") if p.stem != "demo")
    table = bridge(write(tmp_path / "a", other[:4]), write(tmp_path / "b", real[:5]), metrics=["fid", "precision"],
                   weights=published)  # fmt: skip
    fid = table[table["metric"] == "fid"].set_index("protocol")
    assert sorted(fid.index) == names and fid.index[0] == "adm"
    assert "dinov2" in fid.loc["dgm-eval", "note"] and fid.drop("dgm-eval")["value"].notna().all()
    assert fid.loc["torch-fidelity", "change"] == pytest.approx(0, abs=1e-6 * fid.loc["adm", "value"])
    assert fid.loc["pytorch-fid", "change"] != 0 and "judge.gain 1.0 -> 1.0039" in fid.loc["pytorch-fid", "choices"]
    precision = table[table["metric"] == "precision"].set_index("protocol")
    assert precision.loc["adm", "n"] == 4 and "vgg16" in precision.loc["torch-fidelity", "note"]
    assert "defines no 'precision'" in precision.loc["clean-fid", "note"]
    with pytest.raises(SpecError, match="no protocol could score"):
        bridge(other[:4], real[:5], protocols=["dgm-eval"], metrics=["fid"], weights=published)
