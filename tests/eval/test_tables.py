"""Tables: every printed row, printed beside measured, whole or partial, and the same bytes each time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqbench.errors import ArtifactError, SpecError
from vqbench.eval.facts import count_text, value_text
from vqbench.eval.printed import printed_table, reported
from vqbench.eval.scoreboard import write_scores
from vqbench.eval.table_formats import to_markdown
from vqbench.eval.tables import build_table, check_tables, write_table
from vqbench.papers import Bench

from .synthetic import CODE, DEMO, PAPER, fail, finish, finish_scores, scores_json, write_workflow

SAMPLES = ("sample-scores", "cq-l-k16384-s10")
MEASURED_FID = "FID measured [demo-judge]"


@pytest.fixture
def workflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("vqbench.graph.code_digest", lambda roots: CODE)
    return write_workflow(tmp_path / "workflow")


@pytest.fixture
def bench(workflow: Path) -> Bench:
    return Bench("demo", workflow)


@pytest.fixture
def paper(workflow: Path) -> Bench:
    return Bench("paper", workflow)


@pytest.fixture
def scored(bench: Bench, tmp_path: Path) -> Iterator[Path]:
    finish_scores(bench, tmp_path)
    yield tmp_path


def row(frame: pd.DataFrame, label: str) -> dict[str, str]:
    """One row of a table as a dict."""
    return dict(frame.set_index("row").loc[label])


def test_every_printed_row_stands_in_printed_order_with_both_values(bench: Bench, paper: Bench, scored: Path) -> None:
    frame = build_table(bench, bench.tables["cq/2"], scored, paper=paper)
    assert list(frame["row"]) == list(reported()["cq", "2"].rows)
    columns = list(frame.columns)
    assert columns[columns.index("FID printed") + 1] == MEASURED_FID
    cited, ours = row(frame, "BigGAN"), row(frame, "Ours-L/steps=10")
    assert (cited["FID printed"], cited[MEASURED_FID], cited["status"]) == ("6.95", "", "reported_only")
    value = json.loads(next(scored.glob("results/demo/store/sample-scores/*s10/*/scores.json")).read_text())
    expected = value["metrics"]["fid[demo-judge]"]["value"]
    assert ours["FID printed"] == "2.46" and ours[MEASURED_FID] == f"{expected:.2f}"
    assert (ours["status"], ours["N"], ours["#Step measured"]) == ("measured", "32", "10")
    assert ours["manifest"] == bench.manifest(SAMPLES) and (scored / ours["manifest"]).is_file()
    assert ours["protocol"].startswith("demo ")


def test_a_cell_carries_its_interval(bench: Bench, paper: Bench, scored: Path) -> None:
    frame = build_table(bench, bench.tables["cq/7"], scored, paper=paper)
    line = frame[frame["status"] == "measured"].iloc[0]
    value, interval = float(line[MEASURED_FID]), line["FID 95%"]
    low, high = (float(part) for part in interval.strip("[]").split(", "))
    assert low == pytest.approx(0.9 * value, abs=0.01) and high == pytest.approx(1.1 * value, abs=0.01)
    markdown = to_markdown(frame, bench.tables["cq/7"], "", scored, scored)
    assert f"{line[MEASURED_FID]} {interval}" in markdown and "FID 95%" not in markdown


def test_a_column_that_is_only_printed_has_no_measured_twin(bench: Bench, paper: Bench, scored: Path) -> None:
    frame = build_table(bench, bench.tables["cq/2"], scored, paper=paper)
    assert "Type printed" in frame and not any(str(c).startswith("Type measured") for c in frame)


def test_cells_printed_twice_with_different_numbers_keep_both(bench: Bench, paper: Bench, scored: Path) -> None:
    second = build_table(bench, bench.tables["cq/2"], scored, paper=paper)
    seventh = build_table(bench, bench.tables["cq/7"], scored, paper=paper)
    assert "IS also printed as 302.4 in Table 7" in row(second, "Ours-L/steps=10")["notes"]
    assert "FID also printed as 2.01 in Table 7" in row(second, "Ours-L*/steps=64")["notes"]
    assert "IS also printed as 302.5 in Table 2" in row(seventh, "634M/codebook=16384/steps=10")["notes"]
    assert "FID" not in row(second, "Ours-L/steps=10")["notes"], "2.46 is printed in both tables"
    fifth = build_table(bench, bench.tables["cq/5"], scored, paper=paper)
    assert "also printed" not in row(fifth, "LlamaGen/dim=8")["notes"], "MS-COCO's rFID is another quantity"


def test_out_of_domain_cells_come_from_their_own_scores(bench: Bench, paper: Bench, scored: Path) -> None:
    line = row(build_table(bench, bench.tables["cq/5"], scored, paper=paper), "LlamaGen/dim=8")
    assert line["rFID(ImageNet) measured [demo-judge]"] != line["rFID(MS-COCO) measured [demo-judge]"]
    assert line["manifest"].split() == [
        bench.manifest(("tokenizer-scores", f"llamagen-d8/{name}")) for name in ("photos", "photos-ood")
    ]


def test_facts_are_those_of_the_run_at_this_scale(bench: Bench, paper: Bench, scored: Path) -> None:
    line = row(build_table(bench, bench.tables["cq/1"], scored, paper=paper), "Ours-L")
    assert line["#layers printed"] == "32" and line["#layers measured"] == "2"
    assert line["MLP dim printed"] == "5120" and line["MLP dim measured"] == "128"
    assert line["#Para. printed"] == "634M" and line["#Para. measured"].endswith("K")
    assert "generator layers 32 -> 2" in line["scale"] and "tokenizer num_codes 16384 -> 64" in line["scale"]


def test_not_yet_rows_say_why(bench: Bench, paper: Bench, scored: Path) -> None:
    line = row(build_table(bench, bench.tables["cq/4"], scored, paper=paper), "Ours-L/steps=10")
    assert line["status"] == "not yet: text conditions come later" and line["FID printed"] != ""


def test_missing_scores_are_named_with_the_command(bench: Bench, paper: Bench, tmp_path: Path) -> None:
    finish_scores(bench, tmp_path, only="s64")
    with pytest.raises(
        ArtifactError, match=r"sample-scores/cq-l-k16384-s10: missing.*snakemake results/demo/table2\.csv"
    ):
        write_table(bench, bench.tables["cq/2"], tmp_path, paper=paper)
    assert not (tmp_path / "results/demo/table2.csv").exists()


def test_states_of_unfinished_rows(bench: Bench, paper: Bench, tmp_path: Path) -> None:
    table = bench.tables["cq/2"]
    finish_scores(bench, tmp_path, only="s64")

    def states() -> list[str]:
        frame = build_table(bench, table, tmp_path, partial=True, paper=paper)
        return [row(frame, label)["status"] for label in ("Ours-L/steps=10", "Ours-L*/steps=64")]

    assert states() == ["missing", "measured"]
    fail(bench, ("generator", "cq-l-k16384"), tmp_path, "loss 'mask' is nan at step 3")
    assert states() == ["failed: generator/cq-l-k16384: loss 'mask' is nan at step 3", "measured"]


def test_damaged_scores_are_said_and_unpublished(bench: Bench, paper: Bench, scored: Path) -> None:
    manifest = scored / bench.manifest(("sample-scores", "cq-l-k16384-s64"))
    scores = next(scored.glob("results/demo/store/sample-scores/cq-l-k16384-s64/*/scores.json"))
    scores.write_bytes(scores.read_bytes() + b" ")

    def state() -> str:
        frame = build_table(bench, bench.tables["cq/2"], scored, partial=True, paper=paper)
        return row(frame, "Ours-L*/steps=64")["status"]

    damaged = state()
    assert damaged.startswith("failed: results/demo/store/sample-scores/cq-l-k16384-s64/")
    assert "is made again" in damaged and str(scored) not in damaged
    assert not manifest.exists() and state() == "missing"


def test_scores_of_another_spec_are_stale(workflow: Path, bench: Bench, paper: Bench, scored: Path) -> None:
    scale = workflow / "scales/demo.yaml"
    scale.write_text(scale.read_text().replace("count: 32", "count: 48"))
    changed = Bench("demo", workflow)
    frame = build_table(changed, changed.tables["cq/2"], scored, partial=True, paper=paper)
    assert row(frame, "Ours-L/steps=10")["status"] == "stale" and row(frame, "Ours-L/steps=10")[MEASURED_FID] == ""


def test_mixed_protocols_are_refused_with_the_cells_named(bench: Bench, paper: Bench, scored: Path) -> None:
    other = bench.protocol | {"batch": bench.protocol["batch"] + 1}
    finish_scores(bench, scored, only="s64", protocol=other)
    named = r"mix protocols \(protocol demo [0-9a-f]{12}: .*'Ours-L/steps=10' FID.*'Ours-L\*/steps=64' FID"
    with pytest.raises(ArtifactError, match=named):
        build_table(bench, bench.tables["cq/2"], scored, partial=True, paper=paper)


def test_a_partial_table_takes_the_stale_ones_place_and_gives_it_back(bench: Bench, paper: Bench, scored: Path) -> None:
    table, folder = bench.tables["cq/2"], scored / "results/demo"
    whole = write_table(bench, table, scored, paper=paper)
    assert check_tables(bench, scored, paper=paper) == [] and whole.is_file()
    (scored / bench.manifest(SAMPLES)).unlink()
    assert check_tables(bench, scored, paper=paper) == [folder / "table2.partial.csv"]
    assert [p.name for p in sorted(folder.glob("table2*"))] == ["table2.partial.csv"]
    finish_scores(bench, scored)
    write_table(bench, table, scored, paper=paper)
    assert [p.name for p in sorted(folder.glob("table2*"))] == ["table2.csv", "table2.md", "table2.tex"]


def test_a_first_failure_leaves_a_partial_table(bench: Bench, paper: Bench, tmp_path: Path) -> None:
    fail(bench, ("tokenizer", "llamagen-d8"), tmp_path, "disk full")
    names = {path.name for path in check_tables(bench, tmp_path, paper=paper)}
    assert names == {"table5.partial.csv", "table6a.partial.csv"}
    text = (tmp_path / "results/demo/table6a.partial.csv").read_text()
    assert "failed: tokenizer/llamagen-d8: disk full" in text


def test_files_are_the_same_bytes_each_time_and_read_back(bench: Bench, paper: Bench, scored: Path) -> None:
    whole = write_table(bench, bench.tables["cq/6a"], scored, paper=paper)
    files = [whole, whole.with_suffix(".md"), whole.with_suffix(".tex")]
    before = [f.read_bytes() for f in files]
    write_table(bench, bench.tables["cq/6a"], scored, paper=paper)
    assert [f.read_bytes() for f in files] == before
    built = build_table(bench, bench.tables["cq/6a"], scored, paper=paper)
    pd.testing.assert_frame_equal(pd.read_csv(whole, dtype=str, keep_default_na=False), built, check_dtype=False)


def test_markdown_and_latex_hold_every_row_and_what_the_scale_replaced(
    bench: Bench, paper: Bench, scored: Path
) -> None:
    whole = write_table(bench, bench.tables["cq/6a"], scored, paper=paper)
    markdown, latex = whole.with_suffix(".md").read_text(), whole.with_suffix(".tex").read_text()
    for label in reported()["cq", "6a"].rows:
        assert label in markdown and label in latex
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert "Scale 'demo': two photographs stand for ImageNet." in markdown and "num_codes 16384 -> 64" in markdown
    assert "](scores/tokenizers/llamagen-d8/photos/manifest.json)" in markdown
    assert (whole.parent / "scores/tokenizers/llamagen-d8/photos/manifest.json").is_file()
    assert r"97.0\%" in latex and r"num\_codes 16384 $\to$ 64" in latex and latex.count("{") == latex.count("}")


def test_a_printed_pipe_does_not_split_a_markdown_cell(bench: Bench, tmp_path: Path) -> None:
    frame = pd.DataFrame({"row": ["A | B"], "manifest": [""], "warnings": [""], "scale": [""]})
    last = to_markdown(frame, bench.tables["cq/1"], "", tmp_path, tmp_path).splitlines()[-1]
    assert r"A \| B" in last


def test_a_warning_stands_once_below_the_table_with_its_rows(bench: Bench, paper: Bench, scored: Path) -> None:
    few, copies = "fid of 32 generated images: 100% too few, take more", "2 of 32 images are copies"
    metrics = {"fid[demo-judge]": (3.0, ""), "is[demo-judge]": (30.0, "")}
    for steps, warnings in ((10, (few,)), (64, (few, copies))):
        found = scores_json(metrics, bench.protocol, warnings=warnings)
        finish(bench, ("sample-scores", f"cq-l-k16384-s{steps}"), scored, {"scores.json": found})
    whole = write_table(bench, bench.tables["cq/2"], scored, paper=paper)
    frame = pd.read_csv(whole, dtype=str, keep_default_na=False)
    both = row(frame, "Ours-L*/steps=64")
    assert row(frame, "Ours-L/steps=10")["warnings"] == few and both["warnings"] == f"{few} | {copies}"
    assert row(frame, "BigGAN")["warnings"] == "" and "copies" not in both["notes"]
    markdown, latex = whole.with_suffix(".md").read_text(), whole.with_suffix(".tex").read_text()
    assert markdown.endswith(
        f"\n\nWarnings:\n\n- {few} (`Ours-L/steps=10`, `Ours-L*/steps=64`)\n- {copies} (`Ours-L*/steps=64`)\n"
    )
    assert (
        r"Warning: fid of 32 generated images: 100\% too few, take more (Ours-L/steps=10, Ours-L*/steps=64)." in latex
    )
    assert latex.count(copies) == markdown.count(copies) == 1 and "warnings |" not in markdown
    without = write_table(bench, bench.tables["cq/6a"], scored, paper=paper)
    assert all("arning" not in without.with_suffix(suffix).read_text() for suffix in (".md", ".tex"))


def test_rows_added_by_a_run_come_last_without_a_printed_value(
    workflow: Path, paper: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = workflow / "papers/cq.yaml"
    path.write_text(path.read_text().replace("cq-k1024:\n", "cq-k1024:\n    tables: [6a]\n    label: Mine\n", 1))
    bench = Bench("demo", workflow)
    finish_scores(bench, tmp_path)
    frame = build_table(bench, bench.tables["cq/6a"], tmp_path, paper=paper)
    last = dict(frame.iloc[-1])
    assert (last["row"], last["rFID printed"], last["status"]) == ("Mine", "", "measured")
    assert last["rFID measured [demo-judge]"] != ""


def test_accepted_runs_are_marked(workflow: Path, paper: Bench, scored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Bench("demo", workflow)
    key = ("sample-scores", "cq-l-k16384-s10")
    digest = made.digest(key)
    older = json.loads(scores_json({"fid[demo-judge]": (3.0, "")}, made.protocol))
    del older["warnings"]  # made before scores bore any
    finish(made, key, scored, {"scores.json": json.dumps(older).encode()})
    monkeypatch.setattr("vqbench.graph.code_digest", lambda roots: "1" * 64)
    accepted = Bench("demo", workflow)
    accepted.accepted = {
        "/".join(key): {"digest": digest, "current": Bench("demo", workflow).digest(key), "reason": "why"}
    }
    frame = build_table(accepted, accepted.tables["cq/2"], scored, partial=True, paper=paper)
    assert (
        "accepted under changed code or spec: sample-scores/cq-l-k16384-s10" in row(frame, "Ours-L/steps=10")["notes"]
    )
    assert "IS: is[demo-judge] was not scored, but fid[demo-judge]" in row(frame, "Ours-L/steps=10")["notes"]
    assert row(frame, "Ours-L*/steps=64")["status"] == "stale"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"metric": "rfid", True: "coco-val2017"}, "reads a bare on: as true"),
        ({"fakt": "num_codes"}, "did you mean 'fact'"),
    ],
)
def test_a_column_with_an_unknown_key_is_refused(bench: Bench, source: dict[Any, str], message: str) -> None:
    """When the table is read, not when it is written, which may be weeks later."""
    bench.papers["cq"]["tables"]["5"]["columns"]["rFID(MS-COCO)"] = source
    with pytest.raises(SpecError, match=message):
        _ = bench.tables


def test_an_unknown_fact_is_refused_with_the_nearest(bench: Bench, paper: Bench, scored: Path) -> None:
    bench.papers["cq"]["tables"]["6a"]["columns"]["Token dim"] = {"fact": "code_dims"}
    del bench.__dict__["tables"]
    with pytest.raises(SpecError, match=r"column 'Token dim': unknown fact 'code_dims'; did you mean 'code_dim'"):
        build_table(bench, bench.tables["cq/6a"], scored, paper=paper)


def test_the_paper_scale_has_no_suffix_and_no_replacements(paper: Bench, tmp_path: Path) -> None:
    finish_scores(paper, tmp_path)
    whole = write_table(paper, paper.tables["cq/6a"], tmp_path)
    assert whole == tmp_path / "results/table6a.csv"
    frame = pd.read_csv(whole, dtype=str, keep_default_na=False)
    assert "rFID measured" in frame and set(frame["scale"]) == {"paper"}
    assert "Replaced" not in whole.with_suffix(".md").read_text()


def test_the_scoreboard_holds_every_metric_in_full_precision(bench: Bench, scored: Path) -> None:
    keys = [SAMPLES, ("tokenizer-scores", "llamagen-d8/photos-ood")]
    path = write_scores(bench, scored, keys)
    first = path.read_bytes()
    assert path == scored / "results/demo/scores.csv" and write_scores(bench, scored, keys[::-1]).read_bytes() == first
    frame = pd.read_csv(path).set_index(["run", "metric"])
    stored = json.loads(next(scored.glob("results/demo/store/sample-scores/*s10/*/scores.json")).read_text())["metrics"]
    assert frame.loc[("cq-l-k16384-s10", "fid[demo-judge]"), "value"] == stored["fid[demo-judge]"]["value"]
    assert len(frame) == 7 and set(frame["dataset"]) == {"photos", "photos-ood"}
    with pytest.raises(ArtifactError):
        write_scores(bench, scored, [("probe", "llamagen-d8")])


def test_the_synthetic_paper_uses_labels_that_are_printed(bench: Bench) -> None:
    for table in bench.tables.values():
        assert {r.label for r in table.rows} <= set(printed_table(table).rows), table.id
    assert DEMO["roles"] and PAPER["paper"] == "cq"


@given(st.integers(min_value=1, max_value=10**12))
def test_counts_are_within_rounding_of_what_is_written(count: int) -> None:
    text = count_text(count)
    size = {"K": 10**3, "M": 10**6, "B": 10**9}.get(text[-1], 1)
    written = float(text.rstrip("KMB")) * size
    assert abs(written - count) <= (0.05 * size + 0.5 * size * (written >= 10 * size)) * (size > 1)
    assert len(text.rstrip("KMB").split(".")[0]) <= 3 or text.endswith("B")


@given(st.floats(min_value=0, max_value=1000), st.sampled_from(["2.19", "20.9%", "100%", "-", "GAN", "0.675"]))
def test_values_keep_the_digits_that_are_printed(value: float, printed: str) -> None:
    text = value_text("rfid", {"value": value, "unit": ""}, [printed])
    digits = 3 if printed == "0.675" else 2
    if 0 < value < 1:
        assert float(text) == pytest.approx(value, rel=0.006), "three digits that count"
        assert len(text.partition(".")[2]) >= digits
    else:
        assert text == f"{value:.{digits}f}"
    assert value_text("usage", {"value": value, "unit": "%"}, [printed]).endswith("%")
