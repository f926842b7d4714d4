"""Arrays and tensors to uint8 RGB images: layout, range and rounding.

Letters: H W pixels, C channels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from vqbench.errors import DataError, SpecError
from vqbench.eval.decoding_images import Decoded, to_rgb

CHANNELS = (1, 3, 4)  # gray, RGB, RGB with alpha
RANGES = ((0, 1), (-1, 1))
SLACK = 1e-6  # of the range: float32 rounding of a value that is meant to be the limit


class Numbers(NamedTuple):
    """How numbers become pixels.

    Attributes:
        value_range: (0, 1) or (-1, 1), of floats; None where there is only uint8.
        rounding: "nearest" or "truncate".
        channels_first: (C, H, W) instead of (H, W, C).
    """

    value_range: tuple[float, float] | None
    rounding: str
    channels_first: bool

    def image(self, values: np.ndarray | torch.Tensor, kind: str, name: str) -> Decoded:
        """One image of uint8 or float values; one channel is gray, a fourth one is alpha.

        Raises:
            DataError: values that are not finite or out of range, or transparent pixels.
        """
        array = _array(values)
        array = array.transpose(1, 2, 0) if self.channels_first else array  # (H, W, C)
        done: tuple[str, ...] = ()
        if array.dtype != np.uint8:
            array, done = self._levels(array, name), (f"floats to 256 levels ({self.rounding})",)
        array = np.ascontiguousarray(array)
        if array.shape[2] == 3:
            return Decoded(array, kind, done)
        rgb, rules = to_rgb(Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array), name)
        return Decoded(rgb, kind, (*done, *rules))

    def size(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """(H, W) of an image of `shape`."""
        return (shape[1], shape[2]) if self.channels_first else (shape[0], shape[1])

    def _levels(self, values: np.ndarray, name: str) -> np.ndarray:
        assert self.value_range is not None, "floats of an unknown range"
        low, high = self.value_range
        floats = values.astype(np.float32)  # what `vqbench.data.to_uint8` and the papers' scripts compute in
        least, most, slack = float(floats.min()), float(floats.max()), SLACK * (high - low)
        if not (np.isfinite(least) and np.isfinite(most)):  # a NaN makes both NaN
            raise DataError(f"{name} holds values that are not finite; they are no image, mend what made them")
        if least < low - slack or most > high + slack:
            raise DataError(
                f"{name} holds values from {least:.6g} to {most:.6g}, outside {low:g} .. {high:g}; "
                "clip them if that is meant, or give the right range"
            )
        scaled = (floats - np.float32(low)) * np.float32(255 / (high - low))
        rounded: np.ndarray = np.rint(scaled) if self.rounding == "nearest" else np.trunc(scaled)
        return rounded.clip(0, 255).astype(np.uint8)


def _array(values: np.ndarray | torch.Tensor) -> np.ndarray:
    if isinstance(values, np.ndarray):
        return values
    values = values.detach().cpu()
    found: np.ndarray = (values.float() if values.is_floating_point() else values).numpy()  # numpy has no bfloat16
    return found


def numbers_of(
    shape: tuple[int, ...], dtype: Any, value_range: tuple[float, float] | None, rounding: str, name: str
) -> Numbers:
    """How images of `shape`, (H, W, C) or (C, H, W), and of a numpy or torch `dtype` are read.

    Raises:
        SpecError: a range that is neither (0, 1) nor (-1, 1).
        DataError: the layout cannot be told, or numbers that are neither uint8 nor floats of a known range.
    """
    kind = str(dtype).removeprefix("torch.")
    if value_range is not None and tuple(value_range) not in RANGES:
        raise SpecError(f"value_range is {tuple(value_range)}; (0, 1) and (-1, 1) are known")
    if len(shape) != 3 or (shape[0] in CHANNELS) == (shape[2] in CHANNELS):
        raise DataError(f"{name} holds images of shape {shape}; wanted is (H, W, C) or (C, H, W) with 3 channels")
    if kind != "uint8" and "float" not in kind:
        raise DataError(f"{name} holds {kind}; give uint8, or floats with their value_range")
    if kind != "uint8" and value_range is None:
        raise DataError(f"{name} holds {kind} of an unknown range; give value_range=(0, 1) or (-1, 1), or uint8")
    return Numbers(value_range, rounding, shape[2] not in CHANNELS)
