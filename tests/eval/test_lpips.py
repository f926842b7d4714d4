"""LPIPS against lpips, and its weights files."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import lpips
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vqbench.errors import ArtifactError, MissingWeights, SpecError
from vqbench.eval.perceptual import Lpips, classifier_lpips, open_lpips, smallest_side

from .pair_sets import LPIPS_WARNINGS, batch, pairs, tensors, value

pytestmark = LPIPS_WARNINGS


@pytest.mark.parametrize(("net", "side"), [("alex", 31), ("vgg", 16)])
def test_the_least_side_is_where_the_library_still_answers(net: str, side: int) -> None:
    network = lpips.LPIPS(net=net, pnet_rand=True, verbose=False).eval()
    assert smallest_side(network.net) == side
    assert network(torch.zeros(1, 3, side, side), torch.ones(1, 3, side, side)).isfinite().all()
    with pytest.raises(RuntimeError):
        network(torch.zeros(1, 3, side - 1, side), torch.ones(1, 3, side - 1, side))


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


def test_rescaled_images_are_those_of_the_librarys_normalize(alexnet: nn.Module) -> None:
    """VQGAN-LC's script gives images in [-1, 1] to pyiqa's LPIPS, which takes them for [0, 1] (its ``normalize``)."""
    a, b = pairs(4, 64, 71)
    floats = [torch.from_numpy(x).permute(0, 3, 1, 2).float() / 127.5 - 1 for x in (a, b)]
    with torch.no_grad():
        expected = copy.deepcopy(alexnet).eval()(*floats, normalize=True).double().flatten().numpy()
    found = Lpips(copy.deepcopy(alexnet), rescaled=True)
    assert found.values(b, a) == pytest.approx(expected, rel=1e-6, abs=1e-8)
    plain = Lpips(copy.deepcopy(alexnet))
    assert (np.abs(plain.values(b, a) / expected - 1) > 0.05).all()
    with pytest.raises(SpecError, match="rescaled False and True"):
        plain.merge(found)


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
