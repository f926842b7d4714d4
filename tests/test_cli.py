"""The command line: every verb's help has an example that parses, and no user's mistake ends in a traceback."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from helpers import ROOT

from vqbench import cli

VERBS = sorted(next(a for a in cli._parser()._actions if a.dest == "verb").choices)  # type: ignore[arg-type]


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    try:
        cli.main(argv)
        status = 0
    except SystemExit as stop:
        status = int(stop.code or 0)
    out, err = capsys.readouterr()
    return status, out, err


def test_the_issue_s_verbs_are_there() -> None:
    wanted = [
        "list",
        "plan",
        "train-tokenizer",
        "tokenize",
        "reconstruct",
        "train-generator",
        "sample",
        "score",
        "evaluate",
        "statistics",
        "bridge",
        "probe",
        "doctor",
    ]
    assert set(wanted) <= set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_s_help_ends_with_an_example_that_parses(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, verb, "--help")
    example = re.search(r"example:\n  vqbench (.*)$", out, re.M)
    assert status == 0 and example
    args = cli._parser().parse_args(shlex.split(example.group(1)))
    assert args.verb == verb and callable(args.run)


@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        (
            ["train-tokenizer", "cq-k1025", "--scale", "demo"],
            2,
            "unknown tokenizer 'cq-k1025'; did you mean 'cq-k1024'",
        ),
        (["train-tokenizer", "cq-k1024", "--scale", "dem"], 2, "unknown scale 'dem'; did you mean 'demo'"),
        (["score", "cq-k1O24"], 2, "did you mean 'cq-k1024'"),
        (["table", "cq/9"], 2, "unknown table 'cq/9'"),
        (["figure", "cq/fig9", "--scale", "demo"], 2, "did you mean 'cq/fig"),
        (["plan", "results/table9.csv"], 2, "no table is written to 'results/table9.csv'"),
        (["plan", "nobody"], 2, "no target 'nobody'"),
        (["list", "tokenizer"], 2, "did you mean 'tokenizers'"),
        (["doctor"], 2, "doctor needs a target"),
        (["doctor", "--dataset", "fotos", "--scale", "demo"], 2, "did you mean 'photos'"),
        (["doctor", "--dataset", "imagenet256"], 1, "data set path '$IMAGENET' is not set"),
        (["fetch-weights", "lpips-vgg"], 2, "did you mean 'lpips-vgg16'"),
        (["tokenize", "cq-k1024", "--scale", "demo", "--dataset", "nothing"], 2, "unknown data set 'nothing'"),
    ],
)
def test_a_mistake_is_one_clear_message(
    argv: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("IMAGENET", raising=False)
    found, _, err = run(capsys, *argv)
    assert found == status and message in err and "Traceback" not in err


def test_a_missing_input_names_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, err = run(capsys, "reconstruct", "cq-k1024", "--scale", "demo")
    assert status == 1 and "tokenizers/cq-k1024/manifest.json is missing; run the step that makes it" in err


def test_list_names_every_run(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "list")
    for name in ("cq-k131072", "llamagen-d4", "cq-h-k16384", "cq-l-k65536-s64", "results/table6b.csv", "fig4.pdf"):
        assert name in out


def test_plan_counts_images_hours_and_disk(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "plan", "results/table2.csv")
    assert status == 0
    runs = dict(re.findall(r"^(\S+/\S+) +(to do|done|outdated) ", out, re.M))
    assert sum(k.startswith("tokenizer/") for k in runs) == 2 and sum(k.startswith("samples/") for k in runs) == 7
    seen = re.search(r"tokenizer/cq-k16384 +to do +([\d,]+) +([\d.]+) ", out)
    assert seen and int(seen.group(1).replace(",", "")) == pytest.approx(300 * 1_281_167, rel=1e-3)
    assert float(seen.group(2)) > 100, "hundreds of GPU-hours: 384 million images of 256x256"


def test_doctor_says_what_is_lacking_with_the_mend(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("IMAGENET", raising=False)
    status, out, _ = run(capsys, "doctor", "results/table2.csv")
    assert status == 1
    assert re.search(r"LACK  data set imagenet256/train: data set path '\$IMAGENET' is not set; set it in", out)
    assert re.search(r"LACK  weights inception-2015-12-05: .*fetch https://\S+ .*SHA-256 starts with 6726825d", out)
    assert re.search(r"(LACK|ok  )  GPU: ", out) and re.search(r"disk: [\d,.]+ GB needed", out)


def test_doctor_is_content_with_the_demo(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    status, out, _ = run(capsys, "doctor", "results/demo/table6b.csv")
    assert status == 0 and "LACK" not in out


def test_wrong_weights_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"something else")
    status, _, err = run(capsys, "fetch-weights", "inception-2015-12-05")
    assert status == 1 and "expected 6726825d" in err
