"""Reading images from arrays, tensors and data sets: by which rule numbers become uint8, and which are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vqbench.data import to_float, to_uint8
from vqbench.errors import DataError, SpecError, UserError
from vqbench.eval.sources import open_source

from .image_sets import ADM, TRUNCATE, Items, read


def test_floats_are_rounded_by_the_protocols_rule() -> None:
    levels = np.arange(256, dtype=np.uint8)
    images = np.stack([levels, levels[::-1], levels]).reshape(1, 3, 16, 16).transpose(0, 2, 3, 1)
    floats = to_float(images)
    assert np.array_equal(read(open_source(floats, ADM, value_range=(-1, 1))), to_uint8(floats))
    assert np.array_equal(to_uint8(floats), images)
    cut = read(open_source(floats, TRUNCATE, value_range=(-1, 1)))
    assert np.array_equal(cut, ((floats + 1) * 127.5).to(torch.uint8).permute(0, 2, 3, 1).numpy())
    assert int((cut != images).sum()) > 0  # which is why it is a rule, and not the default
    exact = images.astype(np.float64) / 255
    assert np.array_equal(read(open_source(exact, ADM, value_range=(0, 1))), images)
    half = torch.full((1, 3, 2, 2), 0.3, dtype=torch.bfloat16)
    assert (read(open_source(half, ADM, value_range=(0, 1))) == round(255 * float(half[0, 0, 0, 0]))).all()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-1, 1, width=32), min_size=12, max_size=12))
def test_rounding_agrees_with_the_librarys_own(values: list[float]) -> None:
    floats = torch.tensor(values, dtype=torch.float32).reshape(1, 3, 2, 2)
    assert np.array_equal(read(open_source(floats, ADM, value_range=(-1, 1))), to_uint8(floats))


BAD_NUMBERS: dict[str, tuple[Any, dict[str, Any], type[UserError], str]] = {
    "no range": (np.zeros((2, 8, 8, 3), np.float32), {}, DataError, r"unknown range; give value_range"),
    "another range": (
        np.zeros((2, 8, 8, 3)),
        {"value_range": (0, 255)},
        SpecError,
        r"\(0, 1\) and \(-1, 1\) are known",
    ),
    "beyond": (
        np.full((2, 8, 8, 3), 1.01),
        {"value_range": (0, 1)},
        DataError,
        r"0 of array holds .*1\.01.*outside 0 \.\. 1",
    ),
    "below": (torch.full((2, 3, 8, 8), -0.1), {"value_range": (0, 1)}, DataError, "0 of tensor .*outside"),
    "NaN": (np.full((2, 8, 8, 3), np.nan), {"value_range": (0, 1)}, DataError, "not finite"),
    "infinity": (np.full((2, 8, 8, 3), -np.inf), {"value_range": (-1, 1)}, DataError, "not finite"),
    "int64": (np.zeros((2, 8, 8, 3), np.int64), {}, DataError, "holds int64; give uint8"),
    "uint16": (torch.zeros((2, 3, 8, 8), dtype=torch.int16), {}, DataError, "holds int16"),
    "flat": (np.zeros((2, 8, 8), np.uint8), {}, DataError, r"shape \(8, 8\)"),
    "five channels": (np.zeros((2, 8, 8, 5), np.uint8), {}, DataError, r"\(8, 8, 5\)"),
    "two layouts": (np.zeros((2, 3, 8, 3), np.uint8), {}, DataError, r"\(3, 8, 3\)"),
    "none": (np.zeros((0, 8, 8, 3), np.uint8), {}, DataError, "no images"),
    "scalar": (np.zeros((), np.uint8), {}, DataError, "no images"),
    "ghost": (np.zeros((2, 8, 8, 4), np.uint8), {}, DataError, "0 of array has transparent pixels"),
    "words": (Items(["a", "b"]), {}, DataError, r"0 of Items is a str"),
    "no items": (Items([]), {}, DataError, "no images"),
    "no set": (7, {}, DataError, "int is no set of images"),
}


@pytest.mark.parametrize("kind", BAD_NUMBERS)
def test_numbers_that_are_no_images_are_refused(kind: str) -> None:
    what, options, error, message = BAD_NUMBERS[kind]
    with pytest.raises(error, match=message):
        read(open_source(what, ADM, **options))


def test_gray_and_opaque_arrays_become_rgb() -> None:
    gray = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), dtype=np.uint8)
    source = open_source(gray, ADM)
    assert np.array_equal(read(source), gray.repeat(3, 3)) and source.converted == {"grayscale to RGB": 3}
    full = np.concatenate([gray.repeat(3, 3), np.full_like(gray, 255)], 3)
    source = open_source(full.transpose(0, 3, 1, 2), ADM)
    assert np.array_equal(read(source), gray.repeat(3, 3)) and source.converted == {"opaque alpha dropped": 3}
