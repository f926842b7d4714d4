"""What `make demo` learned: read from results/demo. Fails, saying so, where the demo was not run."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, snakemake

from vqbench.data import open_images
from vqbench.jobs import finished
from vqbench.papers import bench

pytestmark = pytest.mark.demo

DEMO = bench("demo")
KEYS = [k for t in ("cq/6a", "cq/6b") for k in DEMO.table_keys(DEMO.tables[t])]
TOKENIZERS = sorted({name.split("/")[0] for _, name in KEYS})


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """dB per image for uint8 (B, H, W, 3)."""
    error = (a.astype(np.float64) - b.astype(np.float64)) ** 2
    return 10 * np.log10(255**2 / error.mean((1, 2, 3)))


@pytest.fixture(scope="module")
def gains() -> dict[str, float]:
    """dB by which each tokenizer's reconstructions beat each image's own mean colour, on held-out regions."""
    images = open_images(DEMO.datasets["photos"], "validation")
    real = images.batch(0, len(images))
    flat = np.broadcast_to(real.mean((1, 2), keepdims=True).round(), real.shape)
    base = psnr(flat, real).mean()
    found = {}
    for name in TOKENIZERS:
        made = finished(DEMO, ("reconstruction", f"{name}/photos"), ROOT).file("images.npy")
        found[name] = float(psnr(np.load(made), real).mean() - base)
    return found


def test_every_tokenizer_beats_the_mean_colour(gains: dict[str, float]) -> None:
    assert len(gains) == 8 and min(gains.values()) > 0, gains


def test_the_best_beats_it_by_3_db(gains: dict[str, float]) -> None:
    assert max(gains.values()) >= 3, gains


def test_the_judge_beats_chance_clearly() -> None:
    facts = finished(DEMO, ("pretrained", "photo-classifier"), ROOT).facts
    assert facts["validation_accuracy"] > 3 / facts["classes"]


def test_the_probe_beats_chance_clearly() -> None:
    """Linear probing of one tokenizer, made now if the demo has not: a few seconds."""
    done = snakemake(ROOT, "results/demo/scores/probes/cq-k16384/manifest.json", "--config", "scale=demo")
    assert done.returncode == 0, done.stderr[-2000:]
    from vqbench.artifacts import read_json

    scores = read_json(finished(DEMO, ("probe", "cq-k16384"), ROOT).file("scores.json"))["metrics"]
    values = [m["value"] for m in scores.values()]
    assert values and min(values) > 2 * 100 / 8


@pytest.mark.parametrize("name", TOKENIZERS)
def test_every_term_of_the_recipe_was_active(name: str) -> None:
    """The log's last third shows each weighted term non-zero: GAN, LeCam, adaptive weight."""
    spec = DEMO.tokenizers[name].training
    assert spec.discriminator
    with finished(DEMO, ("tokenizer", name), ROOT).file("losses.csv").open() as file:
        rows = list(csv.DictReader(file))
    last = rows[len(rows) * 2 // 3 :]
    wanted = {k for k, w in spec.weights.items() if w} | {"discriminator"}
    wanted |= {"lecam"} if spec.discriminator.lecam_weight else set()
    wanted |= {"adaptive_weight"} if spec.discriminator.adaptive else set()
    for term in wanted:
        assert all(float(row[term]) != 0 for row in last), term


def test_generators_learned_more_than_the_frequency_of_codes() -> None:
    """Cross-entropy falls well below that of a uniform guess."""
    for name in ("cq-b-k16384", "cq-l-k16384", "cq-h-k16384", "cq-l-k65536"):
        spec = DEMO.generators[name]
        with finished(DEMO, ("generator", name), ROOT).file("losses.csv").open() as file:
            values = [float(row["cross_entropy"]) for row in csv.DictReader(file)]
        assert np.mean(values[-50:]) < np.log(spec.tokens.num_codes) - 0.3, name


def test_measured_cells_differ_between_rows() -> None:
    for table, column in (("table6b", "rFID"), ("table6a", "rFID"), ("table2", "FID")):
        with (ROOT / "results" / "demo" / f"{table}.csv").open() as file:
            rows = [r for r in csv.DictReader(file) if r["status"] == "measured"]
        name = next(n for n in rows[0] if n.startswith(f"{column} measured"))
        assert len({r[name] for r in rows}) == len(rows) > 3


def test_tables_figures_and_report_are_there() -> None:
    names = ["table2.csv", "table2.md", "table2.tex", "table6a.csv", "table6b.csv", "report.zip"]
    names += [f"cq/figures/{f}.{kind}" for f in ("fig1", "fig3", "fig4", "losses") for kind in ("pdf", "png")]
    missing = [n for n in names if not (Path(ROOT) / "results" / "demo" / n).is_file()]
    assert not missing, f"{missing}: run `make demo` first"
