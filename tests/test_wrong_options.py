"""Options that a scale, a recipe or a network's entry gets wrong: refused in words that name them, before any job."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import copy_clone, snakemake, vqbench

from vqbench.clone import read_yaml
from vqbench.errors import SpecError
from vqbench.papers import Bench
from vqbench.rooms import build

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_clone(tmp_path_factory.mktemp("options") / "clone")


def changed(place: Path, name: str, change: Change) -> Path:
    """The file below workflow/ with `change` applied; the text before is kept beside it."""
    path = place / "workflow" / name
    data = read_yaml(path)
    change(data)
    path.with_suffix(".before").write_text(path.read_text())
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


WRONG: list[tuple[str, Change, str]] = [
    ("scales/tiny.yaml", lambda d: d["tokenizers"]["replace"].update(downsample={16: 0}), "'downsample' is 0"),
    ("scales/tiny.yaml", lambda d: d["tokenizers"]["replace"].update(downsample={16: -4}), "'downsample' is -4"),
    ("scales/tiny.yaml", lambda d: d["tokenizers"]["set"].update(base_channels=None), "'base_channels' is None"),
    ("scales/tiny.yaml", lambda d: d["tokenizers"]["set"].update(base_channels=0), "'base_channels' is 0"),
    ("scales/tiny.yaml", lambda d: d["tokenizers"]["set"].update(multipliers=[1, "x", 1]), "'multipliers' is [1, 'x', 1]"),
    ("scales/tiny.yaml", lambda d: d["tokenizers"]["set"].update(multipliers=[1, 0, 1]), "'multipliers' is [1, 0, 1]"),
    ("scales/tiny.yaml", lambda d: d["generators"]["replace"].update(heads={16: -1}), "'heads' is -1"),
    ("scales/tiny.yaml", lambda d: d["samples"]["set"].update(count=0), "'count' is 0"),
    ("scales/tiny.yaml", lambda d: d["samples"]["set"].update(steps=1.5), "'steps' is 1.5"),
    ("pretrained.yaml", lambda d: d["tiny-classifier"]["options"].update(channels=[4, 4, 6, 8, 8]), "five positive multiples of 4"),
    ("pretrained.yaml", lambda d: d["tiny-classifier"].pop("options"), "five positive multiples of 4"),
    ("pretrained.yaml", lambda d: d["lpips-vgg16"].pop("filename"), "has a 'filename' and no 'training'"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "says"), WRONG)
def test_an_option_out_of_range_is_named(place: Path, name: str, change: Change, says: str) -> None:
    path = changed(place, name, change)
    try:
        done = vqbench(place, "list", "--scale", "tiny")
        assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr, done.stderr
        assert name in done.stderr or "pretrained '" in done.stderr
    finally:
        path.with_suffix(".before").replace(path)


JUDGELESS: tuple[str, Change, str] = ("scales/tiny.yaml", lambda d: d["roles"].pop("judge"), "'roles' names no judge")


@pytest.mark.parametrize(("name", "change", "says"), [WRONG[0], JUDGELESS])
def test_snakemake_says_the_same(place: Path, name: str, change: Change, says: str) -> None:
    path = changed(place, name, change)
    try:
        done = snakemake(place, "-n", "results/tiny/table6b.csv")
        assert done.returncode != 0 and says in done.stderr and "Traceback" not in done.stderr, done.stderr
    finally:
        path.with_suffix(".before").replace(path)


def test_a_family_that_fails_on_its_options_says_where_and_for_which_run(place: Path) -> None:
    """No literal says that dropout ends at 1: the network itself refuses it. Its words and place are kept."""
    path = changed(place, "scales/tiny.yaml", lambda d: d["generators"].update(set={"dropout": 2.0}))
    try:
        with torch.device("meta"), pytest.raises(SpecError, match=r"'dropout': 2\.0") as caught:
            build("generators", Bench("tiny", place / "workflow").generators["cq-b-k16384"])
        assert isinstance(caught.value.__cause__, ValueError)
        done = vqbench(place, "plan", "cq-b-k16384", "--scale", "tiny")
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        assert "generator/cq-b-k16384: family 'maskgit' in generators/ cannot be built" in done.stderr
        assert "ValueError at generators/networks/transformer.py:" in done.stderr
        assert "dropout probability has to be between 0 and 1" in done.stderr
    finally:
        path.with_suffix(".before").replace(path)


def test_a_step_names_its_run_too(place: Path) -> None:
    """A mistake in a family's own code is one line as well; the line says which error it was, and where."""
    path = place / "tokenizers" / "vq.py"
    text = path.read_text()
    path.write_text(text.replace("    options = spec.options\n", "    options = spec.options\n    1 / 0\n"))
    try:
        for words in (("check-dataset", "photos-tiny"), ("pretrained", "tiny-classifier")):
            assert vqbench(place, *words, "--scale", "tiny").returncode == 0
        done = vqbench(place, "train-tokenizer", "vqgan-k1024", "--scale", "tiny")
        line = text[: text.index("    options = spec.options\n")].count("\n") + 2
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        assert "tokenizer/vqgan-k1024: family 'vq' in tokenizers/ cannot be built" in done.stderr
        assert f"ZeroDivisionError at tokenizers/vq.py:{line}: division by zero" in done.stderr
    finally:
        path.write_text(text)
