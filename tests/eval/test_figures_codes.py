"""What the figures of codes show: usage over epochs, frequencies, active codes, replaced tokens, sheets of samples."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from vqbench.data import to_uint8
from vqbench.eval import plots_codes, plots_replacement, plots_samples, plots_usage
from vqbench.eval.figure_inputs import ABOUT, SHOWS, figure_keys
from vqbench.eval.printed import printed_usage
from vqbench.jobs import finished
from vqbench.papers import Bench, Figure
from vqbench.specs import DatasetSpec
from vqbench.tokenizers.base import build_tokenizer, open_tokenizer

from .synthetic import finish, npy
from .test_figures import bench, finish_inputs, tokenizer_files

__all__ = ["bench"]  # the fixture


def figure(bench: Bench, name: str) -> Figure:
    return bench.figures[f"cq/{name}"]


def test_the_lines_are_the_shares_of_the_file(bench: Bench, tmp_path: Path) -> None:
    finish_inputs(bench, figure(bench, "usage"), tmp_path)
    drawn = plots_usage.plot_curves(plots_usage.open_curves(bench, figure(bench, "usage"), tmp_path))
    (axes,) = drawn.axes
    assert [line.get_label() for line in axes.lines] == ["llamagen-d8", "cq-k16384"]
    assert [list(line.get_xdata()) for line in axes.lines] == [[1, 2]] * 2
    assert [list(line.get_ydata()) for line in axes.lines] == [[5.0, 10.0]] * 2
    assert axes.get_xlabel() == "training epoch"
    by_steps = plots_usage.plot_curves(
        [plots_usage.Curve("a", [1], [0.5], "units"), plots_usage.Curve("b", [1, 2], [0, 0], "training epoch")]
    )
    assert by_steps.axes[0].get_xlabel() == "units or training epoch"


def test_a_training_shorter_than_an_epoch_says_so() -> None:
    drawn = plots_usage.plot_curves([plots_usage.Curve("a", [], [], "training epoch")])
    assert [text.get_text() for text in drawn.axes[0].texts] == ["no epoch was trained to its end"]


def test_frequencies_fall_and_end_where_no_code_is_used(bench: Bench, tmp_path: Path) -> None:
    for run, ids in (("llamagen-d8", [[0, 0, 0, 3]]), ("cq-k16384", [[5, 6, 7, 7]])):
        key, codes = ("tokenizer", run), bench.tokenizers[run].tokens.num_codes
        hits = np.zeros((1, codes), np.int32)
        hits[0, :4] = [2, 1, 0, 0]
        finish(bench, key, tmp_path, tokenizer_files(bench, key) | {"code_epochs.npy": npy(hits)})
        both = np.array([*ids, [9, 9, 9, 9]], np.int32)[:, :, None]  # the second row a mirror image
        finish(bench, ("tokens", f"{run}/photos/train"), tmp_path, {"ids.npy": npy(both)}, facts={"images": 1})
    found = plots_usage.open_frequencies(bench, figure(bench, "frequency"), tmp_path)
    assert found[0].counts[[0, 3, 9]].tolist() == [3, 1, 0] and found[0].counts.sum() == 4
    assert found[0].epochs[:4].tolist() == [1.0, 0.5, 0.0, 0.0], "of two epochs"
    drawn = plots_usage.plot_frequencies(found)
    line = drawn.axes[0].lines[0]
    codes = bench.tokenizers["llamagen-d8"].tokens.num_codes
    assert list(line.get_ydata()) == [0.75 * codes, 0.25 * codes] and line.get_xdata()[-1] == pytest.approx(200 / codes)
    assert f"({200 / codes:.1f}% used)" in line.get_label()
    image = drawn.axes[1].images[0].get_array()
    assert image.shape == (8, 8) and image.ravel()[:2].tolist() == [1.0, 0.5]


def test_pixels_have_each_code_once() -> None:
    square = plots_usage.pixels(np.arange(10))
    assert square.shape == (4, 4) and np.isnan(square).sum() == 6
    assert square[~np.isnan(square)].tolist() == list(range(10))


def test_active_codes_are_those_of_the_training_ids(bench: Bench, tmp_path: Path) -> None:
    finish_inputs(bench, figure(bench, "map"), tmp_path)
    run = "llamagen-d8"
    ids = np.array([[1, 2, 2, 5]], np.int32)[:, :, None]
    finish(bench, ("tokens", f"{run}/photos/train"), tmp_path, {"ids.npy": npy(ids)}, facts={"images": 1})
    maps = plots_codes.open_maps(bench, figure(bench, "map"), tmp_path)
    first = maps[0]
    assert (
        np.flatnonzero(first.active).tolist() == [1, 2, 5] and first.share == 3 / 64 and first.places.shape == (64, 2)
    )
    drawn = plots_codes.plot_maps(maps)
    dots = {c.get_label(): len(c.get_offsets()) for c in drawn.axes[0].collections}
    assert dots == {"inactive": 61, "active": 3}
    assert drawn.axes[0].get_title() == "llamagen-d8\n4.7% of 64 active"


def test_the_embedding_keeps_clusters_apart_and_repeats_itself() -> None:
    rng = np.random.default_rng(0)
    vectors = np.concatenate([rng.normal(0, 0.1, (60, 5)), rng.normal(9, 0.1, (60, 5))]).astype(np.float32)
    places = plots_codes.embedded(vectors)
    assert np.array_equal(places, plots_codes.embedded(vectors))
    centres = places[:60].mean(0), places[60:].mean(0)
    near = np.linalg.norm(places - centres[0], axis=1) < np.linalg.norm(places - centres[1], axis=1)
    assert near[:60].all() and not near[60:].any()


def test_large_codebooks_are_thinned_and_say_so(bench: Bench) -> None:
    shown = plots_codes.Map("lc", np.zeros((4, 2)), np.array([True, True, True, False]), 0.99, 100_000)
    title = plots_codes.plot_maps([shown]).axes[0].get_title()
    assert title == "lc\n99.0% of 100000 active, 4 shown"


def test_each_id_gets_its_mth_nearest_code() -> None:
    """Against NumPy's sort of all distances; with two equal codes each is its own first."""
    book = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    book[7] = book[3]
    ids = np.random.default_rng(0).integers(0, 40, (5, 6, 1)).astype(np.int32)
    ids[0, :2, 0] = 3, 7
    found = plots_replacement.replaced(ids, book, [1, 3, 17])
    assert np.array_equal(found[0], ids)
    for rank, made in zip((3, 17), found[1:], strict=True):
        for old, new in zip(ids.ravel(), made.ravel(), strict=True):
            order = np.argsort(np.linalg.norm(book.numpy() - book.numpy()[old], axis=1), kind="stable")
            assert new == order[rank - 1]


def test_neighbours_far_from_the_origin_are_told_apart() -> None:
    """Where float32's products would leave the order to rounding."""
    book = 100 + 0.01 * torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    ids = np.arange(300).reshape(1, 300, 1)
    (fifth,) = plots_replacement.replaced(ids, book, [5])
    exact = book.double().numpy()
    order = np.argsort(np.square(exact[:, None] - exact).sum(-1), axis=1)
    assert np.array_equal(fifth.ravel(), order[:, 4])


def test_the_first_rank_is_the_reconstruction_and_psnr_is_of_the_protocol(bench: Bench, tmp_path: Path) -> None:
    """Distances and pictures from the figure's data, decoded once more here."""
    spec = figure(bench, "replaced")
    finish_inputs(bench, spec, tmp_path)
    data = plots_replacement.open_replaced(bench, spec, tmp_path)
    assert data.ranks == [1, 2, 3, 4] and len(data.originals) == 16, "1000 / 16384 of 64 codes"
    run = "llamagen-d8"
    model = open_tokenizer(bench.tokenizers[run], finished(bench, ("tokenizer", run), tmp_path))
    ids = np.load(finished(bench, ("tokens", f"{run}/photos/validation"), tmp_path).file("ids.npy"))
    with torch.no_grad():
        images = to_uint8(model.decode_ids(torch.from_numpy(ids.astype(np.int64))))
    order = plots_replacement.spread(16, 64)
    assert np.array_equal(data.pictures[run][0], images[order][:2])
    errors = np.square(images[order].astype(float) - data.originals).mean((1, 2, 3))
    assert data.psnr[run][0] == pytest.approx(np.mean(10 * np.log10(255**2 / errors)))
    drawn = plots_replacement.plot_replaced(data)
    assert [line.get_label() for line in drawn.axes[0].lines] == [run, "cq-k16384"]
    assert list(drawn.axes[0].lines[0].get_ydata()) == data.psnr[run]
    assert [t.get_text() for t in drawn.axes[1].texts] == ["original", "M = 1", "M = 2", "M = 3", "M = 4"] * 2
    assert len(drawn.axes[1].images) == 2 * 2 * 5


def test_neighbours_are_by_the_tokenizers_own_similarity(bench: Bench, tmp_path: Path) -> None:
    """Looked up by cosine: the second nearest by angle, sorted here, where the lengths of codes say nothing."""
    path = tmp_path / "workflow" / "papers" / "cq.yaml"
    paper = yaml.safe_load(path.read_text())
    run = "llamagen-d8"
    paper["tokenizers"][run]["similarity"] = "cosine"
    path.write_text(yaml.safe_dump(paper))
    bench = Bench("demo", tmp_path / "workflow")
    spec = figure(bench, "replaced")
    finish_inputs(bench, spec, tmp_path)
    data = plots_replacement.open_replaced(bench, spec, tmp_path)
    model = open_tokenizer(bench.tokenizers[run], finished(bench, ("tokenizer", run), tmp_path))
    ids = np.load(finished(bench, ("tokens", f"{run}/photos/validation"), tmp_path).file("ids.npy"))
    book = model.quantizer.codebook().double().numpy()
    book = book / np.linalg.norm(book, axis=1, keepdims=True)
    second = np.argsort(-book @ book.T, axis=1)[:, 1]
    order = plots_replacement.spread(16, 64)[:2]
    with torch.no_grad():
        images = to_uint8(model.decode_ids(torch.from_numpy(second[ids[order]])))
    assert np.array_equal(data.pictures[run][1], images)


def test_ranks_are_printed_at_paper_scale_and_shrink_with_the_codebook(bench: Bench) -> None:
    assert plots_replacement.ranks_of(Bench("paper"), ["llamagen-d8", "cq-k131072"]) == [1, 50, 100, 1000]
    assert plots_replacement.ranks_of(Bench("demo"), ["llamagen-d8"]) == [1, 2, 3, 16]
    assert plots_replacement.ranks_of(bench, ["cq-k1024"]) == [1, 2, 3, 16]  # 16 of 1024 codes


def test_sheets_have_classes_or_the_first_samples() -> None:
    two = DatasetSpec(kind="embedded", images=("chelsea", "coffee"), sizes={"train": 4}, classes=2, resolution=4)
    rows = plots_samples.chosen_rows(np.arange(40) % 2, two, 5, {})
    assert rows == [("chelsea", list(range(0, 16, 2))), ("coffee", list(range(1, 17, 2)))]
    one = two.model_copy(update={"classes": 1, "images": ("chelsea",)})
    assert plots_samples.chosen_rows(np.zeros(20, np.int64), one, 2, {}) == [
        ("", list(range(8))),
        ("", list(range(8, 16))),
    ]
    assert plots_samples.chosen_rows(np.zeros(10, np.int64), one, 5, {}) == [("", list(range(8))), ("", [8, 9])]


def test_sheets_show_the_papers_classes_where_all_are_there() -> None:
    many = DatasetSpec(kind="embedded", images=("chelsea",) * 9, sizes={"train": 9}, classes=9, resolution=4)
    labels = np.arange(90) % 9
    found = plots_samples.chosen_rows(labels, many, 2, {7: "Pug", 3: "Arctic Fox"})
    assert found == [("Pug 7", list(range(7, 79, 9))), ("Arctic Fox 3", list(range(3, 75, 9)))]
    assert [name for name, _ in plots_samples.chosen_rows(labels, many, 2, {7: "Pug", 254: "?"})] == [
        "chelsea",
        "chelsea",
    ]
    own = Bench("paper").figures["vqgan_lc/fig6"]
    assert dict(own.classes) == {193: "Australian terrier", 984: "Rapeseed", 992: "Agaric"}


def test_panels_say_what_the_papers_figure_prints() -> None:
    """VQGAN-LC, Fig. 4."""
    paper, own = Bench("paper"), Bench("paper").figures["vqgan_lc/fig4"]
    printed = {
        (series, size): printed_usage(paper, own, series, size)
        for series in ("VQGAN-FC", "VQGAN-EMA", "VQGAN-LC")
        for size in (1024, 16384, 50_000, 100_000)
    }
    assert printed["VQGAN-FC", 16384] == "11.2%" and printed["VQGAN-LC", 100_000] == "99.9%" and all(printed.values())
    assert printed_usage(Bench("demo"), own, "VQGAN-FC", 1024) == ""
    shown = plots_codes.Map("fc", np.zeros((4, 2)), np.array([True] * 4), 0.5, 4, "11.2%")
    assert plots_codes.plot_maps([shown]).axes[0].get_title() == "fc\n50.0% (printed 11.2%) of 4 active"


def test_pictures_are_read_by_their_place(tmp_path: Path) -> None:
    images = np.arange(150, dtype=np.uint8)[:, None, None, None].repeat(3, 3)
    np.savez(file := io.BytesIO(), allow_pickle=False, arr_0=images, arr_1=np.zeros(150))
    (tmp_path / "s.npz").write_bytes(file.getvalue())
    found = plots_samples.picked(tmp_path / "s.npz", [0, 63, 64, 130])
    assert {i: int(image[0, 0, 0]) for i, image in found.items()} == {0: 0, 63: 63, 64: 64, 130: 130}


def test_every_kind_says_how_it_is_read_and_needs_what_it_opens(bench: Bench) -> None:
    assert ABOUT.keys() == SHOWS.keys()
    assert figure_keys(bench, figure(bench, "usage")) == [("tokenizer", "llamagen-d8"), ("tokenizer", "cq-k16384")]
    assert ("tokens", "cq-k1024/photos/train") in figure_keys(bench, figure(bench, "map"))
    needed = figure_keys(bench, figure(bench, "replaced"))
    assert {("tokens", "llamagen-d8/photos/validation"), ("dataset", "photos")} < set(needed)
    assert build_tokenizer(bench.tokenizers["cq-k1024"]).tokens.num_codes == 16
