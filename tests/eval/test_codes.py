"""Codebook usage and unique ratio against sets counted in Python."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqbench.errors import ArtifactError
from vqbench.eval.unique_ratio import UniqueRatio
from vqbench.eval.usage import Usage


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 12), st.integers(1, 2), st.integers(1, 20))
def test_usage_and_unique_ratio_count_like_sets(seed: int, images: int, tokens: int, slots: int, codes: int) -> None:
    ids = np.random.default_rng(seed).integers(0, codes, (images, tokens, slots)).astype(np.int32)
    usage, unique = Usage(codes), UniqueRatio()
    for metric in (usage, unique):
        metric.update(ids[:1])
        metric.update(ids[1:])
    assert usage.compute()["usage"] == pytest.approx(100 * len(set(ids.ravel().tolist())) / codes)
    shares = [len(set(image.ravel().tolist())) / (tokens * slots) for image in ids]
    assert unique.compute()["unique_ratio"] == pytest.approx(100 * sum(shares) / images)
    assert usage.count == unique.count == images


def test_bounds() -> None:
    usage, unique = Usage(4), UniqueRatio()
    usage.update(np.arange(4).reshape(1, 4, 1))
    unique.update(np.arange(4).reshape(1, 4, 1))
    assert usage.compute() == {"usage": 100.0} and unique.compute() == {"unique_ratio": 100.0}
    unique.update(np.zeros((1, 4, 1), int))
    assert unique.compute() == {"unique_ratio": 62.5}
    assert math.isnan(Usage(4).compute()["usage"])


@pytest.mark.parametrize("bad", [-1, 4])
def test_ids_of_another_codebook_are_refused(bad: int) -> None:
    with pytest.raises(ArtifactError, match="codebook of 4"):
        Usage(4).update(np.array([[[0], [bad]]]))
