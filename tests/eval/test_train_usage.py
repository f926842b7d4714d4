"""Usage over all training images: a step of its own, of the tokenizers whose table asks for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from vqbench.artifacts import read_json
from vqbench.eval import plots_scores, score_usage
from vqbench.eval.figure_inputs import figure_keys
from vqbench.eval.tables import build_table
from vqbench.papers import Bench, Figure, score_keys
from vqbench.specs import TokenSpec

from .synthetic import CODE, PAPER, finish, finish_scores, scores_json, write_workflow

TOKENS = TokenSpec(layout="raster", grid=2, num_tokens=4, code_dim=3, num_codes=16)
COLUMNS = {
    "Utilization": {"metric": "usage_train"},
    "Perplexity": {"metric": "perplexity_train"},
    "rFID": {"metric": "rfid"},
}


def test_every_training_image_counts_once(world: Callable[..., Any], demo_protocol: dict[str, Any]) -> None:
    plain = np.arange(30 * 4).reshape(30, 4, 1) % 12
    spec = {"tokenizer": "t", "dataset": "photos", "protocol": demo_protocol, "tokens": TOKENS.model_dump(mode="json")}
    found = []
    for ids in (plain, np.concatenate([plain, np.full_like(plain, 15)])):  # the second with mirror images
        job = world(spec, tokens__t__photos__train={"ids": ids})
        job.inputs[("tokens", "t/photos/train")].facts = {"images": 30}
        assert score_usage.run(job) == {"images": 30, "protocol": "demo"}
        found.append(read_json(job.store / "scores.json")["metrics"])
    assert found[0] == found[1]
    assert found[0]["usage_train"]["value"] == 75.0 and found[0]["usage_train"]["n"] == 30
    assert found[0]["perplexity_train"]["value"] == pytest.approx(12.0)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr("vqbench.graph.code_digest", lambda roots: CODE)
    folder = write_workflow(tmp_path / "workflow")
    table = {"title": "Reconstruction", "columns": COLUMNS, "rows": {"FC": {"tokenizer": "llamagen-d8"}}}
    samples = {"title": "Generation", "columns": {"Utilization": {"metric": "usage_train"}},
               "rows": {"L": {"samples": "cq-l-k16384-s10"}}}  # fmt: skip
    paper = PAPER | {"tables": PAPER["tables"] | {"8": table, "9": samples}}
    (folder / "papers" / "cq.yaml").write_text(yaml.safe_dump(paper, allow_unicode=True))
    return Bench("demo", folder)


def test_a_column_asks_for_it_and_nothing_else_does(bench: Bench) -> None:
    asked = [key for key in score_keys(bench) if key[0] == "train-usage"]
    assert asked == [("train-usage", "llamagen-d8")]
    assert set(bench.table_keys(bench.tables["cq/8"])) == {*asked, ("tokenizer-scores", "llamagen-d8/photos")}
    assert (
        asked[0] in bench.own_scores("tokenizer", "llamagen-d8") and len(bench.own_scores("tokenizer", "cq-k1024")) == 1
    )
    assert bench.step(asked[0]).upstream == (("tokens", "llamagen-d8/photos/train"),)
    assert bench.table_keys(bench.tables["cq/9"]) == [("sample-scores", "cq-l-k16384-s10")], (
        "their scores hold it already"
    )
    assert "train-usage" not in {k[0] for n in ("cq/5", "cq/6a") for k in bench.table_keys(bench.tables[n])}


def test_the_cells_are_read_from_it(bench: Bench, tmp_path: Path) -> None:
    finish_scores(bench, tmp_path)
    metrics = {"usage_train": (11.25, "%"), "perplexity_train": (1234.5, "codes")}
    finish(bench, ("train-usage", "llamagen-d8"), tmp_path, {"scores.json": scores_json(metrics, bench.protocol, 64)})
    (row,) = build_table(bench, bench.tables["cq/8"], tmp_path, paper=bench).to_dict("records")
    assert row["Utilization measured"] == "11.2%" and row["Perplexity measured"] == "1234.500"
    assert row["status"] == "measured" and row["N"].startswith("64 (Perplexity, Utilization)")
    assert "scores/usage/llamagen-d8" in row["manifest"]


@pytest.mark.parametrize(("table", "images", "usage"), [("8", "training", 11.25), ("6a", "validation", None)])
def test_a_figure_takes_usage_from_where_its_table_does(
    bench: Bench, tmp_path: Path, table: str, images: str, usage: float | None
) -> None:
    finish_scores(bench, tmp_path)
    metrics = {"usage_train": (11.25, "%"), "perplexity_train": (1234.5, "codes")}
    finish(
        bench,
        counted := ("train-usage", "llamagen-d8"),
        tmp_path,
        {"scores.json": scores_json(metrics, bench.protocol)},
    )
    figure = Figure("cq", "x", "", "usage-and-rfid", {"FC": ("llamagen-d8",)}, (table,))
    assert (counted in figure_keys(bench, figure)) == (images == "training")
    (point,), labels = plots_scores.open_points(bench, figure, tmp_path)
    own = read_json(next(tmp_path.glob("results/demo/store/tokenizer-scores/llamagen-d8/photos/*/scores.json")))[
        "metrics"
    ]
    assert point.measured["usage"] == (usage or own["usage"]["value"]) and f"{images} images" in labels["usage"]
    assert point.measured["rfid"] == own["rfid[demo-judge]"]["value"]
