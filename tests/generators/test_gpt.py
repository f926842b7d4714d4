"""GPT: sizes as printed, causality, the cache, filters of the distribution, and that it learns what it is shown."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from vqbench.errors import SpecError
from vqbench.generators.base import build_generator
from vqbench.generators.gpt import GPT, OPTIONS, SAMPLER, build, codes_kept
from vqbench.generators.networks.causal import keep_likely
from vqbench.seeds import torch_rng
from vqbench.specs import GeneratorSpec, OptimizerSpec, TokenSpec, TrainingSpec

SMALL = {**OPTIONS, "layers": 2, "width": 32, "heads": 2}
ALL = {**SAMPLER, "top_k_share": 0.0}


def make_spec(
    options: dict[str, Any] = SMALL, n: int = 9, k: int = 16, classes: int = 3, **training: Any
) -> GeneratorSpec:
    optimizer = OptimizerSpec(name="adamw", lr=1e-3, betas=(0.9, 0.95))
    recipe = {"steps": 1, "batch_size": 4, "micro_batch": 4, "optimizer": optimizer, **training}
    tokens = TokenSpec(layout="raster", grid=3, num_tokens=n, code_dim=8, num_codes=k)
    return GeneratorSpec(
        family="gpt", tokenizer="t", dataset="d", recipe="r", tokens=tokens, num_classes=classes, options=options,
        training=TrainingSpec(**recipe),
    )  # fmt: skip


def small_model(seed: int = 0, **spec: Any) -> GPT:
    """An untrained model whose predictions depend strongly on its input, as a trained one's do."""
    torch.manual_seed(seed)
    model = build(make_spec(**spec)).eval()
    with torch.no_grad():
        for weight in (
            model.codes.weight,
            model.classes.weight,
            model.positions.normal_(std=0.02, generator=torch_rng(5)),
        ):
            weight.mul_(20)
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.mul_(10)
    return model


def sampled(model: GPT, labels: Tensor, **sampler: Any) -> Tensor:
    return model.sample(labels, torch_rng(1), {**ALL, **sampler})


def test_the_size_is_the_papers() -> None:
    """404M: 302M of blocks and one matrix over 100,000 codes."""
    with torch.device("meta"):
        model = build_generator(make_spec(OPTIONS, n=256, k=100_000, classes=1000))
    counts = model.parameter_counts()
    assert counts["blocks"] == pytest.approx(302e6, rel=0.01) and counts["vocabulary"] == 100_000 * 1024
    assert sum(counts.values()) == pytest.approx(404e6, rel=0.01)
    assert sum(counts.values()) == sum(p.numel() for p in model.parameters())


def test_an_untied_vocabulary_counts_twice() -> None:
    tied, untied = (build(make_spec({**SMALL, "tie_vocabulary": t})).parameter_counts() for t in (True, False))
    assert untied == {"blocks": tied["blocks"], "vocabulary": 2 * tied["vocabulary"]}


def test_an_id_is_predicted_from_those_before_it_alone() -> None:
    model, ids, labels = small_model(), torch.randint(16, (2, 8), generator=torch_rng(0)), torch.tensor([0, 1])
    before = model(labels, ids)
    changed = ids.clone()
    changed[:, 4] = (ids[:, 4] + 1) % 16
    after = model(labels, changed)
    assert torch.equal(before[:, :5], after[:, :5]) and (before[:, 5:] != after[:, 5:]).any(-1).all()
    assert (model(labels + 1, ids) != before).any(-1).all(), "every id depends on the class"


@pytest.mark.parametrize("options", [{}, {"guidance": 3.0}, {"top_k": 3}, {"top_p": 0.7}, {"temperature": 0.5}])
def test_cached_and_uncached_sampling_give_the_same_ids(options: dict[str, Any]) -> None:
    model, labels = small_model(), torch.arange(64) % 3
    one, other = (sampled(model, labels, cached=cached, **options) for cached in (True, False))
    assert torch.equal(one, other) and one.shape == (64, 9, 1)
    assert len(one.unique(dim=0)) > 16, "the images differ"


def test_samples_follow_the_rng_and_the_class() -> None:
    model, labels = small_model(), torch.zeros(8, dtype=torch.int64)
    assert torch.equal(sampled(model, labels), sampled(model, labels))
    assert not torch.equal(model.sample(labels, torch_rng(2), ALL), sampled(model, labels))
    assert not torch.equal(sampled(model, labels + 1, temperature=0.0), sampled(model, labels, temperature=0.0))


def test_the_first_id_is_drawn_from_the_models_distribution() -> None:
    model, count = small_model(n=1), 20_000
    labels = torch.zeros(count, dtype=torch.int64)
    drawn = torch.bincount(sampled(model, labels).flatten(), minlength=16) / count
    expected = model.logits(model(labels[:1], labels.new_empty(1, 0)))[0, 0].softmax(0)
    assert torch.allclose(drawn, expected, atol=4 * 0.5 / count**0.5)


def test_guidance_of_one_is_off_and_more_moves_away_from_no_class() -> None:
    model, label, none = small_model(n=1), torch.tensor([1]), torch.tensor([3])
    given, free = (model.logits(model(c, c.new_empty(1, 0)))[0, 0] for c in (label, none))
    guided = 5 * given - 4 * free
    assert sampled(model, label, guidance=5.0, temperature=0.0).item() == guided.argmax().item()
    assert sampled(model, label, temperature=0.0).item() == given.argmax().item()


def test_filters_keep_what_they_say() -> None:
    logits = torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.7, 0.1, 0.1, 0.1]]).log()
    kept = keep_likely(logits, 2, 1.0).isfinite()
    assert kept.tolist() == [[False, True, False, True], [True, True, True, True]]  # equal ones at the edge stay
    assert keep_likely(logits, 0, 0.6).isfinite().tolist() == [[False, True, False, True], [True, False, False, False]]
    assert keep_likely(logits, 0, 1e-9).isfinite().sum() == 2, "the likeliest stays"
    assert torch.equal(keep_likely(logits, 9, 1.0), logits)


def test_top_p_is_a_share_of_the_distribution_at_its_temperature() -> None:
    """By hand at T = 2: the flatter distribution needs more ids for 0.6, and they are drawn by its probabilities."""
    model, count = small_model(n=1), 20_000
    labels = torch.zeros(count, dtype=torch.int64)
    logits = model.logits(model(labels[:1], labels.new_empty(1, 0)))[0, 0].detach()
    kept = {}
    for heat in (1.0, 2.0):
        flat, held = (logits / heat).softmax(0), 0.0
        kept[heat] = []
        for code in flat.argsort(descending=True).tolist():
            if held >= 0.6:
                break
            kept[heat].append(code)
            held += flat[code].item()
    assert len(kept[2.0]) > len(kept[1.0]), "else this says nothing of the order"
    expected = torch.zeros(16)
    expected[kept[2.0]] = (logits[kept[2.0]] / 2).softmax(0)
    drawn = torch.bincount(sampled(model, labels, temperature=2.0, top_p=0.6).flatten(), minlength=16) / count
    assert torch.allclose(drawn, expected, atol=4 * 0.5 / count**0.5)
    assert set(drawn.nonzero().flatten().tolist()) == set(kept[2.0])


@pytest.mark.parametrize(
    ("share", "codes", "kept"), [(0.1, 100_000, 10_000), (0.1, 64, 6), (0.001, 64, 1), (0.0, 64, 0)]
)
def test_top_k_as_a_share_of_the_vocabulary(share: float, codes: int, kept: int) -> None:
    assert codes_kept({**SAMPLER, "top_k_share": share}, codes) == kept


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"top_k": 5}, "set one to 0"),
        ({"top_p": 0.0}, r"top_p is 0.0; it must be in \(0, 1\]"),
        ({"top_k_share": 1.5}, "top_k_share is 1.5"),
        ({"guidance": 0.5}, "guidance is 0.5; it must be at least 1"),
    ],
)
def test_sampler_options_out_of_range_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        small_model().sample(torch.tensor([0]), torch_rng(0), {**SAMPLER, **change})


@pytest.mark.parametrize(
    ("option", "message"), [({"heads": 5}, "does not divide"), ({"token_keep": 1.5}, "token_keep")]
)
def test_options_that_do_not_fit_are_refused(option: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        build(make_spec({**SMALL, **option}))


def test_it_learns_a_sequence_for_each_class_and_keeps_its_loss_under_noise() -> None:
    torch.manual_seed(0)
    model = build(make_spec({**SMALL, "token_keep": 0.9}))
    labels = torch.arange(3)
    ids = torch.randint(16, (3, 9, 1), generator=torch_rng(3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(150):
        loss = model.losses(ids, labels, torch_rng(step))["cross_entropy"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3
    assert torch.equal(model.eval().sample(labels, torch_rng(0), {**ALL, "temperature": 0.0}), ids)


def test_replaced_tokens_are_read_and_not_predicted() -> None:
    """With nothing kept the loss is that of ids from the class and noise; a kept sequence gives another."""
    ids, labels = torch.randint(16, (4, 9, 1), generator=torch_rng(3)), torch.zeros(4, dtype=torch.int64)
    losses = []
    for keep in (0.0, 1.0):
        model = small_model(options={**SMALL, "token_keep": keep})
        losses.append(model.losses(ids, labels, torch_rng(0))["cross_entropy"])
        if keep == 1.0:
            logits = model.logits(model(labels, ids[:, :-1, 0]))
            by_hand = -logits.log_softmax(-1).gather(2, ids).mean()
            torch.testing.assert_close(losses[1], by_hand)
    assert not torch.isclose(*losses)
