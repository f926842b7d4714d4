"""Each resampler against the library it is named after."""

from __future__ import annotations

import warnings
from typing import Any, cast, get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from vqbench.errors import SpecError
from vqbench.eval.protocols import Resampler
from vqbench.eval.resize import resize

CPU = torch.device("cpu")
SIZES = [(32, 32, 299), (256, 256, 299), (512, 384, 299), (300, 301, 299), (24, 40, 17), (1, 3, 8)]


def photos(height: int, width: int, count: int = 2) -> np.ndarray:
    """Noise, then black and white squares: the hardest edges."""
    noise = np.random.default_rng(height).integers(0, 256, (count, height, width, 3)).astype(np.uint8)
    noise[-1] = 255 * ((np.arange(height)[:, None, None] // 2 + np.arange(width)[:, None] // 2) % 2)
    return noise


def planes(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float()


@pytest.mark.parametrize(("height", "width", "size"), SIZES)
def test_tensorflow_bilinear(height: int, width: int, size: int) -> None:
    some = photos(height, width)
    expected = interpolate_bilinear_2d_like_tensorflow1x(planes(some), (size, size), align_corners=False)
    torch.testing.assert_close(resize(some, "tf1-bilinear", size, CPU), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("height", "width", "size"), SIZES)
@pytest.mark.parametrize("antialias", [False, True])
def test_torch_bilinear(height: int, width: int, size: int, antialias: bool) -> None:
    some = photos(height, width)
    expected = F.interpolate(planes(some), (size, size), mode="bilinear", align_corners=False, antialias=antialias)
    how: Resampler = "torch-bilinear-antialias" if antialias else "torch-bilinear"
    torch.testing.assert_close(resize(some, how, size, CPU), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("height", "width", "size"), SIZES)
def test_pil_bicubic_on_floats(height: int, width: int, size: int) -> None:
    some = photos(height, width)
    expected = [
        [
            np.asarray(Image.fromarray(plane).resize((size, size), Image.Resampling.BICUBIC)).clip(0, 255)
            for plane in np.moveaxis(image.astype(np.float32), 2, 0)
        ]
        for image in some
    ]
    found = resize(some, "pil-bicubic", size, CPU)
    torch.testing.assert_close(found, torch.tensor(np.array(expected)), rtol=0, atol=1e-3)
    assert found.min() >= 0 and found.max() <= 255


def test_clean_fids_own_resizer() -> None:
    from cleanfid.resize import build_resizer

    some = photos(256, 256)
    with warnings.catch_warnings(action="ignore"):  # it passes Pillow a deprecated argument
        expected = np.stack([build_resizer("clean")(image) for image in some])
    torch.testing.assert_close(
        resize(some, "pil-bicubic", 299, CPU), torch.from_numpy(expected).permute(0, 3, 1, 2), rtol=0, atol=1e-3
    )


@pytest.mark.parametrize(("how", "filter"), [("pil-bicubic-uint8", 3), ("pil-bilinear-uint8", 2)])
def test_pil_on_levels_is_bit_exact(how: Any, filter: int) -> None:
    some = photos(256, 200)
    expected = [np.asarray(Image.fromarray(image).resize((224, 224), Image.Resampling(filter))) for image in some]
    assert torch.equal(resize(some, how, 224, CPU), planes(np.stack(expected)))


def test_the_resamplers_differ_where_pixels_are_dropped() -> None:
    """Six definitions, six results: none is another's by mistake."""
    some = photos(97, 97)
    kinds = [how for how in get_args(Resampler) if how != "none"]
    found = [resize(some, how, 40, CPU) for how in kinds]
    apart = [float((a - b).abs().max()) for i, a in enumerate(found) for b in found[:i]]
    assert len(apart) == 15 and min(apart) > 0.4


@pytest.mark.parametrize("how", get_args(Resampler))
def test_images_of_the_right_size_stay_as_they_are(how: Any) -> None:
    some = photos(20, 20)
    assert torch.equal(resize(some, how, 20, CPU), planes(some))
    frozen = some[:, ::-1]  # neither contiguous nor writeable
    frozen.flags.writeable = False
    assert torch.equal(resize(frozen, how, 20, CPU), planes(some[:, ::-1].copy()))


@pytest.mark.parametrize("level", [0, 1, 127, 255])
def test_flat_images_stay_flat(level: int) -> None:
    flat = np.full((1, 50, 70, 3), level, np.uint8)
    for how in get_args(Resampler):
        if how != "none":
            torch.testing.assert_close(
                resize(flat, how, 33, CPU), torch.full((1, 3, 33, 33), float(level)), rtol=0, atol=1e-4
            )


def test_no_resize_of_other_sizes() -> None:
    assert resize(photos(5, 7), "none", None, CPU).shape == (2, 3, 5, 7)
    with pytest.raises(SpecError, match="images of 8x8 and its protocol does not resize, these are 5x7"):
        resize(photos(5, 7), cast(Resampler, "none"), 8, CPU)
