"""Codebook usage, entropy, perplexity and unique ratio against counts made in Python."""

from __future__ import annotations

import math
from collections import Counter
from statistics import NormalDist, fmean, stdev

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from vqbench.errors import ArtifactError, SpecError
from vqbench.eval.base import Batch
from vqbench.eval.intervals import groups_of
from vqbench.eval.unique_ratio import UniqueRatio
from vqbench.eval.usage import STATISTICS, Usage
from vqbench.specs import TokenSpec

SCALES = TokenSpec(layout="multiscale", grid=3, num_tokens=14, code_dim=4, num_codes=9, num_slots=2, scales=(1, 2, 3))


def batch(ids: np.ndarray, first: int = 0) -> Batch:
    return Batch(np.arange(first, first + len(ids)), ids=ids)


def drawn(seed: int, images: int, tokens: int, slots: int, codes: int) -> np.ndarray:
    """Ids of a skewed codebook."""
    return np.minimum(np.random.default_rng(seed).geometric(0.3, (images, tokens, slots)) - 1, codes - 1)


def counted(ids: list[int], codes: int, threshold: float) -> dict[str, float]:
    """The four statistics by the definitions, in Python."""
    counts = Counter(ids)
    shares = [c / len(ids) for c in counts.values()]
    bits = -math.fsum(p * math.log2(p) for p in shares)
    above = sum(c / len(ids) >= threshold / codes for c in counts.values())
    return {"usage": 100 * len(counts) / codes, "usage_above": 100 * above / codes, "entropy": bits,
            "perplexity": 2**bits}  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 2**31), st.integers(1, 45), st.integers(1, 12), st.integers(1, 3), st.integers(1, 20),
    st.sampled_from([0.08, 0.5, 1.0, 2.0]),
)  # fmt: skip
def test_codes_are_counted_as_python_counts_them(
    seed: int, images: int, tokens: int, slots: int, codes: int, threshold: float
) -> None:
    ids = drawn(seed, images, tokens, slots, codes)
    usage, unique = Usage(codes, threshold=threshold), UniqueRatio()
    for metric in (usage, unique):
        metric.update(batch(ids[:1]))
        metric.update(batch(ids[1:], 1))
    found = usage.compute()
    parts = {"": ids} | ({f"[slot{q}]": ids[:, :, q] for q in range(slots)} if slots > 1 else {})
    assert set(found) == {name + part for name in STATISTICS for part in parts}
    for part, chosen in parts.items():
        for name, value in counted(chosen.ravel().tolist(), codes, threshold).items():
            assert found[name + part].value == pytest.approx(value, rel=1e-12, abs=1e-12), name + part
            assert found[name + part].n == images
    shares = [100 * len(set(image.ravel().tolist())) / (tokens * slots) for image in ids]
    ratio = unique.compute()["unique_ratio"]
    assert (ratio.value, ratio.n) == (pytest.approx(fmean(shares), rel=1e-12), images)
    if images > 1:
        half = NormalDist().inv_cdf(0.975) * stdev(shares) / math.sqrt(images)
        assert ratio[1:3] == pytest.approx((ratio.value - half, ratio.value + half), abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(20, 50), st.integers(1, 9), st.booleans())
def test_order_batches_and_shards_change_no_bit(seed: int, images: int, size: int, known: bool) -> None:
    rng = np.random.default_rng(seed)
    ids, order = drawn(seed, images, 14, 2, 9), rng.permutation(images)
    wholes, shards = [_metrics(known) for _ in range(2)], [_metrics(known) for _ in range(3)]
    for metric in wholes[0]:
        metric.update(batch(ids))
    for start in range(0, images, size):
        part = order[start : start + size]
        for metric in shards[int(rng.integers(3))]:
            metric.update(Batch(part, ids=ids[part]))
    for shard in rng.permutation(3):
        for mine, theirs in zip(wholes[1], shards[shard], strict=True):
            mine.merge(theirs)  # type: ignore[arg-type]
    for one, other in zip(*wholes, strict=True):
        assert one.compute() == other.compute()
        assert one.count == images


def _metrics(known: bool) -> tuple[Usage, UniqueRatio]:
    return Usage(SCALES if known else 9), UniqueRatio()


def test_scales_and_slots_are_counted_apart() -> None:
    ids = drawn(3, 25, 14, 2, 9)
    metric = Usage(SCALES)
    metric.update(batch(ids))
    found = metric.compute()
    parts = {"": ids, "[slot0]": ids[..., 0], "[slot1]": ids[..., 1], "[scale0]": ids[:, :1], "[scale1]": ids[:, 1:5],
             "[scale2]": ids[:, 5:]}  # fmt: skip
    assert set(found) == {name + part for part in parts for name in STATISTICS}
    for part, chosen in parts.items():
        for name, value in counted(chosen.ravel().tolist(), 9, 0.08).items():
            assert found[name + part].value == pytest.approx(value), name + part
    assert set(metric.units) == set(found)
    assert (metric.units["usage[slot1]"], metric.units["entropy"], metric.units["perplexity[scale2]"]) == (
        "%", "bits", "codes",
    )  # fmt: skip


def test_the_training_set_has_names_of_its_own() -> None:
    metric = Usage(4, on="train")
    metric.update(batch(np.zeros((1, 2, 2), int)))
    assert {"usage_train", "entropy_train[slot1]"} <= set(metric.compute()) == set(metric.units)
    assert "usage" in Usage(4, on="generated").compute()


def test_bounds() -> None:
    usage, unique = Usage(4), UniqueRatio()
    uniform = np.tile(np.arange(4).reshape(1, 4, 1), (30, 1, 1))
    for metric in (usage, unique):
        metric.update(batch(uniform))
    assert {name: e[:3] for name, e in usage.compute().items()} == {
        "usage": (100.0,) * 3, "usage_above": (100.0,) * 3, "entropy": (2.0,) * 3, "perplexity": (4.0,) * 3,
    }  # fmt: skip
    assert unique.compute()["unique_ratio"] == (100.0, 100.0, 100.0, 30)
    collapsed = Usage(4)
    collapsed.update(batch(np.zeros((5, 3, 1), int)))
    found = collapsed.compute()
    assert [found[name].value for name in STATISTICS] == [25.0, 25.0, 0.0, 1.0]
    assert math.isnan(found["entropy"].low)  # five images: no interval
    assert all(
        math.isnan(e.value) and e.n == 0 for e in (*Usage(4).compute().values(), *UniqueRatio().compute().values())
    )


def test_a_rare_code_is_used_but_not_above_the_threshold() -> None:
    """Uniform would be 25 hits a code; 0.08 of it is 2."""
    ids = np.array([0] * 50 + [1] * 47 + [2] * 2 + [3]).reshape(1, 100, 1)
    metric = Usage(4)
    metric.update(batch(ids))
    assert metric.compute()["usage"].value == 100.0 and metric.compute()["usage_above"].value == 75.0


def test_interval_is_the_delete_group_jackknife() -> None:
    ids = drawn(0, 40, 6, 1, 30)
    metric = Usage(30)
    metric.update(batch(ids))
    for name in STATISTICS:
        value = counted(ids.ravel().tolist(), 30, 0.08)[name]
        without = [counted(ids[groups_of(np.arange(40)) != g].ravel().tolist(), 30, 0.08)[name] for g in range(10)]
        half = float(stats.t.ppf(0.975, 9)) * math.sqrt(0.9 * sum((w - fmean(without)) ** 2 for w in without))
        found = metric.compute()[name]
        assert found.low == pytest.approx(max(value - half, 0.0)) and found.low < found.value
        assert found.high == pytest.approx(min(value + half, 100.0 if STATISTICS[name] == "%" else math.inf))


@pytest.mark.parametrize("bad", [-1, 4])
def test_ids_of_another_codebook_are_refused(bad: int) -> None:
    with pytest.raises(ArtifactError, match="codebook of 4"):
        Usage(4).update(batch(np.array([[[0], [bad]]])))


def test_ids_of_another_shape_are_refused() -> None:
    with pytest.raises(ArtifactError, match=r"expected \(images, 14, 2\)"):
        Usage(SCALES).update(batch(np.zeros((1, 14, 1), int)))
    metric, unique = Usage(4), UniqueRatio()
    for each in (metric, unique):
        each.update(batch(np.zeros((1, 3, 2), int)))
    with pytest.raises(ArtifactError, match="expected"):
        metric.update(batch(np.zeros((1, 3, 1), int)))
    with pytest.raises(ArtifactError, match="6 and of 3 ids"):
        unique.update(batch(np.zeros((1, 3, 1), int)))


def test_settings_are_checked() -> None:
    with pytest.raises(SpecError, match="above 0"):
        Usage(4, threshold=0.0)
    with pytest.raises(SpecError, match="14 positions"):
        Usage(SCALES.model_copy(update={"num_tokens": 9}))
    for other, differing in ((Usage(5), "codes 4 and 5"), (Usage(4, threshold=1.0), "threshold 0.08 and 1.0"),
                             (Usage(4, on="train"), "name usage and usage_train"),
                             (Usage(4, scales=(1, 2)), r"scales \[\] and \[1, 4\]")):  # fmt: skip
        with pytest.raises(SpecError, match=rf"cannot be merged \({differing}\)"):
            Usage(4).merge(other)


def test_codes_of_two_tokenizers_do_not_merge() -> None:
    for make, differing in ((lambda: Usage(4), "slots 1 and 2"), (UniqueRatio, "ids an image 3 and 6")):
        first, second, empty = make(), make(), make()
        first.update(batch(np.zeros((1, 3, 1), int)))
        second.update(batch(np.zeros((1, 3, 2), int)))
        first.merge(empty)
        empty.merge(second)
        assert empty.compute() == second.compute()
        with pytest.raises(SpecError, match=rf"cannot be merged \({differing}\)"):
            first.merge(second)
