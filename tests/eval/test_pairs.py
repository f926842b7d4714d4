"""PSNR, SSIM, MS-SSIM and LPIPS against scikit-image and lpips on whole arrays, and against formulas written out."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import lpips
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import uniform_filter
from skimage.color import rgb2gray
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import nn

from vqbench.errors import ArtifactError, MissingWeights, SpecError
from vqbench.eval.base import Batch, Estimate, Metric
from vqbench.eval.intervals import groups_of
from vqbench.eval.ms_ssim import MsSsim, smallest_side
from vqbench.eval.perceptual import Lpips, classifier_lpips, open_lpips
from vqbench.eval.protocols import SignalNoise, Window, load_protocol
from vqbench.eval.psnr import Psnr
from vqbench.eval.ssim import Ssim

# lpips builds its network through an argument of torchvision that is deprecated.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The parameter 'pretrained' is deprecated:UserWarning"),
    pytest.mark.filterwarnings("ignore:Arguments other than a weight enum:UserWarning"),
]

RGB = SignalNoise(space="rgb", pooling="images", data_range=255, identical="exclude")
UNIFORM = Window(window="uniform", size=7, data_range=255, channels="rgb", covariance="sample")
GAUSSIAN = Window(window="gaussian", size=11, sigma=1.5, data_range=255, channels="rgb", covariance="population")


def pairs(count: int = 5, height: int = 20, width: int = 20, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Smooth images and noisy versions of them, uint8 (count, height, width, 3)."""
    rng = np.random.default_rng(seed)
    images = uniform_filter(rng.integers(0, 256, (count, height, width, 3)).astype(float), (0, 5, 5, 0))
    images = (images - images.mean()) * 3 + 128
    noisy = images + rng.normal(0, 1, images.shape) * np.linspace(2, 40, count)[:, None, None, None]
    return images.round().clip(0, 255).astype(np.uint8), noisy.round().clip(0, 255).astype(np.uint8)


def batch(originals: np.ndarray, images: np.ndarray, start: int = 0) -> Batch:
    return Batch(np.arange(start, start + len(images)), images, originals)


def estimate(metric: Metric, originals: np.ndarray, images: np.ndarray) -> Estimate:
    """All pairs in one batch."""
    metric.update(batch(originals, images))
    (found,) = metric.compute().values()
    return found


def value(metric: Metric, originals: np.ndarray, images: np.ndarray) -> float:
    return estimate(metric, originals, images).value


@pytest.fixture(scope="module")
def alexnet() -> nn.Module:
    """LPIPS over AlexNet's shapes with random weights, and the wheel's linear weights; dropout on."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).train().requires_grad_(False)


# ---------------------------------------------------------------------------------------------------------------- PSNR


def test_psnr_is_scikit_images() -> None:
    a, b = pairs(7, 31, 18)
    expected = np.mean([peak_signal_noise_ratio(x, y, data_range=255) for x, y in zip(a, b, strict=True)])
    assert value(Psnr(RGB), a, b) == pytest.approx(expected, rel=1e-12)


def test_psnr_of_luma_is_scikit_images_of_luma() -> None:
    a, b = pairs(4)
    luma = [x.astype(float) @ [0.299, 0.587, 0.114] for x in (a, b)]
    expected = np.mean([peak_signal_noise_ratio(x, y, data_range=255) for x, y in zip(*luma, strict=True)])
    settings = RGB.model_copy(update={"space": "y"})
    assert value(Psnr(settings), a, b) == pytest.approx(expected, rel=1e-12)
    assert abs(value(Psnr(RGB), a, b) - expected) > 0.1  # luma and RGB are really different numbers


def test_the_vqgan_lc_protocol_gives_its_studio_range_luma() -> None:
    """Its script: Y = (65.481 R + 128.553 G + 24.966 B + 16) / 255 of RGB in [0, 1], PSNR with a peak of 1."""
    a, b = pairs(4)
    luma = [((x / 255) @ [65.481, 128.553, 24.966] + 16) / 255 for x in (a, b)]
    expected = np.mean([-10 * math.log10(((x - y) ** 2).mean()) for x, y in zip(*luma, strict=True)])
    assert value(Psnr(load_protocol("vqgan-lc-code").psnr), a, b) == pytest.approx(expected, rel=1e-12)


def test_colours_of_one_luma_have_no_error_in_luma() -> None:
    """A difference of colour whose luma is 0 exactly; in floating point a rest of 1e-14 would be some 300 dB."""
    r, g, b = next(
        (r, g, b) for r in range(1, 200) for g in range(-200, 200) for b in (-(299 * r + 587 * g) // 114,)
        if 299 * r + 587 * g + 114 * b == 0 and abs(b) < 200
    )  # fmt: skip
    first = np.full((1, 4, 4, 3), [max(0, -v) for v in (r, g, b)], np.uint8)
    second = np.full((1, 4, 4, 3), [max(0, v) for v in (r, g, b)], np.uint8)
    luma = Psnr(RGB.model_copy(update={"space": "y"}))
    assert math.isnan(value(luma, first, second)) and luma.identical == 1
    assert value(Psnr(RGB), first, second) > 0


@pytest.mark.parametrize("space", ["rgb", "y"])
def test_psnr_leaves_identical_pairs_out_and_counts_them(space: str) -> None:
    a, b = pairs()
    b[3] = a[3]
    settings = RGB.model_copy(update={"space": space})
    metric = Psnr(settings)
    keep = [0, 1, 2, 4]
    assert estimate(metric, a, b) == estimate(Psnr(settings), a[keep], b[keep])
    assert metric.compute()["psnr"].n == 4 and metric.identical == 1


@pytest.mark.parametrize("pooling", ["images", "mse"])
def test_psnr_of_identical_sets_is_undefined(pooling: str) -> None:
    a, _ = pairs()
    metric = Psnr(RGB.model_copy(update={"pooling": pooling}))
    found = estimate(metric, a, a)
    assert math.isnan(found.value) and math.isnan(found.low) and found.n == 0 and metric.identical == len(a)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 254), st.integers(1, 8))
def test_psnr_of_a_constant_error(level: int, error: int) -> None:
    a = np.full((1, 8, 8, 3), min(level, 255 - error), np.uint8)
    assert value(Psnr(RGB), a, a + np.uint8(error)) == pytest.approx(20 * math.log10(255 / error), rel=1e-12)


def test_pooled_psnr_is_of_the_mean_error_of_all_pairs() -> None:
    a, b = pairs(30)
    b[3] = a[3]
    metric = Psnr(RGB.model_copy(update={"pooling": "mse"}))
    found = estimate(metric, a, b)
    mse = ((a.astype(float) - b.astype(float)) ** 2).mean((1, 2, 3))
    assert found.value == pytest.approx(10 * math.log10(255**2 / mse.mean()), rel=1e-12)
    assert found.n == 30 and metric.identical == 1
    assert value(Psnr(RGB), a, b) - found.value > 1  # the two poolings are really different numbers
    without = [10 * math.log10(255**2 / mse[groups_of(np.arange(30)) != g].mean()) for g in range(10)]
    spread = math.sqrt(9 / 10 * np.sum((without - np.mean(without)) ** 2))
    assert found.high - found.value == pytest.approx(2.2621571627409915 * spread, rel=1e-6)


# ---------------------------------------------------------------------------------------------------------------- SSIM


def scikit_ssim(a: np.ndarray, b: np.ndarray, gaussian: bool, **options: object) -> float:
    more = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False} if gaussian else {}
    options = {"data_range": 255, "channel_axis": -1} | more | options
    return float(np.mean([structural_similarity(x, y, **options) for x, y in zip(a, b, strict=True)]))


@pytest.mark.parametrize("size", [(11, 11), (20, 37), (60, 150), (140, 17)])  # below, at and above blocks and strips
@pytest.mark.parametrize("window", [UNIFORM, GAUSSIAN], ids=["uniform", "gaussian"])
def test_ssim_is_scikit_images(window: Window, size: tuple[int, int]) -> None:
    a, b = pairs(3, *size)
    assert value(Ssim(window), a, b) == pytest.approx(scikit_ssim(a, b, window is GAUSSIAN), abs=1e-12)


@pytest.mark.parametrize(
    ("change", "options"),
    [
        ({"data_range": 510.0}, {"data_range": 510}),
        ({"covariance": "population"}, {"use_sample_covariance": False}),
        ({"size": 3}, {"win_size": 3}),
        ({"size": 13}, {"win_size": 13}),  # its sums are too large for float32
    ],
)
def test_ssim_under_other_settings(change: dict[str, object], options: dict[str, object]) -> None:
    a, b = pairs(3, 30, 40)
    expected = scikit_ssim(a, b, False, **options)
    assert value(Ssim(UNIFORM.model_copy(update=change)), a, b) == pytest.approx(expected, abs=1e-12)
    assert abs(expected - scikit_ssim(a, b, False)) > 1e-6


@pytest.mark.parametrize("channels", ["gray", "y"])
@pytest.mark.parametrize("window", [UNIFORM, GAUSSIAN], ids=["uniform", "gaussian"])
def test_ssim_of_one_channel(window: Window, channels: str) -> None:
    a, b = pairs(3)
    one = {"gray": lambda x: rgb2gray(x) * 255, "y": lambda x: x.astype(float) @ [0.299, 0.587, 0.114]}[channels]
    expected = scikit_ssim(one(a), one(b), window is GAUSSIAN, channel_axis=None)
    found = value(Ssim(window.model_copy(update={"channels": channels})), a, b)
    assert found == pytest.approx(expected, abs=1e-10)


def test_ssim_uniform_by_hand() -> None:
    a, b = pairs(1, 12, 15)
    channels = [ssim_channel(a[0, ..., c].astype(float), b[0, ..., c].astype(float)) for c in range(3)]
    assert value(Ssim(UNIFORM), a, b) == pytest.approx(np.mean(channels), abs=1e-12)


def ssim_channel(x: np.ndarray, y: np.ndarray) -> float:
    """The formula of Wang et al. 2004, window by window."""
    c1, c2, found = (0.01 * 255) ** 2, (0.03 * 255) ** 2, []
    for i in range(x.shape[0] - 6):
        for j in range(x.shape[1] - 6):
            u, v = x[i : i + 7, j : j + 7], y[i : i + 7, j : j + 7]
            cov = np.cov(u.ravel(), v.ravel())
            top = (2 * u.mean() * v.mean() + c1) * (2 * cov[0, 1] + c2)
            found.append(top / ((u.mean() ** 2 + v.mean() ** 2 + c1) * (cov[0, 0] + cov[1, 1] + c2)))
    return float(np.mean(found))


def means(x: torch.Tensor, y: torch.Tensor, data_range: float = 255) -> tuple[torch.Tensor, torch.Tensor]:
    """SSIM and its contrast part by five valid convolutions in float64: (B, 3, H, W) -> (B, 3) twice."""
    places = torch.arange(-5, 6, dtype=torch.float64)
    kernel = torch.exp(-(places[:, None] ** 2 + places[None, :] ** 2) / (2 * 1.5**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, 11, 11)
    ux, uy, xx, yy, xy = (F.conv2d(v, kernel, groups=3) for v in (x, y, x * x, y * y, x * y))
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    contrast = (2 * (xy - ux * uy) + c2) / (xx - ux**2 + yy - uy**2 + c2)
    return ((2 * ux * uy + c1) / (ux**2 + uy**2 + c1) * contrast).mean((2, 3)), contrast.mean((2, 3))


def tensors(*images: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(x).permute(0, 3, 1, 2).double() for x in images]


@pytest.mark.parametrize(("side", "factor"), [(256, 1), (385, 2), (650, 3)])  # the mean drops what is left over
def test_the_vqgan_lc_protocol_gives_piqs_ssim(side: int, factor: int) -> None:
    """As piq/ssim.py: mean-pooled by round(short side / 256), then valid convolutions with the Gaussian."""
    a, b = pairs(1, side, side + 9)
    x, y = (F.avg_pool2d(v, factor) for v in tensors(a, b))
    found = value(Ssim(load_protocol("vqgan-lc-code").ssim), a, b)
    assert found == pytest.approx(means(x, y)[0].mean().item(), abs=1e-10)


def test_the_window_decides_the_number() -> None:
    a, b = pairs()
    assert abs(value(Ssim(UNIFORM), a, b) - value(Ssim(GAUSSIAN), a, b)) > 1e-3


def test_ssim_keeps_its_sums_exact_under_lower_matmul_precision() -> None:
    a, b = pairs()
    before, precision = value(Ssim(UNIFORM), a, b), torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert value(Ssim(UNIFORM), a, b) == before
    finally:
        torch.set_float32_matmul_precision(precision)


@pytest.mark.parametrize("window", [UNIFORM, GAUSSIAN], ids=["uniform", "gaussian"])
def test_threads_change_no_bit_of_ssim(window: Window) -> None:
    a, b = pairs(6, 40, 150)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(value(Ssim(window), a, b))
            assert torch.get_num_threads() == count  # the workers' setting is theirs
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("window", [UNIFORM, GAUSSIAN], ids=["uniform", "gaussian"])
def test_ssim_refuses_images_below_its_window(window: Window) -> None:
    small = np.zeros((1, 30, window.size - 1, 3), np.uint8)
    with pytest.raises(SpecError, match=f"window of {window.size}"):
        Ssim(window).update(batch(small, small))


# ------------------------------------------------------------------------------------------------------------- MS-SSIM


def ms_ssim_by_hand(a: np.ndarray, b: np.ndarray) -> float:
    x, y = tensors(a, b)
    product = torch.ones(len(a), 3, dtype=torch.float64)
    for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        ssim, contrast = means(x, y)
        product *= F.relu(ssim if scale == 4 else contrast) ** weight
        x, y = halved(x), halved(y)
    return product.mean().item()


def halved(x: torch.Tensor) -> torch.Tensor:
    """2x2 means, the last row and column repeated where there is no partner."""
    x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2), mode="replicate")
    return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4


@pytest.mark.parametrize("size", [(176, 192), (171, 183)])  # even at every scale, and odd
def test_ms_ssim_by_hand(size: tuple[int, int]) -> None:
    a, b = pairs(2, *size)
    expected = ms_ssim_by_hand(a, b)
    assert value(MsSsim(GAUSSIAN), a, b) == pytest.approx(expected, abs=1e-12)
    assert value(MsSsim(UNIFORM), a, b) == pytest.approx(expected, abs=1e-12)  # the paper's window all the same
    assert abs(expected - value(Ssim(GAUSSIAN), a, b)) > 0.01


def test_ms_ssim_of_a_negative_is_0() -> None:
    """The contrast of an image and its negative is negative: its power is no number."""
    a, _ = pairs(1, 176, 176)
    assert value(MsSsim(GAUSSIAN), a, 255 - a) == 0.0 == ms_ssim_by_hand(a, 255 - a)


def test_ms_ssim_needs_room_for_five_scales() -> None:
    assert smallest_side(GAUSSIAN) == smallest_side(UNIFORM) == 160
    a, b = pairs(1, 161, 161)
    assert 0 < value(MsSsim(UNIFORM), a, b) < 1
    with pytest.raises(SpecError, match="sides above 160"):
        MsSsim(UNIFORM).update(batch(a[:, :160], b[:, :160]))


# --------------------------------------------------------------------------------------------------------------- LPIPS


def library(network: nn.Module, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """lpips' own forward, (B,)."""
    floats = [torch.from_numpy(x).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1 for x in (a, b)]
    with torch.no_grad():
        found: np.ndarray = network.eval()(*floats).double().flatten().numpy()
    return found


def test_lpips_over_alexnet_is_the_librarys(alexnet: nn.Module) -> None:
    a, b = pairs(6, 64, 71)
    expected = library(copy.deepcopy(alexnet), a, b)
    metric = Lpips(copy.deepcopy(alexnet))  # in train(): dropout must be switched off
    assert metric.values(b, a) == pytest.approx(expected, rel=1e-6, abs=1e-8)
    assert value(metric, a, b) == pytest.approx(expected.mean(), rel=1e-6)
    assert (expected > 1e-4).all()


def test_lpips_over_vgg16_is_the_librarys() -> None:
    with torch.random.fork_rng(), torch.device("meta"):
        network = lpips.LPIPS(net="vgg", pretrained=False, pnet_rand=True, verbose=False)
    network = network.to_empty(device="cpu")
    network.scaling_layer = lpips.ScalingLayer()
    rng = torch.Generator().manual_seed(0)
    for name, parameter in network.named_parameters():
        size = parameter[0].numel()
        parameter.data.normal_(0, (2 / size) ** 0.5, generator=rng)
        if name.startswith("lin"):
            parameter.data.abs_()
    a, b = pairs(3, 32, 32)
    expected = library(copy.deepcopy(network), a, b)
    assert Lpips(network).values(b, a) == pytest.approx(expected, rel=1e-6, abs=1e-8)
    assert (expected > 1e-5).all()


def test_lpips_over_the_classifier_is_the_librarys_unweighted_distance(classifier: nn.Module) -> None:
    a, b = pairs(3, 32, 32)
    network = classifier_lpips(classifier)
    expected = library(network, a, b)
    slices = [classifier.slices(x.float() / 127.5 - 1) for x in tensors(a, b)]
    by_hand = sum(
        (F.normalize(x, eps=1e-10) - F.normalize(y, eps=1e-10)).square().sum(1).mean((1, 2))
        for x, y in zip(*slices, strict=True)
    )
    assert expected == pytest.approx(by_hand.detach().double().numpy(), rel=1e-4)
    assert Lpips(network).values(b, a) == pytest.approx(expected, rel=1e-6, abs=5e-7)


def test_lpips_says_when_its_weights_are_damaged(alexnet: nn.Module) -> None:
    broken = copy.deepcopy(alexnet)
    next(broken.net.parameters()).data[0] = math.nan
    a, b = pairs(2, 64, 64)
    metric = Lpips(broken)
    with pytest.raises(ArtifactError, match="not finite"):
        metric.update(batch(a, b))
    assert metric.compute()["lpips"].n == 0


@pytest.fixture(scope="module")
def alexnet_file(alexnet: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trunk's weights as torchvision names them, with a layer that LPIPS has not."""
    state = {f"features.{name.split('.', 1)[1]}": tensor for name, tensor in alexnet.net.state_dict().items()}
    path = tmp_path_factory.mktemp("weights") / "alexnet.pth"
    torch.save(state | {"classifier.6.bias": torch.zeros(1000)}, path)
    return path


def test_open_lpips_reads_torchvisions_file(alexnet: nn.Module, alexnet_file: Path) -> None:
    a, b = pairs(2, 64, 64)
    opened = open_lpips("lpips-alexnet", alexnet_file)
    assert not opened.training and not any(p.requires_grad for p in opened.parameters())
    assert library(opened, a, b).tolist() == library(copy.deepcopy(alexnet), a, b).tolist()


def test_open_lpips_refuses_other_files(alexnet_file: Path, tmp_path: Path) -> None:
    state = torch.load(alexnet_file, weights_only=True)
    shapes = state | {"features.0.weight": torch.zeros(1)}
    for content in (b"", b"<html>404</html>", {"weights": 1}, shapes, [1, 2], {**state, "features.0.bias": None}):
        wrong = tmp_path / "wrong.pth"
        wrong.write_bytes(content) if isinstance(content, bytes) else torch.save(content, wrong)
        with pytest.raises(MissingWeights, match=r"wrong\.pth does not hold .*'lpips-alexnet'.*fetch it again"):
            open_lpips("lpips-alexnet", wrong)
    with pytest.raises(MissingWeights, match="nowhere"):
        open_lpips("lpips-alexnet", tmp_path / "nowhere.pth")


# ----------------------------------------------------------------------------------------------------------------- all

METRICS: dict[str, Callable[[], Metric]] = {
    "psnr": lambda: Psnr(RGB),
    "psnr-y": lambda: Psnr(RGB.model_copy(update={"space": "y"})),
    "psnr-mse": lambda: Psnr(RGB.model_copy(update={"pooling": "mse"})),
    "ssim-uniform": lambda: Ssim(UNIFORM),
    "ssim-gaussian": lambda: Ssim(GAUSSIAN),
    "ssim-gray": lambda: Ssim(GAUSSIAN.model_copy(update={"channels": "gray"})),
}


@pytest.mark.parametrize("name", METRICS)
@settings(max_examples=10, deadline=None)
@given(st.permutations(range(24)), st.lists(st.integers(0, 24), max_size=5), st.integers(0, 2**16))
def test_order_batches_and_shards_change_no_bit(name: str, order: list[int], cuts: list[int], seed: int) -> None:
    a, b = pairs(24, 13, 15, seed)
    b[5] = a[5]
    whole, shards = METRICS[name](), [METRICS[name](), METRICS[name]()]
    whole.update(batch(a, b))
    edges = [0, *sorted(cuts), 24]
    for i, (start, stop) in enumerate(pairwise(edges)):
        places = np.array(order[start:stop], dtype=np.int64)
        shards[i % 2].update(Batch(places, b[places], a[places]))
    shards[0].merge(shards[1])
    assert shards[0].compute() == whole.compute()
    assert (found := next(iter(whole.compute().values()))).low < found.value < found.high


def test_ms_ssim_in_shards() -> None:
    a, b = pairs(4, 161, 161)
    whole, first, second = (MsSsim(GAUSSIAN) for _ in range(3))
    whole.update(batch(a, b))
    for metric, rows in ((first, [3]), (second, [0]), (first, [2, 1])):
        metric.update(Batch(np.array(rows), b[rows], a[rows]))
    second.merge(first)
    assert second.compute() == whole.compute()


def test_lpips_in_shards(alexnet: nn.Module) -> None:
    """To the rounding of the network's float32, which may sum otherwise in another batch."""
    a, b = pairs(11, 64, 64)
    network = copy.deepcopy(alexnet)
    whole, first, second = (Lpips(network) for _ in range(3))
    whole.update(batch(a, b))
    first.update(batch(a[9:], b[9:]))
    for i in range(9):
        second.update(batch(a[i : i + 1], b[i : i + 1]))
    first.merge(second)
    assert first.compute()["lpips"].n == 11
    assert first.compute()["lpips"] == pytest.approx(whole.compute()["lpips"], rel=1e-6)


@pytest.mark.parametrize("name", ["ssim-uniform", "ssim-gaussian", "ssim-gray"])
@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**16), st.integers(11, 60), st.integers(11, 60))
def test_ssim_of_identical_images_is_exactly_1(name: str, seed: int, height: int, width: int) -> None:
    a = np.random.default_rng(seed).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    assert estimate(METRICS[name](), a, a) == Estimate(1.0, 1.0, 1.0, 2)


def test_other_metrics_of_identical_images(alexnet: nn.Module) -> None:
    a, _ = pairs(5, 176, 161)
    assert estimate(MsSsim(GAUSSIAN), a, a) == Estimate(1.0, 1.0, 1.0, 5)
    assert estimate(Lpips(copy.deepcopy(alexnet)), a[:, :64, :64], a[:, :64, :64]) == Estimate(0.0, 0.0, 0.0, 5)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**16), st.sampled_from(["ssim-uniform", "ssim-gaussian"]))
def test_ssim_is_symmetric_and_bounded(seed: int, name: str) -> None:
    a, b = np.random.default_rng(seed).integers(0, 256, (2, 1, 20, 20, 3), dtype=np.uint8)
    found = value(METRICS[name](), a, b)
    assert -1 <= found < 1
    assert value(METRICS[name](), b, a) == found
    assert abs(found - scikit_ssim(a, b, name == "ssim-gaussian")) < 1e-12


@pytest.mark.parametrize("name", METRICS)
def test_pairs_must_fit(name: str) -> None:
    a, b = pairs(3)
    for wrong in (b[:2], b[:, :15]):
        with pytest.raises(SpecError, match="as many of both, of one size"):
            METRICS[name]().update(batch(a, wrong))


@pytest.mark.parametrize("name", METRICS)
def test_no_pairs_are_undefined_and_sizes_may_differ_between_batches(name: str) -> None:
    metric = METRICS[name]()
    a, b = pairs(2)
    metric.update(batch(a[:0], b[:0]))
    (nothing,) = metric.compute().values()
    assert math.isnan(nothing.value) and nothing.n == 0
    metric.update(batch(*pairs(2, 20, 30)))
    metric.update(batch(*pairs(1, 40, 12)))
    assert next(iter(metric.compute().values())).n == 3


def test_arrays_may_be_read_only_and_strided(alexnet: nn.Module) -> None:
    a, b = pairs(2, 64, 64)
    metrics = {**METRICS, "lpips": lambda: Lpips(copy.deepcopy(alexnet))}
    views = [np.repeat(x, 2, axis=2)[:, :, ::2] for x in (a, b)]
    for view in views:
        view.flags.writeable = False
    for name, make in metrics.items():
        assert value(make(), *views) == value(make(), a, b), name


def test_shards_of_other_settings_do_not_merge() -> None:
    for first, second in (
        (Psnr(RGB), Psnr(RGB.model_copy(update={"space": "y"}))),
        (Ssim(UNIFORM), Ssim(GAUSSIAN)),
        (MsSsim(GAUSSIAN), MsSsim(GAUSSIAN.model_copy(update={"data_range": 1.0}))),
    ):
        with pytest.raises(SpecError, match="cannot be merged"):
            first.merge(second)
