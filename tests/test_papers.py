"""The papers as data: run counts, where every value comes from, what a scale may change."""

from __future__ import annotations

import ast
import csv
import re
import subprocess
import sys
from collections import Counter

import pytest
import yaml
from helpers import ROOT

from vqbench.papers import Bench, bench, scale_of, score_keys
from vqbench.resolve import recipe_of, resolve_training
from vqbench.rooms import families

PAPER, DEMO = bench("paper"), bench("demo")


def count(found: Bench, tables: list[str]) -> Counter[str]:
    keys = [k for t in tables for k in found.table_keys(found.tables[t])]
    return Counter(kind for kind, _ in found.with_upstream(keys))


@pytest.mark.parametrize("found", [PAPER, DEMO], ids=["paper", "demo"])
def test_table_2_needs_2_tokenizers_4_generators_7_sample_sets(found: Bench) -> None:
    kinds = count(found, ["cq/2"])
    assert (kinds["tokenizer"], kinds["generator"], kinds["samples"]) == (2, 4, 7)


def test_the_whole_paper_is_13_tokenizers_7_generators_14_sample_sets() -> None:
    kinds = count(PAPER, [t for t in PAPER.tables if t.startswith("cq/")])
    assert (kinds["tokenizer"], kinds["generator"], kinds["samples"]) == (13, 7, 14)
    specs = [s for n, s in PAPER.tokenizers.items() if n.startswith("cq-")]
    found = sorted((s.resolution, s.tokens.num_codes, s.tokens.num_tokens) for s in specs)
    assert found == [(256, 1024, 256), (256, 16384, 256), (256, 16384, 512), (256, 65536, 256), (256, 131072, 256),
                     (512, 16384, 256)]  # fmt: skip
    assert all(s.tokens.code_dim == s.tokens.grid**2 and s.downsample == 16 for s in specs)


def test_a_scale_changes_sizes_not_the_shape() -> None:
    def shape(found: Bench) -> set[tuple[str, str]]:
        keys = [k for t in found.tables.values() for k in found.table_keys(t)]
        runs = ("tokenizer", "generator", "samples", "sample-scores")
        return {k for k in found.with_upstream(keys) if k[0] in runs}

    assert shape(PAPER) == shape(DEMO)


def test_demo_codes_keep_64_dimensions() -> None:
    assert all(s.tokens.code_dim >= 64 for s in DEMO.tokenizers.values() if s.tokens.layout == "channel")


@pytest.mark.parametrize("name", DEMO.tokenizers)
def test_every_term_of_a_recipe_is_active_for_the_last_third_of_the_demo(name: str) -> None:
    adversary = DEMO.tokenizers[name].training.discriminator
    printed = PAPER.tokenizers[name].training
    training = DEMO.tokenizers[name].training
    assert adversary is not None and adversary.start_step <= training.steps * 2 / 3
    assert set(training.weights) == set(printed.weights)
    assert bool(training.ema_decay) == bool(printed.ema_decay)
    assert printed.discriminator is not None
    assert bool(adversary.lecam_weight) == bool(printed.discriminator.lecam_weight)
    assert adversary.adaptive == printed.discriminator.adaptive and adversary.name == printed.discriminator.name


@pytest.mark.parametrize("path", sorted((ROOT / "workflow" / "recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_value_says_where_it_comes_from(path: object) -> None:
    from pathlib import Path

    source = re.compile(
        r"#.*(ours|Sec\.|Eq\.|App\.|\.py|\.sh|\.yaml|github|[\w-]+/[\w-]+|as above|MaskGIT|the paper prints)"
    )
    for number, line in enumerate(Path(str(path)).read_text().splitlines(), 1):
        if re.match(r"\s+[\w_]+:\s*\S", line) and not line.lstrip().startswith(("#", "base:")):
            value = line.split(":", 1)[1].split("#")[0].strip()
            assert not value or source.search(line), f"{path}:{number}: {line}"


@pytest.mark.parametrize(("family", "lr"), [("dit", 1e-4), ("sit", 1e-4), ("ldm", 4.5e-5)])
def test_released_code_trains_as_long_and_as_fast_as_it_says(family: str, lr: float) -> None:
    """1,400 epochs where the paper prints 400,000 steps: one way to say it replaces the other."""
    printed = PAPER.generators[f"{family}-lc-k100000"].training
    recipe = recipe_of(PAPER.recipes, f"{family}/released-code", "test")
    training = resolve_training(recipe, 1_281_167, "test")
    assert training["optimizer"]["lr"] == lr and printed.optimizer.lr == 4.5e-4
    epochs = 100 if family == "ldm" else 1400
    assert training["steps"] == round(epochs * 1_281_167 / training["batch_size"])
    assert family == "ldm" or printed.steps == 400_000


def test_released_code_s_other_settings() -> None:
    """zh460045050/VQGAN-LC: LDM's AdamW and unscaled latents, GPT's classes that are never left out."""
    ldm = recipe_of(PAPER.recipes, "ldm/released-code", "test")
    assert (ldm["optimizer"]["name"], ldm["optimizer"]["weight_decay"]) == ("adamw", 0.01)
    assert ldm["options"] == {"attention": [1], "scale": "none"}
    assert recipe_of(PAPER.recipes, "gpt/released-code", "test")["class_drop"] == 0.0


def test_no_class_is_dropped_where_there_is_one_alone() -> None:
    """What a generator learned without its class could never be asked for."""
    for bench_ in (PAPER, DEMO):
        drops = {spec.num_classes == 1: set() for spec in bench_.generators.values()}
        for spec in bench_.generators.values():
            drops[spec.num_classes == 1].add(spec.training.class_drop)
        assert drops == {True: {0.0}, False: {0.1}}


def test_similarity_is_cosine_of_plain_vqgan_alone() -> None:
    """VQGAN-LC Sec. 3.1; its code looks all others up by Euclidean distance."""
    own = {name: spec.options["similarity"] for name, spec in PAPER.tokenizers.items() if "similarity" in spec.options}
    assert {name for name, how in own.items() if how == "cosine"} == {n for n in own if "vqgan-cos" in n}
    assert sum("fc-k" in name or "ema-k" in name for name in own) == 10


OURS = {f"VQGAN-LC/with {name}/three channels guided" for name in ("SiT-XL", "DiT-XL")}  # the rows that no paper prints


@pytest.mark.parametrize(("paper", "count", "tables", "ours"), [("cq", 250, 8, set()), ("vqgan_lc", 400, 10, OURS)])
def test_every_printed_cell_has_its_table_and_column(paper: str, count: int, tables: int, ours: set[str]) -> None:
    with (ROOT / "workflow" / "papers" / "reported.csv").open() as file:
        cells = [row for row in csv.DictReader(file) if row["paper"] == paper and not row["table"].startswith("fig")]
    own = [table for table in PAPER.tables.values() if table.paper == paper]
    assert len(cells) > count and len(own) == tables
    for cell in cells:
        table = PAPER.tables[f"{paper}/{cell['table']}"]
        assert cell["col"] in table.columns, f"Table {cell['table']} has no column {cell['col']}"
    rows = {(table.id, row.label) for table in own for row in table.rows}
    assert {label for _, label in rows - {(c["table"], c["row"]) for c in cells}} == ours


def test_vqgan_lcs_runs_are_those_of_the_paper_each_once() -> None:
    """../shared/recipes.md counts 36 tokenizers, 28 generators, 3 classifiers, 10 k-means and 4 feature files."""
    tables = [table for table in PAPER.tables.values() if table.paper == "vqgan_lc"]
    keys = PAPER.with_upstream([key for table in tables for key in PAPER.table_keys(table)])
    keys += PAPER.with_upstream([PAPER.own_scores("classifier", name)[0] for name in PAPER.classifiers])
    counts = Counter(kind for kind, _ in dict.fromkeys(keys))
    assert {k: counts[k] for k in ("tokenizer", "generator", "samples", "classifier", "features")} == {
        "tokenizer": 36, "generator": 28, "samples": 30, "classifier": 3, "features": 4,
    }, "two generators are sampled twice, guided on all channels and on three"  # fmt: skip
    methods = Counter(spec.method for spec in PAPER.codebooks.values())
    assert methods["kmeans"] + methods["kmeans-per-class"] == 10 and counts["codebook"] == len(PAPER.codebooks) == 12


def test_a_path_decides_its_scale() -> None:
    assert scale_of("results/table2.csv") == "paper"
    assert scale_of("results/cq/figures/fig4.pdf") == "paper"
    assert scale_of("results/demo/table2.csv") == "demo"
    assert scale_of("results/demo/cq/figures/fig4.pdf") == "demo"


def test_reading_the_papers_needs_neither_torch_nor_pandas() -> None:
    code = (
        "import sys; from vqbench.papers import bench, score_keys; from vqbench.eval.figure_inputs import figure_keys\n"
        "b = bench('paper'); [b.digest(k) for k in b.with_upstream(score_keys(b))]\n"
        "[figure_keys(b, f) for f in b.figures.values()]\n"
        "print([m for m in ('torch', 'pandas', 'matplotlib', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


ROOM = re.compile(r"vqbench\.(tokenizers|generators|eval)\b")


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("vqbench", {"tokenizers", "generators", "eval"}),
        ("tokenizers", {"generators", "eval"}),
        ("generators", {"eval"}),
    ],
)
def test_imports_flow_one_way(folder: str, forbidden: set[str]) -> None:
    """data -> tokenizers -> generators -> eval. The library imports no room when it is loaded; verbs do when called."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        if folder == "vqbench" and path.relative_to(ROOT / folder).parts[0] in {"tokenizers", "generators", "eval"}:
            continue
        for node in ast.parse(path.read_text()).body:
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [a.name for a in node.names] if isinstance(node, ast.Import) else []
            rooms = {m.group(1) for n in names if (m := ROOM.match(n))}
            assert not rooms & forbidden, f"{path} imports {rooms & forbidden}"


def test_rooms_do_not_shadow_libraries() -> None:
    for room in ("tokenizers", "generators", "eval"):
        assert not (ROOT / room / "__init__.py").exists()
        assert not {p.stem for p in (ROOT / room).glob("*.py")} & set(sys.stdlib_module_names)


def test_families_are_found_by_file() -> None:
    assert families("tokenizers") == ["channel", "large_codebook", "vq"]
    assert families("generators") == ["dit", "gpt", "ldm", "maskgit", "sit"]


def test_environment_yml_is_python_pip_and_the_lock() -> None:
    found = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, inner = found["dependencies"]
    assert python.startswith("python=3.1") and pip == "pip" and inner == {"pip": ["-r requirements.lock"]}


def test_the_lock_pins_with_hashes_and_names_no_index() -> None:
    text = (ROOT / "requirements.lock").read_text()
    pins = re.findall(r"^([a-z0-9._-]+)==\S+", text, flags=re.M)
    for name in ("torch", "torchvision", "torch-fidelity", "clean-fid", "lpips", "scikit-image", "pandas", "snakemake",
                 "open-clip-torch", "matplotlib"):  # fmt: skip
        assert name in pins
    assert "://" not in text and "index" not in text
    assert text.count("--hash=sha256:") >= len(pins)


def test_every_run_has_its_scores() -> None:
    names = {name for kind, name in score_keys(PAPER) if kind == "sample-scores"}
    assert names == set(PAPER.samples)
    probed = {name for kind, name in score_keys(PAPER) if kind == "probe"}
    assert probed == set(PAPER.tokenizers)
