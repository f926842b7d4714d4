"""Random weights of the true shapes, saved as the libraries read them: the real architectures run without a download."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

# Inception's modules in the order in which torch-fidelity's forward calls them.
TRUNK = [
    *("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "MaxPool_2"),
    *("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
    *("Mixed_7a", "Mixed_7b", "Mixed_7c", "AvgPool"),
]


class _RandomInception(FeatureExtractorInceptionV3):
    """The real architecture without its download."""

    def load_state_dict(self, *_: Any, **__: Any) -> Any:
        return None


def write_inception(path: Path) -> Path:
    """A state dict of Inception 2015-12-05 as torch-fidelity loads it."""
    empty = path.with_name("empty.pth")
    torch.save({}, empty)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = _RandomInception("random", ["2048"], feature_extractor_weights_path=str(empty))
        for module in network.modules():
            if isinstance(module, nn.Conv2d):  # torch's own start would let a signal fade to 1e-8 in so deep a network
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if isinstance(module, nn.BatchNorm2d):  # none of its four parts may go unnoticed
                for part in (module.weight, module.running_var):
                    nn.init.uniform_(part, 0.9, 1.1)
                for part in (module.bias, module.running_mean):
                    nn.init.normal_(part, std=0.1)
    empty.unlink()
    torch.save(network.state_dict(), path)
    return path


def write_torchscript(path: Path, inception: Path) -> Path:
    """The same weights as clean-fid reads them: TorchScript with the trunk under ``layers``."""
    network = FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path=str(inception))
    whole = nn.Sequential()
    whole.add_module("layers", nn.Sequential(*(network.get_submodule(name) for name in TRUNK), nn.Flatten()))
    with warnings.catch_warnings(action="ignore"):
        torch.jit.trace(whole.eval(), torch.zeros(1, 3, 299, 299), check_trace=False).save(str(path))
    return path


def write_vgg16(path: Path, whole: bool = False) -> Path:
    """A state dict of VGG-16 under torchvision's names: its convolutions, or `whole` with the 500 MB of its head."""
    from torchvision.models import vgg16

    with torch.random.fork_rng():
        torch.manual_seed(0)
        if whole:
            state = _random_like(vgg16, weights=None)
        else:
            state = {k: v for k, v in vgg16(weights=None).state_dict().items() if k.startswith("features.")}
    torch.save(state, path)
    return path


def write_dinov2(path: Path, **shape: Any) -> dict[str, Tensor]:
    """A state dict as Meta's file of DINOv2 ViT-L/14 is, or of another `shape` (timm's arguments)."""
    import timm

    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = _random_like(timm.create_model, model_name="vit_large_patch14_dinov2", num_classes=0, **shape)
    state["mask_token"] = torch.zeros(1, state["cls_token"].shape[-1])
    torch.save(state, path)
    return state


def _random_like(build: Callable[..., nn.Module], **options: Any) -> dict[str, Tensor]:
    """Random weights that keep a signal's size, without the minutes that the libraries' own start takes."""
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in build(**options).state_dict().items()}
    return {
        k: torch.randn(s) * (3 / math.prod(s[1:])) ** 0.5 if len(s) > 1 else torch.rand(s) * 0.2
        for k, s in shapes.items()
    }
