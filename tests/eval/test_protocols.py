"""Protocols as shipped, the names they give, and what they refuse."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import yaml

from vqbench.errors import SpecError
from vqbench.eval.protocols import FOLDER, load_protocol, metric_name, read_protocol

NAMES = sorted(p.stem for p in FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_shipped_protocols_read_and_bear_their_files_name(name: str) -> None:
    assert load_protocol(name).name == name


def test_the_three_protocols_ship() -> None:
    assert {"adm", "demo", "clean-fid"} <= set(NAMES)


@pytest.mark.parametrize(
    ("protocol", "base", "name"),
    [
        ("adm", "fid", "fid"),
        ("adm", "lpips", "lpips"),
        ("demo", "fid", "fid[demo-judge]"),
        ("demo", "rfid", "rfid[demo-judge]"),
        ("demo", "is", "is[demo-judge]"),
        ("demo", "precision", "precision[demo-judge]"),
        ("demo", "recall", "recall[demo-judge]"),
        ("demo", "lpips", "lpips[demo-judge]"),
        ("demo", "psnr", "psnr"),
        ("demo", "ssim", "ssim"),
        ("demo", "usage", "usage"),
        ("demo", "unique_ratio", "unique_ratio"),
        ("demo", "probe_before", "probe_before"),
        ("clean-fid", "rfid", "rfid[clean-fid]"),
        ("clean-fid", "lpips", "lpips"),
    ],
)
def test_metric_names(protocol: str, base: str, name: str) -> None:
    data = yaml.safe_load((FOLDER / f"{protocol}.yaml").read_text())
    assert metric_name(base, data) == metric_name(base, read_protocol(data)) == name


def _set(data: dict[str, Any], path: str, value: Any) -> None:
    *parents, key = path.split(".")
    for parent in parents:
        data = data[parent]
    data[key] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("precision_recall.neighbourhood", 3, "did you mean 'neighborhood'"),
        ("suffix", "", "stand-in"),
        ("lpips.suffix", "", "stand-in"),
        ("judge.logits", None, "logits"),
        ("ssim.size", 8, "odd"),
        ("ssim.sigma", 1.5, "gaussian"),
        ("batch", 0, "greater than 0"),
        ("psnr.space", "yuv", "rgb"),
    ],
)
def test_mistakes_are_named(path: str, value: Any, message: str) -> None:
    data = yaml.safe_load((FOLDER / "demo.yaml").read_text())
    _set(data, path, value)
    with pytest.raises(SpecError, match=message):
        read_protocol(data)


def test_a_gaussian_window_has_the_width_that_scikit_image_gives_it() -> None:
    data = yaml.safe_load((FOLDER / "adm.yaml").read_text())
    data["ssim"] = {"window": "gaussian", "size": 11, "sigma": 1.5, "data_range": 255}
    assert read_protocol(data).ssim.size == 11
    data["ssim"]["size"] = 7
    with pytest.raises(SpecError, match="not 7 wide"):
        read_protocol(data)


def test_unknown_protocol_names_the_nearest() -> None:
    with pytest.raises(SpecError, match="did you mean 'demo'"):
        load_protocol("demos")


def test_tables_can_name_metrics_without_torch() -> None:
    code = "import sys, vqbench.eval.protocols; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
