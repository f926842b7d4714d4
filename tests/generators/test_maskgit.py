"""MaskGIT: sizes as printed, the schedule's promises, guidance, determinism, and that it learns what it is shown."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vqbench.errors import SpecError
from vqbench.generators.base import build_generator
from vqbench.generators.maskgit import OPTIONS, SAMPLER, MaskGIT, build
from vqbench.generators.networks.parallel_decoding import (
    draw_mask,
    masked_counts,
)
from vqbench.generators.networks.transformer import Attention
from vqbench.seeds import torch_rng
from vqbench.specs import GeneratorSpec, OptimizerSpec, TokenSpec, TrainingSpec

SMALL = {**OPTIONS, "layers": 2, "width": 32, "heads": 2, "dropout": 0.0}
PLAIN = {**SAMPLER, "guidance": 1.0}


def make_spec(
    options: dict[str, Any] = SMALL, n: int = 8, k: int = 16, classes: int = 3, **training: Any
) -> GeneratorSpec:
    optimizer = OptimizerSpec(name="adamw", lr=1e-3, betas=(0.9, 0.96))
    recipe = {"steps": 1, "batch_size": 4, "micro_batch": 4, "optimizer": optimizer, "class_drop": 0.1, **training}
    tokens = TokenSpec(layout="channel", grid=4, num_tokens=n, code_dim=16, num_codes=k)
    return GeneratorSpec(
        family="maskgit", tokenizer="t", dataset="d", recipe="r", tokens=tokens, num_classes=classes, options=options,
        training=TrainingSpec(**recipe),
    )  # fmt: skip


def small_model(seed: int = 0, **spec: Any) -> MaskGIT:
    """An untrained model whose predictions depend strongly on its input, as a trained one's do."""
    torch.manual_seed(seed)
    model = build(make_spec(**spec)).eval()
    with torch.no_grad():
        model.codes.mul_(30)
        model.classes.weight.mul_(30)
    return model


@pytest.mark.parametrize(
    ("layers", "width", "least", "most"),
    [(24, 1024, 305e6 * 0.99, 305e6 * 1.01), (32, 1280, 634e6 * 0.99, 634e6 * 1.01), (36, 1536, 1.0e9, 1.05e9)],
)
def test_sizes_are_those_of_table_1(layers: int, width: int, least: float, most: float) -> None:
    spec = make_spec({**OPTIONS, "layers": layers, "width": width}, n=256, k=16384, classes=1000)
    with torch.device("meta"):
        model = build_generator(spec)
    counts = model.parameter_counts()
    assert least < counts["blocks"] < most
    assert counts["vocabulary"] == 16384 * width + 16384
    assert sum(counts.values()) == sum(p.numel() for p in model.parameters())


def test_an_untied_vocabulary_counts_twice() -> None:
    tied, untied = (build(make_spec({**SMALL, "tie_vocabulary": t})).parameter_counts() for t in (True, False))
    assert untied == {"blocks": tied["blocks"], "vocabulary": tied["vocabulary"] + 16 * 32}


def test_queries_and_keys_are_rms_normalised() -> None:
    attention = small_model().transformer.get_submodule("blocks.0.attention")
    assert isinstance(attention, Attention)
    assert {type(attention.norm_q), type(attention.norm_k)} == {nn.RMSNorm}
    x = torch.randn(2, 9, 32, generator=torch_rng(0))
    with torch.no_grad():
        before = attention(x)
        attention.qkv.weight[:64].mul_(7)  # queries and keys: their length must not matter
        attention.qkv.bias[:64].mul_(7)
    torch.testing.assert_close(attention(x), before, rtol=1e-4, atol=1e-5)


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(SpecError, match="heads 5 does not divide width 32"):
        build(make_spec({**SMALL, "heads": 5}))


@pytest.mark.parametrize(
    ("guidance", "schedule", "widths"),
    [(1.0, "linear", [6] * 4), (3.0, "linear", [6, 12, 12, 12]), (3.0, "constant", [12] * 4)],
)
def test_the_pass_without_class_is_made_only_where_it_counts(guidance: float, schedule: str, widths: list[int]) -> None:
    model, seen = small_model(), []
    model.transformer.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    sampler = {**SAMPLER, "steps": 4, "guidance": guidance, "guidance_schedule": schedule}
    model.sample(torch.arange(6) % 3, torch_rng(0), sampler)
    assert seen == widths


@pytest.mark.parametrize("steps", [1, 3, 8, 64])
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_samples_are_ids_and_repeatable(steps: int, guidance: float) -> None:
    model, sampler = small_model(), {**SAMPLER, "steps": steps, "guidance": guidance}
    labels = torch.arange(20) % 3
    first, again, other = (model.sample(labels, torch_rng(s), sampler) for s in (1, 1, 2))
    assert first.shape == (20, 8, 1) and first.dtype == torch.int64
    assert first.min() >= 0 and first.max() < 16
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_sampling_ignores_and_leaves_the_global_generator() -> None:
    model, labels = small_model(), torch.arange(6) % 3
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = model.sample(labels, torch_rng(5), SAMPLER)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(model.sample(labels, torch_rng(5), SAMPLER), first)


def test_logits_made_in_slabs_change_nothing_when_greedy(monkeypatch: pytest.MonkeyPatch) -> None:
    model, labels, greedy = small_model(), torch.arange(6) % 3, {**SAMPLER, "temperature": 0.0, "gumbel": 0.0}
    whole = model.sample(labels, torch_rng(0), greedy)
    monkeypatch.setattr("vqbench.generators.maskgit.LOGITS_AT_ONCE", 100)
    assert torch.equal(model.sample(labels, torch_rng(1), greedy), whole)


def test_kept_ids_are_seen_by_later_steps_and_never_change() -> None:
    model, seen = small_model(), []
    forward = model.forward

    def spy(ids: Tensor, masked: Tensor, condition: Tensor) -> Tensor:
        seen.append((ids.clone(), masked.clone()))
        return forward(ids, masked, condition)

    model.forward = spy  # type: ignore[method-assign]
    final = model.sample(torch.arange(6) % 3, torch_rng(0), {**PLAIN, "steps": 5})[..., 0]
    assert [m.sum(dim=1).tolist() for _, m in seen] == [[c] * 6 for c in [8, *masked_counts(8, 5)[:-1]]]
    for (_, before), (ids, masked) in pairwise(seen):
        assert (masked <= before).all()
        assert torch.equal(ids[~masked], final[~masked])


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [("guidance_schedule", "linaer", "did you mean 'linear'"), ("steps", 0, "at least 1"), ("guidance", 0.5, "at least 1"),
     ("temperature", -1.0, "at least 0"), ("gumbel", -0.1, "at least 0")],
)  # fmt: skip
def test_sampler_options_out_of_range_are_refused(option: str, value: Any, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        small_model().sample(torch.zeros(1, dtype=torch.long), torch_rng(0), {**SAMPLER, option: value})


def test_what_stands_at_masked_positions_is_not_looked_at() -> None:
    model, masked = small_model(), torch.tensor([[True, False] * 4])
    ids, labels = torch.randint(0, 16, (1, 8), generator=torch_rng(0)), torch.tensor([1])
    hidden = model(ids, masked, labels)
    assert torch.equal(model(torch.where(masked, 15 - ids, ids), masked, labels), hidden)
    assert not torch.allclose(model(torch.where(masked, ids, 15 - ids), masked, labels), hidden)


def test_loss_is_the_smoothed_cross_entropy_over_masked_ids() -> None:
    model = small_model(label_smoothing=0.1, class_drop=0.0)
    tokens, labels = torch.randint(0, 16, (5, 8, 1), generator=torch_rng(1)), torch.arange(5) % 3
    loss = model.losses(tokens, labels, torch_rng(2))["cross_entropy"]
    masked = draw_mask(5, 8, torch_rng(2))
    log_probs = model.logits(model(tokens[..., 0], masked, labels)).log_softmax(-1)
    target = 0.9 * torch.nn.functional.one_hot(tokens[..., 0], 16) + 0.1 / 16
    torch.testing.assert_close(loss, -(target * log_probs).sum(-1)[masked].mean())
    assert torch.equal(loss, model.losses(tokens, labels, torch_rng(2))["cross_entropy"])
    assert not torch.equal(loss, model.losses(tokens, labels, torch_rng(3))["cross_entropy"])


def test_dropped_classes_leave_only_the_null_class() -> None:
    tokens = torch.randint(0, 16, (5, 8, 1), generator=torch_rng(1))
    zeros, ones = torch.zeros(5, dtype=torch.long), torch.ones(5, dtype=torch.long)
    for drop, same in ((1.0, True), (0.0, False)):
        model = small_model(class_drop=drop)
        pair = [model.losses(tokens, labels, torch_rng(2))["cross_entropy"] for labels in (zeros, ones)]
        assert torch.equal(*pair) is same


def test_every_parameter_is_trained_under_bf16_autocast() -> None:
    model = build(make_spec({**SMALL, "dropout": 0.1, "tie_vocabulary": False}, class_drop=0.5))
    tokens, labels = torch.randint(0, 16, (16, 8, 1), generator=torch_rng(1)), torch.arange(16) % 3
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model.losses(tokens, labels, torch_rng(2))["cross_entropy"]
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def two_patterns_of_each_class() -> Tensor:
    return torch.randint(0, 12, (3, 2, 6), generator=torch_rng(9))


def two_patterns(count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Ids (count, 6, 1) of 3 classes: each class has two whole patterns, drawn 0.75 to 0.25."""
    labels = torch.randint(0, 3, (count,), generator=rng)
    rare = (torch.rand(count, generator=rng) < 0.25).long()
    return two_patterns_of_each_class()[labels, rare][..., None], labels


def train_on_patterns(steps: int = 400) -> tuple[MaskGIT, list[float]]:
    torch.manual_seed(0)
    model = build(make_spec(n=6, k=12, class_drop=0.1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.96))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    losses = []
    for step in range(steps):
        rng = torch_rng(0, "train", step)
        loss = model.losses(*two_patterns(64, rng), rng)["cross_entropy"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return model.eval(), losses


def test_it_learns_a_joint_distribution_and_samples_it() -> None:
    model, losses = train_on_patterns()
    assert sum(losses[-20:]) < 0.3 * sum(losses[:20])  # not to 0: which of the two patterns it is, is chance
    labels, patterns = torch.arange(900) % 3, two_patterns_of_each_class()

    def hits(**sampler: Any) -> Tensor:
        ids = model.sample(labels, torch_rng(1), {**PLAIN, **sampler})[..., 0]
        return (ids[:, None] == patterns[labels]).all(dim=-1)  # (900, 2): whole patterns of the class asked for

    stepwise = hits(steps=6)
    assert stepwise.any(dim=1).float().mean() > 0.85
    for label in range(3):  # a quarter in training; going by confidence favours the common one somewhat
        assert 0.08 < stepwise[labels == label, 1].float().mean() < 0.32
    # in one step the ids are independent, 0.75^6 + 0.25^6 of them whole: the joint distribution comes from the steps
    assert hits(steps=1).any(dim=1).float().mean() < 0.4
    assert hits(steps=6, temperature=0.0, gumbel=0.0)[:, 0].all()
    # guidance towards a class that the pass without one does not know keeps to that class
    assert hits(steps=6, guidance=2.0).any(dim=1).float().mean() > 0.8
