"""The step "generator": tokens that the spec does not speak of are refused before anything trains."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vqbench.errors import SpecError
from vqbench.generators import dit, gpt, maskgit, sit, training
from vqbench.jobs import Finished
from vqbench.specs import GeneratorSpec, OptimizerSpec, TokenSpec, TrainingSpec

TOKENS = TokenSpec(layout="raster", grid=3, num_tokens=9, code_dim=5, num_codes=16)


def job_of(
    family: Any, store: Path, shape: tuple[int, ...], codes: int = 16, sampler: dict[str, Any] | None = None
) -> Any:
    """A job of generator g, of which the set s is to be sampled. Its only input holds 4 images' tokens; it has no state, so
    training would fail otherwise."""
    reads = getattr(family, "READS", "tokens")
    optimizer = OptimizerSpec(name="adamw", lr=1e-3, betas=(0.9, 0.99))
    spec = GeneratorSpec(
        family=family.__name__.rsplit(".", 1)[1], reads=reads, tokenizer="t", dataset="d", recipe="r", tokens=TOKENS,
        num_classes=2, options={**family.OPTIONS, "layers": 1, "width": 32, "heads": 2},
        training=TrainingSpec(steps=1, batch_size=2, micro_batch=2, optimizer=optimizer),
    )  # fmt: skip
    name = "ids.npy" if reads == "tokens" else "latents.npy"
    np.save(store / name, np.zeros((4, *shape), np.int32 if reads == "tokens" else np.float32))
    np.save(store / "labels.npy", np.zeros(4, np.int64))
    facts = {"images": 4, "views": 1} | ({"codes": codes} if reads == "tokens" else {})
    read = Finished((reads, "t/d/train"), store, {"facts": facts, "outputs": {name: {}, "labels.npy": {}}})
    samples = {"s": SimpleNamespace(generator="g", sampler={**family.SAMPLER, **(sampler or {})}),
               "other": SimpleNamespace(generator="h", sampler={})}  # fmt: skip
    bench = SimpleNamespace(samples=samples)
    return SimpleNamespace(key=("generator", "g"), spec=spec, bench=bench, upstream=lambda kind, key: read)


@pytest.mark.parametrize(
    ("family", "shape", "codes", "said"),
    [
        (gpt, (9, 1), 32, r"knows 16 codes and \(9, 1\) an image, tokens/t/d/train have 32 codes and \(9, 1\)"),
        (gpt, (9, 2), 16, r"tokens/t/d/train have 16 codes and \(9, 2\)"),
        (gpt, (16, 1), 16, r"tokens/t/d/train have 16 codes and \(16, 1\)"),
        (
            dit,
            (5, 4, 4),
            16,
            r"knows 16 codes and \(5, 3, 3\) an image, latents/t/d/train have 16 codes and \(5, 4, 4\)",
        ),
    ],
)
def test_tokens_of_another_codebook_are_refused(
    tmp_path: Path, family: Any, shape: tuple[int, ...], codes: int, said: str
) -> None:
    with pytest.raises(SpecError, match=f"a codebook that its vocabulary does not match: it .*{said}"):
        training.run(job_of(family, tmp_path, shape, codes))


@pytest.mark.parametrize(
    ("family", "sampler", "said"),
    [
        (gpt, {"top_p": 0}, "top_p is 0"),
        (maskgit, {"guidance_schedule": "liner"}, "did you mean 'linear'"),
        (dit, {"guided_channels": 40}, "guided_channels is 40; the latents have 5"),
        (sit, {"method": "odd"}, "unknown method 'odd'"),
    ],
)
def test_a_sampler_that_cannot_be_is_refused_before_training(
    tmp_path: Path, family: Any, sampler: dict[str, Any], said: str
) -> None:
    shape = (5, 4, 4) if getattr(family, "READS", "tokens") == "latents" else (16, 1)
    job = job_of(family, tmp_path, shape, sampler=sampler)
    even = TOKENS.model_copy(update={"grid": 4, "num_tokens": 16})  # of whole patches
    job.spec = job.spec.model_copy(update={"tokens": even})
    with pytest.raises(SpecError, match=f"samples 's': sampler: .*{said}"):
        training.run(job)


def test_tokens_that_fit_go_on_to_training(tmp_path: Path) -> None:
    with pytest.raises(AttributeError, match="state"):
        training.run(job_of(gpt, tmp_path, (9, 1)))
