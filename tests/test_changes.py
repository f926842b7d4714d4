"""What a refused job says was edited while it waited."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vqbench import changes
from vqbench.papers import Bench

KEY = ("tokenizer-scores", "cq-k1024/imagenet256")


def noted(base: Path) -> str:
    """Notes of a DAG that scores one tokenizer; its digest."""
    bench = Bench("demo")
    digest = bench.digest(KEY)
    changes.note(bench, base)
    return digest


def test_a_setting_a_file_and_an_input_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest, bench = noted(tmp_path), Bench("demo")
    before = changes.code_parts

    def edited(roots: Any) -> dict[str, str]:
        return before(roots) | {"vqbench.eval.psnr": "0" * 64}

    bench.tokenizers["cq-k1024"] = bench.tokenizers["cq-k1024"].model_copy(update={"seed": 7})
    monkeypatch.setattr(changes, "code_parts", edited)
    found = changes.since_asked(bench, KEY, digest, tmp_path)
    assert found.startswith("its code (eval.psnr) and what it is made from (reconstruction/cq-k1024/imagenet256, ")
    own = ("tokenizer", "cq-k1024")
    told = changes.since_asked(bench, own, Bench("demo").digest(own), tmp_path)
    assert told.startswith("its spec (seed: 0, now 7)")


def test_a_digest_that_nobody_noted(tmp_path: Path) -> None:
    assert changes.since_asked(Bench("demo"), KEY, "0" * 64, tmp_path) == changes.UNKNOWN
    noted(tmp_path)
    assert changes.since_asked(Bench("demo"), KEY, "0" * 64, tmp_path) == changes.UNKNOWN
    digest, path = Bench("demo").digest(KEY), tmp_path / "results/demo" / changes.NOTES
    assert changes.since_asked(Bench("demo"), KEY, digest, tmp_path) != changes.UNKNOWN
    for damaged in ("{", "{}", path.read_text().replace("probe", "prone", 1)):
        path.write_text(damaged)
        assert changes.since_asked(Bench("demo"), KEY, digest, tmp_path) == changes.UNKNOWN
        noted(tmp_path)  # written anew


def test_notes_stay_few(tmp_path: Path) -> None:
    bench = Bench("demo")
    for seed in range(changes.KEPT + 3):
        bench.tokenizers["cq-k1024"] = bench.tokenizers["cq-k1024"].model_copy(update={"seed": seed})
        bench._digests.clear()
        newest = bench.digest(KEY)
        changes.note(bench, tmp_path)
    kept = changes.read_sealed(tmp_path / "results/demo" / changes.NOTES)["notes"]["/".join(KEY)]
    assert len(kept) == changes.KEPT and kept[-1]["digest"] == newest
