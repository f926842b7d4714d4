"""Columns that say more than a metric: of a row's tokenizer, under another protocol, times a factor; the figure of tasks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from skimage.metrics import peak_signal_noise_ratio

from vqbench.artifacts import read_json
from vqbench.data import open_images
from vqbench.errors import ArtifactError, DataError, SpecError
from vqbench.eval import plots_tasks, score_pairs
from vqbench.eval.figure_inputs import figure_keys, figure_runs
from vqbench.eval.protocols import FOLDER
from vqbench.eval.tables import build_table
from vqbench.papers import Bench, Figure
from vqbench.rooms import families

from .conftest import PHOTOS
from .image_sets import noisy
from .synthetic import CODE, PAPER, finish, finish_scores, scores_json, write_workflow

COLUMNS = {
    "rFID": {"metric": "rfid", "of": "tokenizer"},
    "FID": {"metric": "fid"},
    "PSNR": {"metric": "psnr", "under": "vqgan-lc-code", "of": "tokenizer"},
    "SSIM": {"metric": "ssim", "times": 100, "of": "tokenizer"},
}
PAIRS = ("pair-scores", "cq-k16384/photos/vqgan-lc-code")


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr("vqbench.graph.code_digest", lambda roots: CODE)
    folder = write_workflow(tmp_path / "workflow")
    rows = {"L": {"samples": "cq-l-k16384-s10"}}
    table = {"title": "Both", "columns": COLUMNS, "rows": rows}
    (folder / "papers" / "cq.yaml").write_text(yaml.safe_dump(PAPER | {"tables": PAPER["tables"] | {"8": table}}))
    return Bench("demo", folder)


def test_a_row_of_samples_shows_its_tokenizers_scores(bench: Bench, tmp_path: Path) -> None:
    table = bench.tables["cq/8"]
    assert set(bench.table_keys(table)) == {
        ("tokenizer-scores", "cq-k16384/photos"), ("sample-scores", "cq-l-k16384-s10"), PAIRS,
    }  # fmt: skip
    assert PAIRS in bench.own_scores("tokenizer", "cq-k16384")
    finish_scores(bench, tmp_path)
    protocol = yaml.safe_load((FOLDER / "vqgan-lc-code.yaml").read_text())
    finish(bench, PAIRS, tmp_path, {"scores.json": scores_json({"psnr[vqgan-lc-code]": (21.5, "dB")}, protocol)})
    (row,) = build_table(bench, table, tmp_path, paper=bench).to_dict("records")
    scores, own = (next(tmp_path.glob(f"results/demo/store/{kind}/{name}/*/scores.json")) for kind, name in (
        ("tokenizer-scores", "cq-k16384/photos"), ("sample-scores", "cq-l-k16384-s10")))  # fmt: skip
    metrics = read_json(scores)["metrics"]
    assert row["PSNR measured [vqgan-lc-code]"] == "21.50"
    assert float(row["SSIM measured"]) == pytest.approx(100 * metrics["ssim"]["value"], abs=1e-3)
    assert float(row["rFID measured [demo-judge]"]) == pytest.approx(metrics["rfid[demo-judge]"]["value"], abs=0.01)
    fid = read_json(own)["metrics"]["fid[demo-judge]"]["value"]
    assert float(row["FID measured [demo-judge]"]) == pytest.approx(fid, abs=0.01) and row["status"] == "measured"


def test_a_column_under_a_protocol_refuses_the_scores_of_another(bench: Bench, tmp_path: Path) -> None:
    finish_scores(bench, tmp_path)
    shipped = yaml.safe_load((FOLDER / "vqgan-lc-code.yaml").read_text())
    changed = shipped | {"batch": shipped["batch"] + 1}
    for name, protocol in (("psnr[vqgan-lc-code]", changed), ("psnr", bench.protocol)):
        finish(bench, PAIRS, tmp_path, {"scores.json": scores_json({name: (21.5, "dB")}, protocol)})
        named = rf"'L' PSNR was scored under protocol {protocol['name']} [0-9a-f]{{12}}, its column names vqgan-lc-code"
        with pytest.raises(ArtifactError, match=named):
            build_table(bench, bench.tables["cq/8"], tmp_path, paper=bench)


def test_an_unknown_protocol_is_refused_with_the_nearest(bench: Bench) -> None:
    with pytest.raises(SpecError, match="unknown protocol 'vqgan-lc'; did you mean 'vqgan-lc-code'"):
        bench.step(("pair-scores", "cq-k16384/photos/vqgan-lc"))


def test_pairs_are_scored_under_the_other_protocol(world: Callable[..., Any]) -> None:
    images = open_images(PHOTOS, "validation").batch(0, 24)
    decoded = noisy(images)
    protocol = yaml.safe_load((FOLDER / "vqgan-lc-code.yaml").read_text())
    job = world({"tokenizer": "t", "dataset": "photos", "protocol": protocol},
                reconstruction__t__photos={"images": decoded})  # fmt: skip
    assert score_pairs.run(job) == {"images": 24, "protocol": "vqgan-lc-code"}
    found = read_json(job.store / "scores.json")["metrics"]
    luma = [x.astype(float) @ np.array([65.481, 128.553, 24.966]) / 255 + 16 for x in (images, decoded)]
    theirs = np.mean([peak_signal_noise_ratio(a, b, data_range=255) for a, b in zip(*luma, strict=True)])
    assert found["psnr[vqgan-lc-code]"]["value"] == pytest.approx(theirs, rel=1e-9)
    assert set(found) == {"psnr[vqgan-lc-code]", "ssim[vqgan-lc-code]"}


def test_two_splits_are_one_reference() -> None:
    both = open_images(PHOTOS, "train+validation")
    parts = [open_images(PHOTOS, split) for split in ("train", "validation")]
    assert len(both) == 54 and np.array_equal(both.labels, np.concatenate([p.labels for p in parts]))
    assert np.array_equal(both.batch(28, 5), np.concatenate([parts[0].batch(28, 2), parts[1].batch(0, 3)]))
    with pytest.raises(DataError, match="one split"):
        both.augmented(0, 0)


def test_photographs_of_one_class_are_all_drawn_from() -> None:
    alone = PHOTOS.model_copy(update={"classes": 1})
    images = open_images(alone, "train")
    assert set(images.labels) == {0} and images.stream(0, 8, 0)[1].tolist() == [0] * 8
    assert np.array_equal(images.batch(0, 30), open_images(PHOTOS, "train").batch(0, 30))


def test_a_bar_is_a_score_on_its_task(bench: Bench, tmp_path: Path) -> None:
    runs = {"A": ("cq-k16384", "cq-l-k16384-s10"), "B": ("llamagen-d8",)}
    figure = Figure("cq", "tasks", "Tasks", "downstream", runs, ())
    keys = figure_keys(bench, figure)
    assert keys == [("tokenizer-scores", "cq-k16384/photos"), ("sample-scores", "cq-l-k16384-s10"),
                    ("tokenizer-scores", "llamagen-d8/photos")]  # fmt: skip
    finish_scores(bench, tmp_path)
    tasks = plots_tasks.open_tasks(bench, figure, tmp_path)
    assert {title.partition("\n")[0]: [bar.series for bar in bars] for title, bars in tasks.items()} == {
        "reconstruction": ["A", "B"], "generation, MaskGIT": ["A"],
    }  # fmt: skip
    assert all("[demo-judge]" in title for title in tasks)
    assert set(plots_tasks.NAMES) == set(families("generators"))
    drawn = plots_tasks.plot_tasks(tasks)
    heights = [bar.get_height() for bar in drawn.axes[0].patches]
    assert heights == [bar.value for bar in next(iter(tasks.values()))]
    assert [text.get_text() for text in plots_tasks.plot_tasks({}).axes[0].texts] == ["not measured"]


def test_figure_1b_bears_what_the_paper_prints() -> None:
    """VQGAN-LC, Fig. 1 (b), every bar of it; GPT's three numbers overlap in the paper's text."""
    paper = Bench("paper")
    figure = paper.figures["vqgan_lc/fig1b"]
    series = {run: name for name, runs in figure.runs.items() for run in runs}
    cells = {
        key[1]: plots_tasks.printed_value(paper, figure, series[key[1]], key) for key in figure_runs(paper, figure)
    }
    assert len(cells) == 18 and all(cells.values())
    found = {run: float(cell.value) for run, cell in cells.items() if cell}
    assert found["lc-k100000"] == 2.6 and found["ema-k16384-vit"] == 73.6 and found["dit-fc-k16384-s"] == 13.7
    assert {run for run, cell in cells.items() if cell and not cell.certain} == {
        r for r in cells if r.startswith("gpt-")
    }
    demo = Bench("demo")
    assert (
        plots_tasks.printed_value(demo, demo.figures["vqgan_lc/fig1b"], "VQGAN-LC", ("tokenizer", "lc-k100000")) is None
    )
    bars = {"task": [plots_tasks.Bar("VQGAN-LC", 20.0, (19.0, 21.0), cells["lc-k100000"]),
                     plots_tasks.Bar("VQGAN-FC", 20.0, None, cells["gpt-fc-k16384-s"])]}  # fmt: skip
    panel = plots_tasks.plot_tasks(bars).axes[0]
    assert [(line.get_marker(), *line.get_ydata()) for line in panel.lines] == [("D", 2.6), ("$?$", 17.3)]
    digits = {
        "task": [plots_tasks.Bar(name, value, None, None) for name, value in (("A", 9.7), ("B", 34.68), ("C", 100.0))]
    }
    assert [text.get_text() for text in plots_tasks.plot_tasks(digits).axes[0].texts] == ["9.70", "34.7", "100"]
    taller = {"task": [plots_tasks.Bar("VQGAN-LC", 1.0, None, cells["lc-k100000-vit"])]}
    assert plots_tasks.plot_tasks(taller).axes[0].get_ylim()[1] > 75.5, "a printed number higher than the bar is seen"
