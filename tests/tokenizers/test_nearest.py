"""nearest_code against brute force in float64, its ties and its memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vqbench.tokenizers.quantizers import nearest
from vqbench.tokenizers.quantizers.nearest import nearest_code


def brute_force(vectors: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    gap = vectors.double().numpy()[:, None] - codebook.double().numpy()[None]
    return torch.from_numpy(np.square(gap).sum(-1).argmin(1))  # argmin takes the first of equals


@contextmanager
def chunks_of(codes: int) -> Iterator[None]:
    """Few codes a chunk, a third of them a block, four vectors at once: small sets cross every border."""
    small = {"_CODES_AT_ONCE": codes, "_BLOCK": max(1, codes // 3), "_VECTORS": 4, "_GROUP": 4}
    before = {name: getattr(nearest, name) for name in small}
    try:
        for name, value in small.items():
            setattr(nearest, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(nearest, name, value)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**31), vectors=st.integers(0, 9), codes=st.integers(1, 40), dim=st.integers(1, 5),
    chunk=st.integers(1, 45), step=st.sampled_from([1.0, 0.25, 2.0**-20, 2.0**30, 2.0**100]),
    offset=st.sampled_from([0.0, 1.0, 4096.0]),
)  # fmt: skip
def test_ties_go_to_the_lowest_index(
    seed: int, vectors: int, codes: int, dim: int, chunk: int, step: float, offset: float
) -> None:
    """On a coarse lattice distances are exact in float64, so most arg-mins are ties, by duplicates and by symmetry."""
    rng = np.random.default_rng(seed)
    z, e = (torch.from_numpy(rng.integers(-2, 3, (n, dim)) + offset).float() * step for n in (vectors, codes))
    with chunks_of(chunk):
        found = nearest_code(z, e)
    assert found.dtype == torch.int64
    assert torch.equal(found, brute_force(z, e))


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**31), codes=st.integers(1, 60), dim=st.integers(1, 33), chunk=st.integers(1, 70),
    offset=st.sampled_from([0.0, 1.0, 1e3, 1e6]), spread=st.sampled_from([1.0, 1e-3, 1e-6, 0.0]),
    scale=st.sampled_from([1.0, 1e-30, 1e19, 1e30]),
)  # fmt: skip
def test_near_ties_and_big_offsets(
    seed: int, codes: int, dim: int, chunk: int, offset: float, spread: float, scale: float
) -> None:
    """Codes closer to each other than float32 scores can tell, far from the origin, and beyond float32's squares."""
    rng = np.random.default_rng(seed)
    z = torch.from_numpy((rng.normal(size=(7, dim)) + offset) * scale).float()
    e = torch.from_numpy((rng.normal(size=(1, dim)) + spread * rng.normal(size=(codes, dim)) + offset) * scale).float()
    with chunks_of(chunk):
        assert torch.equal(nearest_code(z, e), brute_force(z, e))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_are_compared_as_they_are(dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(0)
    z, e = (torch.randn(n, 6, generator=rng, dtype=torch.float64).to(dtype) for n in (50, 200))
    assert torch.equal(nearest_code(z, e), brute_force(z, e))


def test_float64_differences_below_float32_decide() -> None:
    e = torch.tensor([[1.0 + 1e-12], [1.0], [1.0 - 1e-12]], dtype=torch.float64)
    assert nearest_code(e, e).tolist() == [0, 1, 2]


@pytest.mark.parametrize("scale", [3e18, 6e18, 1.2e19, 3e19, 1e20])
@pytest.mark.parametrize("dim", [1, 2, 5])
def test_scores_that_overflow_in_part(scale: float, dim: int) -> None:
    """Around float32's largest square some scores are finite, some infinite, and the lowest is not always the nearest."""
    rng = torch.Generator().manual_seed(5)
    for _ in range(40):
        z, e = (torch.randn(n, dim, generator=rng) * scale for n in (60, 6))
        assert torch.equal(nearest_code(z, e), brute_force(z, e))


def test_autocast_and_low_matmul_precision_change_nothing() -> None:
    rng = torch.Generator().manual_seed(1)
    z, e = torch.randn(64, 16, generator=rng), torch.randn(500, 16, generator=rng)
    expected = brute_force(z, e)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(nearest_code(z, e), expected)
    matmul: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        assert torch.equal(nearest_code(z, e), expected)
    finally:
        matmul.fp32_precision = before


def test_bound_covers_rounded_matmuls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores from inputs truncated to bf16's seven bits stay exact once the bound is bf16's: what torch may be set to do."""
    exact = torch.mm

    def truncated(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        a, b = ((t.contiguous().view(torch.int32) & ~0xFFFF).view(torch.float32) for t in (a, b))
        return exact(a, b, out=out)

    rng = torch.Generator().manual_seed(2)
    z, e = torch.randn(100, 8, generator=rng), torch.randn(2000, 8, generator=rng)
    monkeypatch.setattr(torch, "mm", truncated)
    assert not torch.equal(nearest_code(z, e), brute_force(z, e))  # the truncation does matter
    for setting in nearest._INPUT_ERROR:
        monkeypatch.setitem(nearest._INPUT_ERROR, setting, nearest._INPUT_ERROR["bf16"])
    assert torch.equal(nearest_code(z, e), brute_force(z, e))


@pytest.mark.parametrize(("codes", "dim"), [(5000, 3), (4096, 8), (16385, 2), (127, 4), (1, 4)])
def test_blocks_as_they_are_and_codebooks_that_fill_none(codes: int, dim: int) -> None:
    """Several blocks and a last one that is filled up; a third of the codes occur twice, some in another block."""
    rng = torch.Generator().manual_seed(4)
    z, e = torch.randn(1500, dim, generator=rng), torch.randn(codes, dim, generator=rng)
    e[-(codes // 3) :] = e[: codes // 3][-(codes // 3) :] if codes > 2 else e
    expected = torch.cat([torch.cdist(part.double(), e.double(), compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
                          for part in z.split(100)])  # fmt: skip
    assert torch.equal(nearest_code(z, e), expected)


def test_what_is_not_finite_gets_an_id_in_range() -> None:
    rng = torch.Generator().manual_seed(3)
    z, e = torch.randn(5, 4, generator=rng), torch.randn(9, 4, generator=rng)
    expected = brute_force(z, e)
    z[1, 2], z[3, 0] = torch.nan, torch.inf
    found = nearest_code(z, e)
    assert found[[0, 2, 4]].equal(expected[[0, 2, 4]])
    assert found[[1, 3]].tolist() == [0, 0]
    e[4] = torch.nan
    assert nearest_code(z, e).tolist() == [0] * 5


def test_no_gradient_and_misfits_are_refused() -> None:
    z = torch.randn(3, 4, requires_grad=True)
    assert not nearest_code(z, z).requires_grad
    for other in (torch.zeros(5, 3), torch.zeros(0, 4), torch.zeros(4)):
        with pytest.raises(ValueError, match="do not fit"):
            nearest_code(z.detach(), other)


MEASURE = """
import torch
from vqbench.tokenizers.quantizers.nearest import nearest_code
torch.set_num_threads(1)
def status(key):
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(key)) / 1024
rng = torch.Generator().manual_seed(0)
z, e = torch.randn(512, 16, generator=rng), torch.randn(131072, 16, generator=rng)
twins = e[::2].repeat_interleave(2, dim=0)  # every arg-min is a tie: all vectors are compared again
nearest_code(z[:64], e[:512])  # what libraries allocate once
before = status("VmRSS")
nearest_code(z, e, memory_mb=48)
ids = nearest_code(z, twins, memory_mb=48)
print(status("VmHWM") - before)
assert not (ids % 2).any()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_bound_holds_for_a_large_codebook() -> None:
    """K = 131072: the whole matrix would take 256 MiB. A few numbers for each code besides the bound are allowed for."""
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 48 + 8
