"""Figures: PDF and PNG of every kind from finished artifacts, the same bytes each time, never an empty panel."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from vqbench.data import open_images
from vqbench.errors import ArtifactError, SpecError
from vqbench.eval import figure_style, figures, plots_images, plots_losses, plots_scores
from vqbench.eval.figure_inputs import figure_keys
from vqbench.papers import Bench, Figure, Key
from vqbench.seeds import numpy_rng, torch_rng
from vqbench.tokenizers.base import build_tokenizer

from .synthetic import CODE, finish, finish_scores, losses_csv, npy, write_workflow

LABELS = {"usage": "usage", "rfid": "rFID"}
KINDS = ("fig1", "reconstructions", "fig3", "fig4", "losses", "usage", "frequency", "map", "replaced")


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr("vqbench.graph.code_digest", lambda roots: CODE)
    monkeypatch.setattr(figure_style, "DPI", 60)
    return Bench("demo", write_workflow(tmp_path / "workflow"))


def finish_inputs(bench: Bench, figure: Figure, base: Path) -> None:
    """Publish what a figure is drawn from."""
    finish_scores(bench, base)
    for key in figure_keys(bench, figure):
        if key[0] != "tokenizer-scores":
            finish(bench, key, base, FILES[key[0]](bench, key), facts={"images": 16})


def tokenizer_files(bench: Bench, key: Key) -> dict[str, bytes]:
    model = build_tokenizer(bench.tokenizers[key[1]])
    rng = torch_rng(0, *key)
    tensors = {n: v.new_empty(v.shape).normal_(generator=rng) if v.is_floating_point() else v.contiguous()
               for n, v in model.state_dict().items()}  # fmt: skip
    log = losses_csv({"l2": 0.3, "codebook": 0.02}, adversarial_from=20)
    usage = b"epoch,step,used,share\n1,10,3,0.05\n2,20,6,0.1\n"
    hits = numpy_rng(0, *key).integers(0, 3, (1, model.tokens.num_codes)).astype(np.int32)
    return {"model.safetensors": save(tensors), "losses.csv": log, "usage.csv": usage, "code_epochs.npy": npy(hits)}


def token_files(bench: Bench, key: Key) -> dict[str, bytes]:
    tokens = bench.tokenizers[key[1].split("/")[0]].tokens
    ids = numpy_rng(0, *key).integers(0, tokens.num_codes // 2, (16, tokens.num_tokens, 1)).astype(np.int32)
    return {"ids.npy": npy(ids)}


def reconstruction_files(bench: Bench, key: Key) -> dict[str, bytes]:
    images = open_images(bench.datasets[key[1].split("/")[1]], "validation").batch(0, 16)
    noise = numpy_rng(0, *key).integers(0, 20, images.shape)
    return {"images.npy": npy(np.clip(images.astype(int) + noise, 0, 255).astype(np.uint8))}


def sample_files(bench: Bench, key: Key) -> dict[str, bytes]:
    images = numpy_rng(0, *key).integers(0, 256, (32, 32, 32, 3), dtype=np.uint8)
    np.savez(file := io.BytesIO(), allow_pickle=False, arr_0=images, arr_1=np.arange(32) % 2)
    return {"samples.npz": file.getvalue()}


FILES: dict[str, Callable[[Bench, Key], dict[str, bytes]]] = {
    "tokenizer": tokenizer_files,
    "reconstruction": reconstruction_files,
    "samples": sample_files,
    "tokens": token_files,
    "dataset": lambda bench, key: {"validation.json": b"{}"},
    "generator": lambda bench, key: {"losses.csv": losses_csv({"mask": 6.0})},
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_drawn_the_same_each_time(bench: Bench, tmp_path: Path, name: str) -> None:
    figure = bench.figures[f"cq/{name}"]
    finish_inputs(bench, figure, tmp_path)
    pdf = tmp_path / bench.figure_path(figure)
    png = pdf.with_suffix(".png")
    figures.draw(bench, figure, tmp_path)
    first = pdf.read_bytes(), png.read_bytes()
    figures.draw(bench, figure, tmp_path)
    assert (pdf.read_bytes(), png.read_bytes()) == first
    assert first[0].startswith(b"%PDF") and b"CreationDate" not in first[0]
    with Image.open(png) as image:
        pixels = np.asarray(image.convert("L"))
        assert image.width == round(figure_style.TEXT_WIDTH * 60)
    assert (pixels < 128).mean() > 0.005, "the page is blank"
    assert all((side > 200).all() for side in (pixels[0], pixels[-1], pixels[:, 0])), "something is cut off at the rim"
    assert [p.name for p in sorted(pdf.parent.iterdir())] == [pdf.name, png.name]


@pytest.mark.parametrize("name", KINDS)
def test_nothing_is_drawn_from_missing_inputs(bench: Bench, tmp_path: Path, name: str) -> None:
    with pytest.raises(ArtifactError):
        figures.draw(bench, bench.figures[f"cq/{name}"], tmp_path)
    assert not (tmp_path / bench.figure_path(bench.figures[f"cq/{name}"])).exists()


def test_inputs_are_the_steps_that_a_kind_needs(bench: Bench) -> None:
    assert figure_keys(bench, bench.figures["cq/losses"]) == [
        ("tokenizer", "llamagen-d8"),
        ("generator", "cq-l-k16384"),
    ]
    assert ("dataset", "photos") in figure_keys(bench, bench.figures["cq/reconstructions"])
    drawn = {bench.figures[f"cq/{name}"].kind for name in KINDS}
    assert set(figures.KINDS) == drawn | {"downstream"}  # tests/eval/test_columns.py


def test_unknown_kinds_and_runs_are_refused_with_the_nearest(bench: Bench) -> None:
    with pytest.raises(SpecError, match="unknown kind 'sample'; did you mean 'samples'"):
        figure_keys(bench, Figure("cq", "x", "", "sample", {}, ()))
    with pytest.raises(SpecError, match=r"cannot show 'llamagen-d9'; did you mean 'llamagen-d[84]'"):
        figure_keys(bench, Figure("cq", "x", "", "codebook", {"tokenizers": ("llamagen-d9",)}, ()))
    with pytest.raises(SpecError, match="cannot show 'llamagen-d8'"):
        figure_keys(bench, Figure("cq", "x", "", "samples", {"samples": ("llamagen-d8",)}, ()))


def test_reading_a_figures_inputs_loads_no_heavy_library() -> None:
    code = "import sys, vqbench.eval.figure_inputs; print({'torch', 'pandas', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def point(series: str, dim: int, codes: int, **measured: float) -> plots_scores.Point:
    """One tokenizer's place in the first figure."""
    return plots_scores.Point(series, dim, codes, measured, {})


def test_panels_show_the_runs_that_differ_in_one_size_alone() -> None:
    points = [point("spatial", d, 256, usage=d, rfid=1.0) for d in (4, 8)]
    points += [point("channel", 64, k, usage=100.0, rfid=2.0) for k in (64, 256)]
    drawn = plots_scores.plot_points((points, LABELS))
    by_dim, by_size = drawn.axes[0], drawn.axes[1]
    assert {line.get_label(): list(line.get_xdata()) for line in by_dim.lines} == {"spatial": [4, 8], "channel": [64]}
    assert {line.get_label(): list(line.get_xdata()) for line in by_size.lines} == {"channel": [64, 256]}


def test_a_size_that_all_share_has_no_panels() -> None:
    drawn = plots_scores.plot_points(([point("fc", 8, k, usage=50.0, rfid=1.0) for k in (64, 256)], LABELS))
    assert [axes.get_xlabel() for axes in drawn.axes] == ["", "codebook size K"]
    drawn = plots_scores.plot_points(([point("fc", 8, 64, usage=50.0, rfid=1.0)], LABELS))
    assert [axes.get_xlabel() for axes in drawn.axes] == ["", "token dimension"]


def test_a_panel_without_data_says_so() -> None:
    drawn = plots_scores.plot_points(([point("spatial", d, 256, usage=90.0) for d in (4, 8)], LABELS))
    words = [[text.get_text() for text in axes.texts] for axes in drawn.axes]
    assert words == [[], ["not measured"]], "and no panels over a codebook size that all share"


def test_printed_values_are_those_of_the_tokenizer_also_in_rows_of_samples() -> None:
    """VQGAN-LC, Fig. 1 (a): Table 1 prints rFID in rows of LDM's samples, Table 2 utilization of the training images."""
    paper = Bench("paper")
    figure = paper.figures["vqgan_lc/fig1a"]
    assert plots_scores.printed_values(paper, figure, "fc-k1024") == {"rfid": 4.82, "usage": 100.0}  # Fig. 4's
    assert plots_scores.printed_values(paper, figure, "ema-k50000") == {"rfid": 3.88, "usage": 40.2}
    assert plots_scores.printed_values(paper, figure, "lc-k100000") == {"rfid": 2.62, "usage": 99.9}
    assert plots_scores.printed_values(Bench("demo"), figure, "lc-k100000") == {}
    spatial = plots_scores.printed_values(paper, paper.figures["cq/fig1"], "llamagen-d8")
    assert spatial == {"rfid": 2.19, "usage": 97.0}, "where usage is that of the validation images"


def test_psnr_labels() -> None:
    black, one = np.zeros((4, 4, 3), np.uint8), np.ones((4, 4, 3), np.uint8)
    assert plots_images.psnr_text(black, black) == "exact"
    assert plots_images.psnr_text(black, one) == f"{20 * np.log10(255):.2f} dB"


def test_codes_of_a_raster_layout_are_said_to_be_no_maps() -> None:
    drawn = plots_images.plot_codes([plots_images.Codes("llamagen-d8", [], None)])
    assert [text.get_text() for text in drawn.axes[0].texts] == ["the codes of a raster layout are no maps"]


def test_terms_of_both_signs_get_a_linear_panel() -> None:
    frame = pd.read_csv(io.BytesIO(losses_csv({"l2": 0.3}, adversarial_from=20)))
    frame["codebook"] = 0.0
    drawn = plots_losses.plot_logs([plots_losses.Log("run", frame, 20)])
    assert [axes.get_yscale() for axes in drawn.axes] == ["log", "linear"]
    assert "adversarial" in drawn.axes[1].get_legend_handles_labels()[1]
    assert all("discriminator starts" in axes.get_legend_handles_labels()[1] for axes in drawn.axes)


def test_a_log_without_terms_says_so() -> None:
    drawn = plots_losses.plot_logs([plots_losses.Log("run", pd.DataFrame({"step": [0], "lr": [1.0]}), None)])
    assert [text.get_text() for text in drawn.axes[0].texts] == ["not measured"]


@given(st.integers(1, 500), st.integers(1, 40))
def test_spread_indices_are_valid_and_distinct(length: int, count: int) -> None:
    chosen = plots_images.spread(length, count)
    assert len(set(chosen)) == len(chosen) == min(length, count) and 0 <= min(chosen) <= max(chosen) < length


@given(st.text(alphabet="ab1-", min_size=1, max_size=60))
def test_wrapping_a_name_loses_nothing(name: str) -> None:
    assert plots_images.wrapped(name).replace("\n", "") == name
