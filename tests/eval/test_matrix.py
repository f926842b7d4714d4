"""The tokenizer x generator matrix: which pairs, which are runs of the papers, which are short, which cannot be and why."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import ROOT

from vqbench import rooms
from vqbench.clone import WORKFLOW
from vqbench.errors import SpecError
from vqbench.eval.tables import build_table, write_table
from vqbench.papers import Bench, Table, bench
from vqbench.rooms import families
from vqbench.seeds import numpy_rng

from .synthetic import CODE, finish_scores

PAPER, DEMO = bench("paper"), bench("demo")
NAME = "matrix/matrix"
Edit = Callable[[dict[str, Any]], object]


def pairs(found: Bench) -> dict[tuple[str, str], tuple[str, float]]:
    """(tokenizer, partner) -> (sample set, share of the recipe) of all that can be."""
    table = found.tables[NAME]
    crossed = {(row.run["tokenizer"], name): pair for row in table.rows for name, pair in row.crossings.items()}
    return {key: (pair.samples, pair.share) for key, pair in crossed.items() if pair.samples}


def edited(folder: Path, edit: Edit, file: str = "matrix.yaml", scale: str = "demo") -> Bench:
    workflow = Path(shutil.copytree(WORKFLOW, folder / "workflow", dirs_exist_ok=True))
    path = workflow / "papers" / file
    data = yaml.safe_load(path.read_text())
    edit(data)
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return Bench(scale, workflow)


def test_every_kind_of_tokenizer_meets_every_family_of_generators() -> None:
    table, found = PAPER.tables[NAME], pairs(PAPER)
    kinds = {PAPER.tokenizers[row.run["tokenizer"]].family for row in table.rows}
    assert kinds == set(families("tokenizers"))
    made = {(t, PAPER.generators[PAPER.samples[s].generator].family) for (t, _), (s, _) in found.items()}
    assert made == {(row.run["tokenizer"], family) for row in table.rows for family in families("generators")}
    assert all(PAPER.generators[PAPER.samples[s].generator].tokenizer == t for (t, _), (s, _) in found.items())
    assert pairs(DEMO) == found, "a scale changes no run"


def test_a_pair_that_a_paper_trains_is_that_run() -> None:
    found = pairs(PAPER)
    whole = {samples for samples, share in found.values() if share == 1}
    theirs = {f"{g}-{t}-s" for g in ("gpt", "ldm", "dit", "sit") for t in ("fc-k16384", "ema-k16384", "lc-k100000")}
    assert whole == theirs | {"cq-b-k16384-s10"}
    declared = {run for data in PAPER.papers.values() for run in data.get("generators") or {}}
    learned = {(PAPER.generators[run].family, PAPER.generators[run].tokenizer) for run in declared}
    for (tokenizer, _), (samples, share) in found.items():
        generator = PAPER.samples[samples].generator
        assert (generator in declared) == (share == 1)
        assert share == 1 or (PAPER.generators[generator].family, tokenizer) not in learned


@pytest.mark.parametrize("found", [PAPER, DEMO], ids=["paper", "demo"])
def test_a_short_run_is_a_quarter_of_its_recipe_at_every_scale(found: Bench) -> None:
    for family in ("gpt", "ldm", "dit", "sit"):
        short = found.generators[f"{family}-vqgan-k16384-short"].training
        whole = found.generators[f"{family}-fc-k16384"].training
        assert short.steps == round(whole.steps / 4)
        assert short.schedule.warmup_steps == round(whole.schedule.warmup_steps / 4)
        assert short.model_copy(update={"steps": whole.steps, "schedule": whole.schedule}) == whole


def test_its_path_is_its_name() -> None:
    assert PAPER.table_path(PAPER.tables[NAME]) == "results/matrix.csv"
    assert DEMO.table_at("results/demo/matrix.csv") == DEMO.tables[NAME]


# ---- its cells -------------------------------------------------------------------------------------------------------


def test_cells_say_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vqbench.graph.code_digest", lambda roots: CODE)
    found, paper = Bench("demo"), Bench("paper")
    table = found.tables[NAME]
    finish_scores(found, tmp_path)
    frame = build_table(found, table, tmp_path, paper=paper)
    assert set(frame["status"]) == {"measured"} and not [c for c in frame if c.endswith(" printed")]
    names = {"maskgit": "MaskGIT", "gpt": "GPT", "ldm": "LDM", "dit": "DiT", "sit": "SiT"}
    for row, (_, line) in zip(table.rows, frame.iterrows(), strict=True):
        for name, pair in row.crossings.items():
            size = numpy_rng(0, "sample-scores", pair.samples).uniform(1, 9)  # what finish_scores has written
            assert line[f"FID with {names[name]} measured [demo-judge]"] == f"{size:.2f}"
    assert (frame["manifest"].str.split().map(len) == 6).all()
    notes = dict(zip(frame["row"], frame["notes"], strict=True))
    assert notes["Channel-wise"] == (
        "short runs of 75 training steps (25% of the recipe's): FID with GPT, FID with DiT, FID with SiT, "
        "IS with GPT, IS with DiT, IS with SiT; "
        "short runs of 60 training steps (25% of the recipe's): FID with LDM, IS with LDM"
    )
    assert (
        notes["VQGAN-FC"] == "short runs of 75 training steps (25% of the recipe's): FID with MaskGIT, IS with MaskGIT"
    )
    assert (
        "gpt generator layers 24 -> 2" in frame["scale"][0] and "tokenizer num_codes 16384 -> 256" in frame["scale"][0]
    )
    whole = write_table(found, table, tmp_path, paper=paper)
    text = whole.with_suffix(".md").read_text()
    assert whole == tmp_path / "results/demo/matrix.csv" and text.startswith(
        f"# matrix: {table.title}\n\n{table.about}"
    )


def with_family(folder: Path, monkeypatch: pytest.MonkeyPatch, literals: str) -> Table:
    """The matrix with the row of a new tokenizer family, which its own entry asks for."""
    package = folder / "package"
    for room in ("tokenizers", "generators"):
        shutil.copytree(ROOT / room, package / room)
    (package / "tokenizers" / "odd.py").write_text(
        f'{literals}\nOPTIONS = {{"num_codes": 8, "code_dim": 4, "scales": [1, 2]}}\n'
    )
    monkeypatch.setattr(rooms, "PACKAGE", package)
    entry = {"family": "odd", "dataset": "imagenet256", "recipe": "vqgan", "tables": [NAME], "label": "Odd"}
    return edited(folder, lambda data: data["tokenizers"].update(odd=entry), "cq.yaml").tables[NAME]


def test_a_new_tokenizer_gets_its_row_by_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = with_family(tmp_path, monkeypatch, 'LAYOUT = "raster"').rows[-1]
    assert row.label == "Odd" and set(row.crossings) == {"maskgit", "gpt", "ldm", "dit", "sit"}
    assert all(pair.samples and pair.share == 0.25 and not pair.refused for pair in row.crossings.values())


@pytest.mark.parametrize(
    ("literals", "refused", "reason"),
    [
        ("NUM_SLOTS = 2", {"maskgit", "gpt"}, "its num_slots is 2, accepted: [1]; one softmax over K a position"),
        ('LAYOUT = "multiscale"\nKIND = "continuous"', {"maskgit", "gpt"}, "its kind is 'continuous'"),
        ('LAYOUT = "multiscale"', {"ldm", "dit", "sit"}, "its layout is 'multiscale', accepted: ['raster', 'channel']"),
    ],
)
def test_what_the_generator_does_not_accept_stays_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, literals: str, refused: set[str], reason: str
) -> None:
    table = with_family(tmp_path, monkeypatch, literals)
    row = table.rows[-1]
    found = {name for name, pair in row.crossings.items() if pair.refused}
    assert refused <= found
    assert all(row.crossings[name].refused.startswith(reason) and not row.crossings[name].samples for name in refused)


def test_a_refused_cell_is_in_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_family(tmp_path, monkeypatch, "NUM_SLOTS = 2")
    found = Bench("demo", tmp_path / "workflow")
    frame = build_table(found, found.tables[NAME], tmp_path, partial=True, paper=Bench("paper", tmp_path / "workflow"))
    line = dict(frame.iloc[-1])
    cells = {c.split(" measured")[0] for c, text in line.items() if text == "refused"}
    assert cells == {"FID with MaskGIT", "IS with MaskGIT", "FID with GPT", "IS with GPT"}
    assert "FID with GPT: refused: its num_slots is 2, accepted: [1]; one softmax over K a position" in line["notes"]


def test_guidance_without_classes_is_refused_too(tmp_path: Path) -> None:
    """LDM, DiT and SiT are guided; FFHQ has nothing to guide by. GPT is sampled without guidance."""
    row = {"tokenizer": "ffhq-fc-k16384"}
    found = edited(tmp_path, lambda data: data["tables"]["matrix"]["rows"].update(FFHQ=row), scale="paper")
    crossed = found.tables[NAME].rows[-1].crossings
    assert crossed["gpt"].samples and not crossed["gpt"].refused
    assert all("has learned one class alone" in crossed[name].refused for name in ("ldm", "dit", "sit"))


# ---- mistakes ---------------------------------------------------------------------------------------------------------


def partner(**entry: Any) -> Edit:
    return lambda data: data["partners"].update(gpt=entry)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda data: data["tables"]["matrix"]["columns"].update(X={"metric": "fid", "with": "gtp"}),
            r"table 'matrix': column 'X' is with 'gtp'; did you mean 'gpt'",
        ),
        (partner(generator={}), r"partner 'gpt' of tokenizer 'cq-k16384': key 'family' is missing"),
        (partner(generator={"family": "gtp"}), r"unknown family 'gtp' in generators/; did you mean 'gpt'"),
        (partner(generator={"family": "gpt", "layer": 1}), r"unknown key 'layer'; did you mean 'layers'"),
        (
            partner(generator={"family": "gpt"}, sampels={}),
            r"partner 'gpt': unknown key 'sampels'; did you mean 'samples'",
        ),
        (
            partner(generator={"family": "gpt"}, samples={"guidence": 2.0}),
            r"unknown key 'guidence'; did you mean 'guidance'",
        ),
        (
            partner(generator={"family": "gpt", "training": {"shar": 0.5}}),
            r"unknown key 'training\.shar'; did you mean 'share'",
        ),
        (
            lambda data: data["tables"]["matrix"].update(colums={}),
            r"table 'matrix': unknown key 'colums'; did you mean 'columns'",
        ),
        (
            lambda data: data["tables"]["matrix"]["columns"].update(X={"metric": "fid", "wiht": "gpt"}),
            r"table 'matrix', column 'X': unknown key 'wiht'; did you mean 'with'",
        ),
        (
            lambda data: data["tables"]["matrix"]["rows"].update(X={"tokenzier": "fc-k16384"}),
            r"row 'X': unknown key 'tokenzier'; did you mean 'tokenizer'",
        ),
        (partner(generator={"family": "gpt", "training": {"share": 2}}), r"'share' is 2: expected a part"),
        (partner(generator={"family": "gpt", "training": {"share": True}}), r"'share' is True: expected a part"),
        (
            lambda data: data.update(
                tokenizers={"gpt-cq-k16384-short": {"family": "channel", "dataset": "imagenet256"}}
            ),
            r"generator 'gpt-cq-k16384-short': the id is taken by matrix\.yaml",
        ),
    ],
)
def test_a_mistake_is_named_with_its_mend(tmp_path: Path, edit: Edit, message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        edited(tmp_path, edit)
    assert re.match(r"matrix\.yaml: ", str(caught.value))
