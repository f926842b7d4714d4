"""The workflow, really run at a tiny scale and by dry-run: what an edit reaches, what a fault leaves, what a name means."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from helpers import copy_clone, edit, snakemake, vqbench

TARGETS = ["results/tiny/table6b.csv", "cq-b-k16384-s10", "results/tiny/cq/figures/fig4.pdf"]
TINY = ("--config", "scale=tiny")


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which Table 6b, one sample set and one figure were made at the tiny scale."""
    folder = copy_clone(tmp_path_factory.mktemp("ran") / "clone")
    done = snakemake(folder, *TARGETS, *TINY, "--show-failed-logs")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return folder


@pytest.fixture
def edited(ran: Path) -> Iterator[Path]:
    """The same clone; every tracked file that a test edits is put back."""
    watched = [
        p
        for p in ran.rglob("*")
        if p.suffix in {".py", ".yaml", ".smk"} and "results" not in p.parts and not p.is_symlink()
    ]
    before = {p: p.read_bytes() for p in watched}
    yield ran
    for path, content in before.items():
        if not path.exists() or path.read_bytes() != content:
            path.write_bytes(content)


def rules(folder: Path, *targets: str) -> Counter[str]:
    """Rules and counts that a dry run lists."""
    done = snakemake(folder, "-n", *targets, *TINY)
    assert done.returncode == 0, done.stderr[-3000:]
    text = done.stdout + done.stderr
    stats = re.search(r"job +count\n-+ +-+\n(.*?)\ntotal", text, re.S)
    lines = [line.split() for line in stats.group(1).splitlines()] if stats else []
    return Counter({name: int(count) for name, count in lines})


def table(folder: Path, name: str = "table6b.csv") -> list[dict[str, str]]:
    with (folder / "results" / "tiny" / name).open() as file:
        return list(csv.DictReader(file))


# ---- dry runs at paper scale -------------------------------------------------------------------------------------


def test_table_2_at_paper_scale_lists_its_runs_each_with_resources(clone: Path) -> None:
    done = snakemake(clone, "-n", "--profile", "slurm", "results/table2.csv")
    text = done.stdout + done.stderr
    assert done.returncode == 0, text[-3000:]
    counts = dict(re.findall(r"^(train_tokenizer|train_generator|sample|score_samples) +(\d+)$", text, re.M))
    assert counts == {"train_tokenizer": "2", "train_generator": "4", "sample": "7", "score_samples": "7"}
    jobs = re.findall(
        r"^rule (train_tokenizer|train_generator|sample|score_samples):.*?resources: (.*?)$", text, re.M | re.S
    )
    assert len(jobs) == 20
    for name, resources in jobs:
        assert re.search(r"gpu=[1-9]", resources) and "mem_mb=" in resources and "runtime=" in resources, name


def test_all_of_cq_at_paper_scale(clone: Path) -> None:
    done = snakemake(clone, "-n", "--config", "scale=paper", "--", "cq")
    text = done.stdout + done.stderr
    counts = dict(re.findall(r"^(train_tokenizer|train_generator|sample) +(\d+)$", text, re.M))
    assert counts == {"train_tokenizer": "13", "train_generator": "7", "sample": "14"}


def test_all_of_vqgan_lc_at_paper_scale(clone: Path) -> None:
    """../shared/recipes.md counts 36 tokenizers, 28 generators, 3 classifiers, 4 feature files, 10 k-means; here stand beside
    those 10 codebooks one of features drawn at random and one of noise (Table 6), and two more sample sets (Table 4)."""
    done = snakemake(clone, "-n", "--profile", "slurm", "vqgan_lc")
    text = done.stdout + done.stderr
    assert done.returncode == 0, text[-3000:]
    rules = "train_tokenizer|train_generator|train_classifier|sample|features|codebook|paper_table|figure"
    counts = dict(re.findall(rf"^({rules}) +(\d+)$", text, re.M))
    assert {name: int(count) for name, count in counts.items()} == {
        "train_tokenizer": 36, "train_generator": 28, "train_classifier": 3, "sample": 30, "features": 4, "codebook": 12,
        "paper_table": 10, "figure": 12,
    }  # fmt: skip
    runs = re.findall(rf"^rule (?:{rules}):.*?output: (.*?)$", text, re.M | re.S)
    assert len(runs) == len(set(runs)) == 135, "each once"


# ---- what ran ------------------------------------------------------------------------------------------------------


def test_the_table_has_printed_and_measured_cells_that_differ_between_rows(ran: Path) -> None:
    rows = table(ran)
    assert [r["row"] for r in rows] == [f"Ours/codebook={k}" for k in (1024, 16384, 65536, 131072)]
    assert {r["status"] for r in rows} == {"measured"}
    measured = [name for name in rows[0] if name.startswith("rFID measured")]
    assert measured == ["rFID measured [demo-judge]"]
    assert len({r[measured[0]] for r in rows}) == 4
    assert [r["rFID printed"] for r in rows] == ["2.25", "1.64", "1.43", "1.33"]
    for row in rows:
        assert (ran / row["manifest"].split()[0].rstrip(";")).is_file()


def test_nothing_is_to_do_twice_nor_after_a_touch(ran: Path) -> None:
    for path in (ran / "tokenizers" / "channel.py", ran / "eval" / "psnr.py", ran / "vqbench" / "training.py"):
        path.touch()
    assert not rules(ran, *TARGETS)


def test_a_comment_re_runs_nothing(edited: Path) -> None:
    path = edited / "tokenizers" / "channel.py"
    path.write_text("# a remark\n" + path.read_text())
    assert not rules(edited, *TARGETS)


def test_an_edited_metric_re_runs_evaluation_only(edited: Path) -> None:
    path = edited / "eval" / "psnr.py"
    path.write_text(path.read_text() + "\nEDITED = 1\n")
    found = rules(edited, *TARGETS)
    assert found["score_tokenizer"] == 4 and found["table"] == 1
    assert set(found) <= {"score_tokenizer", "table", "figure"}  # a figure writes PSNR beside reconstructions


def test_an_edited_family_re_runs_it_and_what_follows(edited: Path) -> None:
    path = edited / "tokenizers" / "channel.py"
    path.write_text(path.read_text() + "\nEDITED = 1\n")
    found = rules(edited, *TARGETS)
    assert found["train_tokenizer"] == 4 and found["train_generator"] == 1 and found["score_tokenizer"] == 4
    assert "pretrained" not in found and "check_dataset" not in found and "reference" not in found
    path.write_text(path.read_text().replace("\nEDITED = 1\n", ""))
    other = edited / "tokenizers" / "vq.py"
    other.write_text(other.read_text() + "\nEDITED = 1\n")
    assert not rules(edited, *TARGETS), "another family's file reaches nothing here"


def test_a_changed_spec_re_runs_that_run_only(edited: Path) -> None:
    edit(edited / "workflow" / "scales" / "tiny.yaml", "131072: 48", "131072: 50", 1)
    found = rules(edited, *TARGETS)
    assert (found["train_tokenizer"], found["score_tokenizer"], found["table"]) == (1, 1, 1)


def test_accept_keeps_a_run_and_what_follows_and_its_row_says_so(ran: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clone"
    shutil.copytree(ran, folder, symlinks=True)
    path = folder / "tokenizers" / "channel.py"
    path.write_text(path.read_text() + "\nEDITED = 1\n")
    for name in ("cq-k1024", "cq-k16384", "cq-k65536", "cq-k131072"):
        done = vqbench(folder, "accept", f"tokenizer/{name}", "--scale", "tiny", "--reason", "a constant nobody reads")
        assert done.returncode == 0, done.stderr
    assert set(rules(folder, *TARGETS)) <= {"table", "figure"}, (
        "neither the tokenizer nor its tokens, generator, samples"
    )
    assert rules(folder, *TARGETS)["table"] == 1, "the table is written again, to say so"
    done = snakemake(folder, "results/tiny/table6b.csv", *TINY)
    assert done.returncode == 0, done.stderr[-2000:]
    assert all("tokenizer/cq-k" in row["notes"] for row in table(folder))
    # a second edit is not covered by the acceptance of the first
    path.write_text(path.read_text() + "\nEDITED = 2\n")
    assert rules(folder, *TARGETS)["train_tokenizer"] == 4


def test_a_new_tokenizer_is_one_file_and_one_entry(ran: Path, tmp_path: Path) -> None:
    """A toy family dropped into a clone gets its row in Table 6b."""
    folder = tmp_path / "clone"
    shutil.copytree(ran, folder, symlinks=True)
    (folder / "tokenizers" / "patches.py").write_text(PATCHES)
    entry = "{family: patches, dataset: imagenet256, recipe: vqgan, num_codes: 16, tables: [6b], label: Mine}"
    edit(folder / "workflow" / "papers" / "cq.yaml", "tokenizers:\n", f"tokenizers:\n  toy: {entry}\n", 1)
    done = snakemake(folder, "results/tiny/table6b.csv", *TINY, "--show-failed-logs")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stderr.count("rule train_tokenizer:") + done.stdout.count("rule train_tokenizer:") == 1
    row = table(folder)[-1]
    assert row["row"] == "Mine" and row["status"] == "measured" and row["rFID printed"] == ""
    assert float(row["rFID measured [demo-judge]"]) > 0


def test_the_matrix_trains_only_what_no_paper_does(ran: Path, tmp_path: Path) -> None:
    """One tokenizer with two partners: the masked generator of Table 2 is there already, a short GPT is not."""
    folder = tmp_path / "clone"
    shutil.copytree(ran, folder, symlinks=True)
    path = folder / "workflow" / "papers" / "matrix.yaml"
    whole = yaml.safe_load(path.read_text())
    columns = {
        name: whole["tables"]["matrix"]["columns"][name] for name in ("rFID", "FID with MaskGIT", "FID with GPT")
    }
    whole["tables"]["matrix"].update(columns=columns, rows={"Channel-wise": {"tokenizer": "cq-k16384"}})
    path.write_text(yaml.safe_dump(whole, sort_keys=False))
    done = snakemake(folder, "results/tiny/matrix.csv", *TINY, "--show-failed-logs")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    ran_now = Counter(re.findall(r"^(?:local)?rule (\w+):", done.stdout + done.stderr, re.M))
    assert ran_now == {"train_generator": 1, "sample": 1, "score_samples": 1, "own_table": 1}
    (row,) = table(folder, "matrix.csv")
    assert (
        row["status"] == "measured"
        and "short runs of 1 training steps (25% of the recipe's): FID with GPT" in row["notes"]
    )
    assert all(float(row[f"{name} measured [demo-judge]"]) > 0 for name in columns)
    assert not rules(folder, "matrix")


PATCHES = '''"""A toy family: one linear map a patch."""
import torch
from torch import nn
from vqbench.tokenizers.base import Tokenizer
from vqbench.tokenizers.quantizers.codebook import VectorQuantizer

LAYOUT = "raster"
OPTIONS = {"num_codes": 16, "code_dim": 4}


class Patches(Tokenizer):
    def __init__(self, spec):
        super().__init__()
        self.tokens = spec.tokens
        f = spec.downsample
        self.down = nn.Conv2d(3, spec.tokens.code_dim, f, stride=f)
        self.quantizer = VectorQuantizer(spec.tokens, init="normal")
        self.up = nn.ConvTranspose2d(spec.tokens.code_dim, 3, f, stride=f)

    def encode(self, images):
        return self.down(images)

    def decode(self, latents):
        return self.up(latents)

    @property
    def last_layer(self):
        return self.up.weight


def build(spec):
    return Patches(spec)
'''


def test_two_runs_from_scratch_give_the_same_bytes(ran: Path, clone: Path) -> None:
    """Table, manifests, weights, samples: every file that carries a number."""
    done = snakemake(clone, "results/tiny/table6b.csv", *TINY, "--show-failed-logs")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    first, second = (folder / "results" / "tiny" for folder in (ran, clone))
    names = [
        p.relative_to(second) for p in second.rglob("*") if p.suffix in {".csv", ".md", ".tex", ".npy", ".safetensors"}
    ]
    names += [p.relative_to(second) for p in second.rglob("manifest.json")]
    assert len(names) > 40
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


# ---- faults ----------------------------------------------------------------------------------------------------------


def test_a_flipped_byte_is_named_by_file_and_manifest(ran: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clone"
    shutil.copytree(ran, folder, symlinks=True)
    weights = next((folder / "results/tiny/store/tokenizer/cq-k1024").rglob("model.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    done = vqbench(folder, "tokenize", "cq-k1024", "--split", "train", "--scale", "tiny")
    assert done.returncode == 1 and "does not match the digest in" in done.stderr and "Traceback" not in done.stderr


def test_a_job_refuses_a_spec_that_changed_since_submission(ran: Path) -> None:
    done = vqbench(ran, "train-tokenizer", "cq-k1024", "--scale", "tiny", "--expect", "0" * 64)
    assert done.returncode == 1 and "changed between submission and start" in done.stderr


def test_a_spec_changed_under_a_finished_run_is_refused_downstream(edited: Path) -> None:
    edit(edited / "workflow" / "scales" / "tiny.yaml", "1024: 16", "1024: 17", 1)
    done = vqbench(edited, "reconstruct", "cq-k1024", "--scale", "tiny")
    assert done.returncode == 1 and "was made from another spec or code" in done.stderr
    assert "vqbench accept" in done.stderr and "Traceback" not in done.stderr


def test_a_failed_run_is_a_row_with_its_reason_and_the_stale_table_goes(ran: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clone"
    shutil.copytree(ran, folder, symlinks=True)
    # A learning rate that makes the loss infinite, in one run of four.
    edit(folder / "workflow" / "papers" / "cq.yaml", "num_codes: 1024}",
         "num_codes: 1024, training: {weights: {l2: 1.0e+39}}}", 1)  # fmt: skip
    done = snakemake(folder, "--keep-going", "results/tiny/table6b.csv", *TINY)
    assert done.returncode != 0
    assert not (folder / "results/tiny/table6b.csv").exists()
    rows = {r["row"]: r for r in table(folder, "table6b.partial.csv")}
    assert rows["Ours/codebook=1024"]["status"].startswith("failed: ")
    assert "is inf" in rows["Ours/codebook=1024"]["status"] or "is nan" in rows["Ours/codebook=1024"]["status"]
    assert rows["Ours/codebook=16384"]["status"] == "measured"


def test_a_finished_store_is_published_again_not_trained_again(ran: Path) -> None:
    manifest = ran / "results/tiny/tokenizers/cq-k1024/manifest.json"
    before = manifest.read_bytes()
    manifest.unlink()
    done = vqbench(ran, "train-tokenizer", "cq-k1024", "--scale", "tiny")
    assert "is finished already" in done.stderr and manifest.read_bytes() == before


def test_the_same_step_twice_at_once_runs_once(clone: Path) -> None:
    """Two processes start the same step: one does it, the other says so and stops; the result is whole."""
    vqbench(clone, "check-dataset", "photos-tiny", "--scale", "tiny")
    scale = clone / "workflow" / "scales" / "tiny.yaml"
    network = clone / "workflow" / "pretrained.yaml"
    network.write_text(network.read_text().replace("steps: 5\n", "steps: 300\n"))
    assert scale.is_file()
    command = [sys.executable, "-m", "vqbench.cli", "pretrained", "tiny-classifier", "--scale", "tiny"]
    environment = {**os.environ, "PYTHONPATH": str(clone), "OMP_NUM_THREADS": "1"}
    pair = [subprocess.Popen(command, cwd=clone, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    messages = [p.communicate(timeout=120)[1] for p in pair]
    assert sorted(p.returncode for p in pair) == [0, 1], messages
    loser = messages[[p.returncode for p in pair].index(1)]
    assert "is being made by another process right now" in loser and "Traceback" not in loser


def test_a_tokenizer_killed_at_any_moment_ends_with_the_same_bytes(clone: Path) -> None:
    """SIGKILL in the real step, with discriminator, LeCam and EMA on; then again; then to the end; against one calm run."""
    scale = clone / "workflow" / "scales" / "tiny.yaml"
    scale.write_text(
        scale.read_text().replace("steps: 3\n", "steps: 60\n").replace("checkpoint_every: 2", "checkpoint_every: 5")
    )
    for words in (("check-dataset", "photos-tiny"), ("pretrained", "tiny-classifier")):
        assert vqbench(clone, *words, "--scale", "tiny").returncode == 0
    command = [sys.executable, "-m", "vqbench.cli", "train-tokenizer", "cq-k1024", "--scale", "tiny"]
    environment = {**os.environ, "PYTHONPATH": str(clone), "OMP_NUM_THREADS": "1"}
    store = clone / "results/tiny/store/tokenizer/cq-k1024"
    for step in (10, 30):
        process = subprocess.Popen(
            command, cwd=clone, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while not list(store.glob(f"*/state/checkpoint-{step:09d}.json")):
            assert process.poll() is None, "it ended before it could be killed"
        process.kill()
        process.wait()
    done = vqbench(clone, *command[3:])
    assert done.returncode == 0 and "resumed cq-k1024 at step" in done.stdout, done.stderr
    names = ("model.safetensors", "losses.csv", "finished.json")
    killed = {n: next(store.glob(f"*/{n}")).read_bytes() for n in names}
    shutil.rmtree(store)
    assert vqbench(clone, *command[3:]).returncode == 0
    assert killed == {n: next(store.glob(f"*/{n}")).read_bytes() for n in names}


def test_state_of_other_inputs_is_not_resumed(ran: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clone"
    shutil.copytree(ran, folder, symlinks=True)
    store = next((folder / "results/tiny/store/tokenizer/cq-k1024").glob("*/finished.json")).parent
    before = (store / "model.safetensors").read_bytes()
    (store / "finished.json").unlink()
    (store / "state").mkdir()
    (store / "state" / "inputs.json").write_text('{"dataset/photos-tiny": "another"}')
    (store / "state" / "checkpoint-000000002.safetensors").write_bytes(b"of another run")
    (folder / "results/tiny/tokenizers/cq-k1024/manifest.json").unlink()
    done = vqbench(folder, "train-tokenizer", "cq-k1024", "--scale", "tiny")
    assert done.returncode == 0, done.stderr
    assert "its unfinished state is dropped" in done.stderr
    assert (store / "model.safetensors").read_bytes() == before, "trained again, to the same bytes"


def test_eval_only_rescores_names_what_is_missing_and_never_trains(ran: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clone"
    shutil.copytree(ran, folder, symlinks=True)
    path = folder / "eval" / "psnr.py"
    path.write_text(path.read_text() + "\nEDITED = 1\n")
    before = (folder / "results/tiny/table6b.csv").read_bytes()
    (folder / "results/tiny/table6b.csv").unlink()
    done = snakemake(folder, "eval_only", *TINY, "--show-failed-logs")
    text = done.stdout + done.stderr
    assert done.returncode == 0, text[-2000:]
    assert "eval_only leaves out tokenizer-scores/vqgan-k1024/photos-tiny: tokenizer/vqgan-k1024 is missing" in text
    assert not re.search(r"^(local)?rule (train_\w+|sample|pretrained):", text, re.M)
    assert len(re.findall(r"^(?:local)?rule score_tokenizer:", text, re.M)) >= 4
    assert (folder / "results/tiny/table6b.csv").read_bytes() == before, "written again from the new scores"


def test_manifests_hold_no_time_and_no_absolute_path(ran: Path) -> None:
    for path in (ran / "results" / "tiny").rglob("manifest.json"):
        text = path.read_text()
        assert str(ran) not in text and "/tmp" not in text, path
        assert set(json.loads(text)) == {"kind", "name", "scale", "digest", "spec", "spec_digest", "code_digest", "inputs",
                                         "outputs", "facts", "seed", "store", "self"}  # fmt: skip


def test_logs_show_a_progress_bar_with_loss_and_rate(ran: Path) -> None:
    log = (ran / "results/tiny/logs/tokenizers/cq-k1024.log").read_text()
    assert re.search(r"cq-k1024: 100%\|.*3/3 \[.*step/s, .*l2=", log)


@pytest.mark.parametrize(
    ("name", "terms"),
    [
        ("vqgan-k1024", {"adaptive_weight", "adversarial"}),
        ("maskgit-k1024", {"r1", "entropy"}),
        ("cq-k1024", {"lecam"}),
    ],
)
def test_terms_that_only_some_recipes_have_are_active(name: str, terms: set[str], ran: Path) -> None:
    """Non-zero in the log once the discriminator has started (R1 on its own steps)."""
    done = vqbench(ran, "train-tokenizer", name, "--scale", "tiny")
    assert done.returncode == 0, done.stderr[-1500:]
    with next((ran / "results/tiny/store/tokenizer" / name).glob("*/losses.csv")).open() as file:
        rows = list(csv.DictReader(file))
    for term in terms:
        values = [float(row[term]) for row in rows if row[term]]
        assert values and all(v != 0 for v in values), term


def test_the_report_opens(ran: Path) -> None:
    done = snakemake(ran, "--report", "results/tiny/report.zip", *TARGETS[:1], *TARGETS[2:], *TINY)
    assert done.returncode == 0, done.stderr[-2000:]
    import zipfile

    names = zipfile.ZipFile(ran / "results/tiny/report.zip").namelist()
    assert any(n.endswith("report.html") for n in names)
