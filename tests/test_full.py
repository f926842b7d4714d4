"""At full size: every distinct architecture takes one real optimizer step at batch 1, every model builds on meta.

`make test-full`. The largest (1.0B parameters with Adam's state) needs about 17 GB of memory.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lpips
import numpy as np
import pytest
import torch

from vqbench.data import Images
from vqbench.generators.base import build_generator
from vqbench.generators.training import GeneratorTask
from vqbench.papers import bench
from vqbench.specs import GeneratorSpec, ScheduleSpec, TrainingSpec
from vqbench.tokenizers.base import build_tokenizer
from vqbench.tokenizers.training import TokenizerTask
from vqbench.training import Task, Trainer

PAPER = bench("paper")
# One of each architecture; runs that differ from it only in the number of codes or the length of a code are left out.
TOKENIZERS = ["cq-k1024", "cq-k16384-512tokens", "cq-512px", "vqgan-k1024", "maskgit-k1024", "llamagen-d256", "llamagen-d8",
              "vqgan-cos-k16384", "ema-k16384", "lc-k100000", "lc-k100000-f8"]  # fmt: skip
GENERATORS = ["cq-b-k16384", "cq-b-512px", "cq-l-k16384", "cq-h-k16384", "gpt-lc-k100000"]
LATENT = ["ldm-lc-k100000", "ldm-lc-k100000-f8", "dit-lc-k100000", "sit-lc-k100000"]

pytestmark = pytest.mark.full


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)
    gc.collect()


@pytest.fixture(scope="module")
def perceptual() -> lpips.LPIPS:
    """LPIPS over VGG-16's true shapes, random weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).eval().requires_grad_(False)


class Noise(Images):
    """Random images of the right shape."""

    def __init__(self, resolution: int) -> None:
        self.resolution, self.labels = resolution, np.zeros(1, dtype=np.int64)

    def plain(self, index: int) -> np.ndarray:
        return np.random.default_rng(index).integers(0, 256, (self.resolution, self.resolution, 3), dtype=np.uint8)

    def augmented(self, position: int, seed: int) -> tuple[np.ndarray, int]:
        return self.plain(position), 0


def once(training: TrainingSpec, **changed: Any) -> TrainingSpec:
    """`training` cut to one step of one image at its whole learning rate: a warm-up's first rate rounds away at a weight of 1."""
    one: dict[str, Any] = {
        "batch_size": 1,
        "micro_batch": 1,
        "steps": 1,
        "precision": "fp32",
        "schedule": ScheduleSpec(),
    }
    return training.model_copy(update=one | changed)


def one_step(task: Task, training: TrainingSpec, folder: Path, share: float = 0.9) -> dict[str, float]:
    """One step of the real loop, all players active; more than `share` of the model's parameters must have moved."""
    trainer = Trainer(task, training, folder, seed=0, title="full size")
    trainer._begin()
    model = task.players["model"].module
    # A scalar a parameter, not a copy: the largest model leaves no room for one.
    before = {k: p.detach().double().sum().item() for k, p in model.named_parameters()}
    named = trainer._one_step([task.examples(0, 1)])
    after = {k: p.detach().double().sum().item() for k, p in model.named_parameters()}
    moved = [k for k in before if before[k] != after[k]]
    assert len(moved) > share * len(before), sorted(set(before) - set(moved))
    return named


def generator_once(name: str) -> tuple[GeneratorSpec, TrainingSpec]:
    """A generator cut to one step. Without EMA: the largest model leaves no room for a second set of weights."""
    spec = PAPER.generators[name]
    training = once(spec.training, ema_decay=0.0)
    return spec.model_copy(update={"training": training}), training


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.timeout(900)
def test_a_tokenizer_takes_a_step(name: str, perceptual: lpips.LPIPS, tmp_path: Path) -> None:
    spec = PAPER.tokenizers[name]
    assert spec.training.discriminator
    adversary = spec.training.discriminator.model_copy(update={"start_step": 0})
    training = once(spec.training, discriminator=adversary)
    spec = spec.model_copy(update={"training": training})
    named = one_step(TokenizerTask(spec, Noise(spec.resolution), perceptual), training, tmp_path)
    assert {*training.weights, "discriminator"} - {k for k, w in training.weights.items() if not w} <= set(named)


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.timeout(900)
def test_a_generator_takes_a_step(name: str, tmp_path: Path) -> None:
    spec, training = generator_once(name)
    ids = np.random.default_rng(0).integers(0, spec.tokens.num_codes, (1, spec.tokens.num_tokens, 1))
    named = one_step(GeneratorTask(spec, ids, np.array([7])), training, tmp_path)
    assert named["cross_entropy"] == pytest.approx(np.log(spec.tokens.num_codes), rel=0.3)


@pytest.mark.parametrize("name", PAPER.tokenizers)
def test_every_tokenizer_builds_on_meta(name: str) -> None:
    with torch.device("meta"):
        model = build_tokenizer(PAPER.tokenizers[name])
    assert model.quantizer.codebook().shape == (PAPER.tokenizers[name].tokens.num_codes, model.tokens.code_dim)


@pytest.mark.parametrize("name", LATENT)
@pytest.mark.timeout(900)
def test_a_generator_of_latents_takes_a_step(name: str, tmp_path: Path) -> None:
    """Layers that start at zero keep those before them still at first, so that some move is all that one step shows."""
    spec, training = generator_once(name)
    latents = np.random.default_rng(0).normal(size=(1, *spec.tokens.latent_shape)).astype(np.float32)
    named = one_step(GeneratorTask(spec, latents, np.array([7])), training, tmp_path, share=0.0)
    assert {k for k, w in training.weights.items() if w} <= set(named) and all(np.isfinite(v) for v in named.values())


# Blocks, from and to, by family or by size: cq Table 1; VQGAN-LC Sec. 4.1 and App. A. LDM's is unprinted: what its printed
# channels give (test_ldm.py holds the same network to LDM-8's published size).
SIZES = {
    "cq-b": (305e6 * 0.99, 305e6 * 1.01), "cq-l": (634e6 * 0.99, 634e6 * 1.01), "cq-h": (1.00e9, 1.05e9),
    "maskgit": (305e6 * 0.99, 305e6 * 1.01), "gpt": (302e6 * 0.99, 302e6 * 1.01), "dit": (675e6 * 0.98, 675e6 * 1.02),
    "sit": (675e6 * 0.98, 675e6 * 1.02), "ldm": (424.6e6 * 0.99, 424.6e6 * 1.01),
}  # fmt: skip


@pytest.mark.parametrize("name", PAPER.generators)
def test_every_generator_builds_on_meta_at_its_printed_size(name: str) -> None:
    spec = PAPER.generators[name]
    with torch.device("meta"):
        counts = build_generator(spec).parameter_counts()
    low, high = next(size for start, size in SIZES.items() if name.startswith(f"{start}-"))
    assert low <= counts["blocks"] <= high
    assert counts["vocabulary"] >= (spec.tokens.num_codes * spec.options["width"] if spec.reads == "tokens" else 0)
