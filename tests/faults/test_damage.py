"""Every kind of file, damaged in every way: found by its digest before it is used, made again, and said."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from forks import STAGES, Forks, made, store_of

Damage = Callable[[Path, Path], object]


def flip(path: Path, _other: Path) -> None:
    """One bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, Damage] = {
    "cut": lambda path, _: os.truncate(path, path.stat().st_size * 2 // 3),
    "flipped": flip,
    "empty": lambda path, _: path.write_bytes(b""),
    "another's": lambda path, other: shutil.copyfile(other, path),
}
# What makes the file, where it lies in the store ("" is the published manifest), what reads it, and whose takes its place.
FILES = {
    "weights": ("train-tokenizer", "model.safetensors", "tokenize", "other-tokenizer"),
    "tokens": ("tokenize", "ids.npy", "train-generator", "tokenize-validation"),
    "samples": ("sample", "samples.npz", "score-samples", "other-samples"),
    "manifest": ("tokenize", "", "train-generator", "tokenize-validation"),
    "features": ("reference", "statistics.npz", "score-samples", "reference-validation"),
}
OTHERS = {"other-tokenizer": ("train-tokenizer", "cq-k65536"), "other-samples": ("sample", "cq-b-k16384-s64")}
EVERY = STAGES | OTHERS


@pytest.fixture(scope="module")
def manifests(forks: Forks) -> dict[str, Path]:
    """The manifest that each stage published."""
    return {stage: forks.finish(*words) for stage, words in EVERY.items()}


def forget(manifest: Path) -> None:
    """As if the stage had not run."""
    shutil.rmtree(store_of(manifest))
    manifest.unlink()


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_file_stops_its_reader_and_is_made_again(
    file: str, damage: str, forks: Forks, manifests: dict[str, Path]
) -> None:
    maker, name, reader, other = FILES[file]
    before = made(manifests[maker]), made(manifests[reader])
    path = store_of(manifests[maker]) / name if name else manifests[maker]
    stranger = store_of(manifests[other]) / name if name else manifests[other]
    forget(manifests[reader])
    DAMAGES[damage](path, stranger)
    done = forks.run(*EVERY[reader])
    assert done.status == 1 and "Traceback" not in done.text, done.text
    assert str(path) in done.text and f"{manifests[maker]} was removed: run again" in done.text
    done = forks.run(*EVERY[maker])
    assert done.status == 0 and ("making it again" if name else "is finished already") in done.text, done.text
    forks.finish(*EVERY[reader])
    assert (made(manifests[maker]), made(manifests[reader])) == before


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_of_the_end_makes_the_step_again(
    damage: str, forks: Forks, manifests: dict[str, Path]
) -> None:
    manifest, other = manifests["tokenize"], manifests["tokenize-validation"]
    before, store = made(manifest), store_of(manifest)
    manifest.unlink()
    DAMAGES[damage](store / "finished.json", store_of(other) / "finished.json")
    done = forks.run(*STAGES["tokenize"])
    assert done.status == 0 and "finished.json" in done.text and "making it again" in done.text, done.text
    assert made(manifest) == before


def test_a_lost_record_of_time_makes_nothing_again(forks: Forks, manifests: dict[str, Path]) -> None:
    run = store_of(manifests["train-tokenizer"]) / "run.json"
    content = run.read_bytes()
    run.write_bytes(content[:40])
    done = forks.run(*STAGES["train-tokenizer"])
    run.write_bytes(content)
    assert done.status == 0 and "the record of time and machine is lost" in done.text and "published again" in done.text


def test_a_kill_between_the_end_and_its_clearing_leaves_nothing(forks: Forks, manifests: dict[str, Path]) -> None:
    manifest = manifests["tokenize"]
    before, store = made(manifest), store_of(manifest)
    manifest.unlink()
    (store / "state").mkdir()
    (store / "state" / "inputs.json").write_text("{}")
    assert "is finished already; published again" in forks.run(*STAGES["tokenize"]).text
    assert made(manifest) == before


def test_a_missing_input_does_not_cost_what_was_made_from_it(forks: Forks, manifests: dict[str, Path]) -> None:
    published = manifests["tokenize"].read_bytes()
    manifests["tokenize"].unlink()
    done = forks.run(*STAGES["train-generator"])
    assert done.status == 1 and "is missing; run the step that makes it" in done.text
    manifests["tokenize"].write_bytes(published)
    assert "is finished already; published again" in forks.run(*STAGES["train-generator"]).text


# ---- what a killed step leaves -----------------------------------------------------------------------------------------


def leave_unfinished(forks: Forks, manifest: Path, words: tuple[str, ...], until: str) -> Path:
    """Kill a stage once a file is in its state; returns the state's folder."""
    state = store_of(manifest) / "state"
    forget(manifest)
    pid = forks.start(*words)
    for _ in range(3000):
        if (state / until).exists():
            break
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    assert forks.wait().status == -signal.SIGKILL
    return state


@pytest.fixture(scope="module")
def cut(forks: Forks, manifests: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Copies of the states that killed stages left, of two runs each."""
    found = {}
    for stage, until in (("train-tokenizer", "checkpoint-000000010.json"), ("sample", "shard-00000.json")):
        for name in (stage, stage.replace("train", "other").replace("sample", "other-samples")):
            state = leave_unfinished(forks, manifests[name], EVERY[name], until)
            found[name] = shutil.copytree(state, tmp_path_factory.mktemp("cut") / "state")
            forks.finish(*EVERY[name])
    return found


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("suffix", ["safetensors", "json"])
def test_the_newest_good_checkpoint_is_used(
    suffix: str, damage: str, forks: Forks, manifests: dict[str, Path], cut: dict[str, Path]
) -> None:
    manifest = manifests["train-tokenizer"]
    before, store = made(manifest), store_of(manifest)
    forget(manifest)
    shutil.copytree(cut["train-tokenizer"], store / "state")
    newest = max((store / "state").glob("checkpoint-*.json"))
    strangers = max(cut["other-tokenizer"].glob("checkpoint-*.json"))
    DAMAGES[damage](newest.with_suffix(f".{suffix}"), strangers.with_suffix(f".{suffix}"))
    done = forks.run(*STAGES["train-tokenizer"])
    assert done.status == 0 and "checkpoint passed over" in done.text, done.text
    older = int(newest.stem.removeprefix("checkpoint-")) - 5
    assert f"resumed cq-k16384 at step {older}" in done.text
    assert made(manifest) == before


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_block_of_samples_is_made_again(
    damage: str, forks: Forks, manifests: dict[str, Path], cut: dict[str, Path]
) -> None:
    manifest = manifests["sample"]
    before, store = made(manifest), store_of(manifest)
    forget(manifest)
    shutil.copytree(cut["sample"], store / "state")
    DAMAGES[damage](store / "state" / "shard-00000.npz", cut["other-samples"] / "shard-00000.npz")
    done = forks.run(*STAGES["sample"])
    assert done.status == 0 and "is damaged" in done.text and "making block 0 again" in done.text, done.text
    assert made(manifest) == before
