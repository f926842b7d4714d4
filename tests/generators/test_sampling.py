"""Sampling by blocks: the same pixels in any order, over any number of processes, after any interruption."""

from __future__ import annotations

import time
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vqbench.data import to_uint8
from vqbench.errors import ArtifactError, Diverged, SpecError
from vqbench.generators import sampling
from vqbench.generators.base import build_generator
from vqbench.generators.maskgit import OPTIONS, SAMPLER
from vqbench.seeds import torch_rng
from vqbench.specs import GeneratorSpec, OptimizerSpec, SampleSpec, TokenSpec, TrainingSpec

TOKENS = TokenSpec(layout="channel", grid=2, num_tokens=6, code_dim=4, num_codes=16)
SPEC = SampleSpec(generator="g", sampler={**SAMPLER, "steps": 3}, count=22, block=5, num_classes=4, seed=7)


class Painter(nn.Module):
    """Stands for a tokenizer: one grey level a code, six rows of four pixels. Counts the batches it decodes."""

    tokens = TOKENS

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def decode_ids(self, ids: Tensor) -> Tensor:
        self.batches.append(len(ids))
        return (ids.float() / 8 - 1)[:, None].expand(-1, 3, -1, 4)

    def quantize(self, latents: Tensor) -> SimpleNamespace:
        return SimpleNamespace(ids=latents.round().long())


@dataclass(frozen=True)
class FakeJob:
    """What sampling uses of a Job."""

    store: Path
    spec: SampleSpec = SPEC
    key: tuple[str, str] = ("samples", "s")
    digest: str = "of this job"
    bench: Any = None
    opened: list[tuple[str, str]] = field(default_factory=list)
    measured: dict[str, float] = field(default_factory=dict)

    @property
    def state(self) -> Path:
        (self.store / "state").mkdir(parents=True, exist_ok=True)
        return self.store / "state"

    def upstream(self, kind: str, name: str) -> tuple[str, str]:
        self.opened.append((kind, name))
        return kind, name


def generator_spec() -> GeneratorSpec:
    optimizer = OptimizerSpec(name="adamw", lr=1e-3, betas=(0.9, 0.96))
    return GeneratorSpec(
        family="maskgit", tokenizer="t", dataset="d", recipe="r", tokens=TOKENS, num_classes=4,
        options={**OPTIONS, "layers": 1, "width": 32, "heads": 2},
        training=TrainingSpec(steps=1, batch_size=1, micro_batch=1, optimizer=optimizer),
    )  # fmt: skip


@pytest.fixture
def painter(monkeypatch: pytest.MonkeyPatch) -> Painter:
    torch.manual_seed(0)
    generator, painter = build_generator(generator_spec()).eval(), Painter()
    monkeypatch.setattr(sampling, "open_generator", lambda spec, finished, device: generator.to(device))
    monkeypatch.setattr(sampling, "open_tokenizer", lambda spec, finished, device: painter)
    monkeypatch.setattr(sampling, "device", lambda: torch.device("cpu"))
    return painter


@pytest.fixture
def job(tmp_path: Path, painter: Painter) -> Any:
    return new_job(tmp_path / "store")


def new_job(store: Path, spec: SampleSpec = SPEC) -> Any:
    bench = SimpleNamespace(generators={"g": generator_spec()}, tokenizers={"t": None})
    return FakeJob(store, spec, bench=bench)


def outputs(job: Any) -> dict[str, bytes]:
    return {name: (job.store / name).read_bytes() for name in sampling.OUTPUTS}


def test_outputs_have_the_layout_of_the_adm_evaluator(job: Any) -> None:
    facts = sampling.run(job)
    with np.load(job.store / "samples.npz", allow_pickle=False) as samples:
        assert set(samples) == {"arr_0", "arr_1"}
        images, labels = samples["arr_0"], samples["arr_1"]
    ids = np.load(job.store / "ids.npy")
    assert images.shape == (22, 6, 4, 3) and images.dtype == np.uint8
    assert labels.dtype == np.int64 and labels.tolist() == [i % 4 for i in range(22)]
    assert ids.shape == (22, 6, 1) and ids.dtype == np.int32 and len(np.unique(ids)) > 8
    np.testing.assert_array_equal(images, to_uint8(Painter().decode_ids(torch.from_numpy(ids))))
    counts = build_generator(generator_spec()).parameter_counts()
    assert facts == {"images": 22, "steps": 3, "parameters": counts}
    assert job.opened == [("generator", "g"), ("tokenizer", "t")]


def test_seconds_an_image_count_what_was_made_in_this_run(job: Any) -> None:
    began = time.perf_counter()
    sampling.run(job)
    spent = time.perf_counter() - began
    assert job.measured["timed_images"] == 25, "22 and the padding"
    assert 0 < job.measured["seconds_per_image"] * 25 < spent
    again = new_job(job.store)
    sampling.run(again)
    assert again.measured == {}


def test_decoding_is_by_whole_blocks_and_the_last_is_padded(job: Any, painter: Painter) -> None:
    sampling.run(job)
    assert painter.batches == [5] * 5


def test_a_smaller_count_is_a_prefix(job: Any, tmp_path: Path) -> None:
    small = new_job(tmp_path / "small", SPEC.model_copy(update={"count": 13}))
    sampling.run(job), sampling.run(small)
    np.testing.assert_array_equal(np.load(small.store / "ids.npy"), np.load(job.store / "ids.npy")[:13])


def test_seed_and_block_alone_decide_the_ids(job: Any) -> None:
    models = sampling.open_models(job)
    one, two, again = (sampling.make_block(SPEC, models, b)["ids"] for b in (1, 2, 1))
    np.testing.assert_array_equal(one, again)
    assert (one != two).any()
    assert (sampling.make_block(SPEC.model_copy(update={"seed": 8}), models, 1)["ids"] != one).any()
    direct = models.generator.sample(torch.tensor([1, 2, 3, 0, 1]), torch_rng(7, "sample", 1), SPEC.sampler)
    np.testing.assert_array_equal(one, direct.numpy())


def test_any_split_over_processes_gives_the_same_bytes(job: Any, tmp_path: Path) -> None:
    sampling.run(job)
    split = new_job(tmp_path / "split")
    sampling.make_blocks(split, range(1, 5, 2))  # process 1 of 2, first
    sampling.make_blocks(split, [4, 2, 0])  # process 0 of 2, backwards
    split.opened.clear()
    sampling.run(split)
    assert not split.opened  # nothing was left to make, so no model was opened
    assert outputs(split) == outputs(job)


def test_bytes_carry_no_time(job: Any) -> None:
    sampling.run(job)
    with zipfile.ZipFile(job.store / "samples.npz") as archive:
        assert {i.date_time for i in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert archive.testzip() is None


def test_shards_go_once_the_outputs_are_whole(job: Any) -> None:
    (job.state / ".shard-00001.npz.x1").write_bytes(b"left by a killed process")
    sampling.make_blocks(job, [0])
    assert sampling.shard_path(job, 0).is_file()
    sampling.run(job)
    assert [p.name for p in job.state.iterdir()] == [sampling.ASSEMBLED]


def test_resume_makes_only_what_is_missing(job: Any, painter: Painter, tmp_path: Path) -> None:
    sampling.make_blocks(job, [0, 3])
    painter.batches.clear()
    sampling.run(job)
    assert len(painter.batches) == 3
    whole = new_job(tmp_path / "whole")
    sampling.run(whole)
    assert outputs(job) == outputs(whole)


def damage_cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def damage_flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[300] ^= 1  # inside the pixels
    path.write_bytes(data)


def damage_empty(path: Path) -> None:
    path.write_bytes(b"")


def damage_swap(path: Path) -> None:
    path.write_bytes(path.with_name("shard-00000.npz").read_bytes())


def damage_record(path: Path) -> None:
    path.with_suffix(".json").write_bytes(b"{")


def damage_swap_with_record(path: Path) -> None:
    """Another block, whole in itself."""
    damage_swap(path)
    path.with_suffix(".json").write_bytes(path.with_name("shard-00000.json").read_bytes())


@pytest.mark.parametrize(
    "damage",
    [damage_cut, damage_flip, damage_empty, damage_swap, damage_record, damage_swap_with_record, Path.unlink],
)
def test_a_damaged_shard_is_made_again(
    job: Any, painter: Painter, tmp_path: Path, damage: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    sampling.make_blocks(job, range(5))
    damage(sampling.shard_path(job, 2))
    painter.batches.clear()
    capsys.readouterr()
    sampling.run(job)
    said = capsys.readouterr().err
    assert "shard-00002.npz is damaged" in said and "making block 2 again" in said
    assert len(painter.batches) == 1
    whole = new_job(tmp_path / "whole")
    sampling.run(whole)
    assert outputs(job) == outputs(whole)


def test_a_shard_without_its_record_is_not_finished(job: Any, painter: Painter) -> None:
    """Killed between the two writes."""
    sampling.make_blocks(job, range(5))
    sampling.shard_path(job, 2).with_suffix(".json").unlink()
    painter.batches.clear()
    sampling.run(job)
    assert len(painter.batches) == 1


def test_a_shard_of_another_run_is_made_again(job: Any, painter: Painter, tmp_path: Path) -> None:
    other = replace(new_job(tmp_path / "other"), digest="another")
    for one in (job, other):
        sampling.make_blocks(one, range(5))
    for suffix in (".npz", ".json"):
        theirs, mine = (sampling.shard_path(one, 2).with_suffix(suffix) for one in (other, job))
        mine.write_bytes(theirs.read_bytes())
    painter.batches.clear()
    sampling.run(job)
    assert len(painter.batches) == 1


def test_outputs_without_a_manifest_are_kept(job: Any, painter: Painter) -> None:
    facts = sampling.run(job)
    before = outputs(job)
    painter.batches.clear()
    assert sampling.run(job) == facts and outputs(job) == before
    assert not painter.batches


def test_damaged_outputs_are_made_again(job: Any, capsys: pytest.CaptureFixture[str]) -> None:
    sampling.run(job)
    before = outputs(job)
    damage_flip(job.store / "samples.npz")
    sampling.run(job)
    assert "making them again" in capsys.readouterr().err
    assert outputs(job) == before


def test_a_shard_lost_while_assembling_leaves_no_output(job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "make_blocks", lambda job, blocks: None)
    with pytest.raises(ArtifactError, match=r"shard-00000\.npz .* run again"):
        sampling.run(job)
    assert [p.name for p in job.store.iterdir()] == ["state"]


def test_images_that_are_not_finite_are_refused(job: Any, painter: Painter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(painter, "decode_ids", lambda ids: torch.full((len(ids), 3, 6, 4), torch.nan))
    with pytest.raises(Diverged, match="block 0 decoded to values that are not finite"):
        sampling.run(job)
    assert not list(job.state.iterdir())


def test_latents_are_quantized_before_they_are_decoded(job: Any) -> None:
    models = sampling.open_models(job)
    latents = torch.full((5, 6, 1), 3.4)
    continuous: Any = SimpleNamespace(sample=lambda labels, rng, sampler: latents)
    block = sampling.make_block(SPEC, replace_generator(models, continuous), 0)
    assert (block["ids"] == 3).all()


def test_latents_that_are_not_finite_are_refused(job: Any) -> None:
    """Quantized, they would be codes, and decode to images like any others."""
    latents = torch.full((5, 6, 1), 3.4)
    latents[4, 2] = torch.nan
    continuous: Any = SimpleNamespace(sample=lambda labels, rng, sampler: latents)
    models = replace_generator(sampling.open_models(job), continuous)
    with pytest.raises(Diverged, match=r"block 2 has latents that are not finite.*guidance is too strong"):
        sampling.make_block(SPEC, models, 2)


@pytest.mark.parametrize(
    ("other", "said"), [({"num_codes": 32}, "32 codes"), ({"num_tokens": 8}, r"16 codes and \(8, 1\)")]
)
def test_a_tokenizer_of_another_codebook_is_refused(
    job: Any, painter: Painter, monkeypatch: pytest.MonkeyPatch, other: dict[str, int], said: str
) -> None:
    monkeypatch.setattr(painter, "tokens", TOKENS.model_copy(update=other))
    with pytest.raises(SpecError, match=f"its vocabulary does not match.* tokenizer/t's tokens have {said}"):
        sampling.run(job)
    assert not list(job.state.iterdir())


def replace_generator(models: sampling.Models, generator: Any) -> sampling.Models:
    return models._replace(generator=generator)
