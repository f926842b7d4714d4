"""The judges beside Inception: VGG-16, DINOv2, CLIP and the embedded classifier, each from its library.

Letters: B images, S side, d feature length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqbench.errors import SpecError, nearest
from vqbench.eval.inception import open_inception
from vqbench.eval.judge_network import Found, JudgeNetwork, Normalize, Weights
from vqbench.pretrained import PhotoClassifier

# Mean and deviation by channel: huggingface/pytorch-image-models:timm/data/constants.py (importing timm takes seconds).
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OPENAI = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CLIP_B32 = "ViT-B-32-quickgelu"  # open_clip's name of OpenAI's
DINOV2_L14 = "vit_large_patch14_dinov2"  # timm's


class ClassifierNetwork(JudgeNetwork):
    """The embedded stand-in: ``features`` (B, d) and ``logits`` (B, classes) of images of any size."""

    layers = ("features", "logits")
    size = None
    chunk = 128

    def __init__(self, classifier: PhotoClassifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, levels: Tensor, wanted: Collection[str]) -> Found:
        """(B, 3, H, W) in [0, 255] -> layers."""
        features = self.classifier.features(levels.div(127.5).sub(1.0))  # (B, d)
        logits = {"logits": self.classifier.logits(features)} if "logits" in wanted else {}
        return {name: ({"features": features} | logits)[name] for name in wanted}


class Vgg16(JudgeNetwork):
    """toshas/torch-fidelity:torch_fidelity/feature_extractor_vgg16.py: ``fc2`` and ``fc2_relu``, (B, 4096)."""

    layers = ("fc2", "fc2_relu")
    size = 224
    chunk = 8

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.normalize = Normalize(*IMAGENET)
        self.maps = nn.Sequential(model.features, model.avgpool, nn.Flatten()).to(memory_format=torch.channels_last)
        self.head = nn.Sequential(*model.classifier[:2], model.classifier[3])  # without the dropout between

    def forward(self, levels: Tensor, wanted: Collection[str]) -> Found:
        """(B, 3, 224, 224) in [0, 255] -> layers."""
        x = self.normalize(levels).contiguous(memory_format=torch.channels_last)
        fc2 = self.head(self.maps(x))  # (B, 4096)
        return {name: F.relu(fc2) if name == "fc2_relu" else fc2 for name in wanted}


class DinoV2(JudgeNetwork):
    """layer6ai-labs/dgm-eval:dgm_eval/models/dinov2.py: ``cls``, the class token after the last norm, (B, d)."""

    layers = ("cls",)
    size = 224
    chunk = 16

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.normalize = Normalize(*IMAGENET)
        self.model = model

    def forward(self, levels: Tensor, wanted: Collection[str]) -> Found:
        """(B, 3, 224, 224) in [0, 255] -> layers."""
        return {name: self.model(self.normalize(levels)) for name in wanted}


class ClipImage(JudgeNetwork):
    """CLIP's image tower through open_clip: ``clip``, the projected embedding, not normalized, (B, 512)."""

    layers = ("clip",)
    size = 224
    chunk = 16

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.normalize = Normalize(*OPENAI)
        self.visual = visual

    def forward(self, levels: Tensor, wanted: Collection[str]) -> Found:
        """(B, 3, 224, 224) in [0, 255] -> layers."""
        return {name: self.visual(self.normalize(levels)) for name in wanted}


def open_vgg16(path: Path) -> Vgg16:
    """torchvision's VGG-16."""
    from torchvision.models import vgg16

    with torch.device("meta"):  # no memory and no random start for 138 million weights
        model = vgg16(weights=None)
    Weights(path, "vgg16").fill(model)
    return Vgg16(model)


def open_dinov2(path: Path, **shape: Any) -> DinoV2:
    """timm's ViT-L/14 with the weights of Meta's file; `shape` overrides timm's arguments (depth, width)."""
    import timm

    with torch.device("meta"):
        model = timm.create_model(DINOV2_L14, pretrained=False, num_classes=0, img_size=DinoV2.size, **shape)
    weights = Weights(path, "dinov2-vitl14")
    weights.state.pop("mask_token", None)  # of its training
    if "pos_embed" in weights.state:
        weights.state["pos_embed"] = fitted_places(weights.state["pos_embed"], DinoV2.size // 14)
    weights.fill(model)
    return DinoV2(model)


def fitted_places(places: Tensor, side: int, offset: float = 0.1) -> Tensor:
    """Position embeddings (1, 1 + M^2, d), trained for M x M patches, for side x side: (1, 1 + side^2, d).

    As facebookresearch/dinov2:dinov2/models/vision_transformer.py (interpolate_pos_encoding): bicubic, not antialiased,
    and by a factor with 0.1 added (MAE adds nothing). timm's own antialiases, which gives other features.
    """
    before = math.isqrt(places.shape[1] - 1)
    if before == side:
        return places
    grid = places[:, 1:].reshape(1, before, before, -1).permute(0, 3, 1, 2)  # (1, d, M, M)
    grid = F.interpolate(grid, scale_factor=((side + offset) / before,) * 2, mode="bicubic")  # (1, d, side, side)
    return torch.cat([places[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def open_clip_image(path: Path, architecture: str = CLIP_B32) -> ClipImage:
    """OpenAI's file or one of open_clip's."""
    from vqbench.clip import open_clip_network  # imports open_clip: two seconds

    return ClipImage(open_clip_network(path, architecture, "clip-vitb32").visual)


OPEN: dict[str, Callable[[Path], JudgeNetwork]] = {
    "inception-v3": open_inception, "vgg16": open_vgg16, "dinov2-vitl14": open_dinov2, "clip-vitb32": open_clip_image,
}  # fmt: skip


def open_network(kind: str, path: Path, device: torch.device) -> JudgeNetwork:
    """A judge's network with the weights of a file, frozen.

    Raises:
        SpecError: no judge of that kind.
        MissingWeights: the file cannot be read, or is another network's.
    """
    if kind not in OPEN:
        raise SpecError(f"no judge of kind '{kind}' has weights to open; {nearest(kind, OPEN)}")
    return OPEN[kind](path).to(device).eval().requires_grad_(False)
