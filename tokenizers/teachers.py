"""Teachers: frozen networks whose patch features codebooks are made from. CLIP's image towers, or the embedded classifier.

Letters: B images, H W pixels, S the side a network takes, s the side of its map, g that of the pooled grid, D feature length.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqbench.errors import SpecError
from vqbench.pretrained import PhotoClassifier, open_classifier, weights_path
from vqbench.specs import PretrainedSpec

if TYPE_CHECKING:
    from vqbench.jobs import Finished

# kind -> open_clip's name of OpenAI's network
ARCHITECTURES = {
    "clip-vitl14": "ViT-L-14-quickgelu",
    "clip-vitb16": "ViT-B-16-quickgelu",
    "clip-rn50": "RN50-quickgelu",
}


class ClipTeacher(nn.Module):
    """The image tower of CLIP: (B, 3, H, W) in [-1, 1] -> (B, D, s, s).

    Images are scaled to S x S by an antialiased bicubic filter and normalised as OpenAI's are. A ViT gives its patch tokens
    after the last norm and the projection (zh460045050/VQGAN-LC:codebook_generation), a ResNet the map below its
    attention pool.
    """

    def __init__(self, visual: Any) -> None:
        super().__init__()
        from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

        self.visual = visual
        size = visual.image_size
        self.size: int = size[0] if isinstance(size, tuple) else size
        self.mean = nn.Buffer(torch.tensor(OPENAI_DATASET_MEAN).view(1, 3, 1, 1))
        self.std = nn.Buffer(torch.tensor(OPENAI_DATASET_STD).view(1, 3, 1, 1))
        self.tokens = hasattr(visual, "output_tokens")
        if self.tokens:
            visual.output_tokens = True

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, D, s, s)."""
        shares = images.add(1).div(2)
        shares = F.interpolate(shares, (self.size, self.size), mode="bicubic", antialias=True).clamp(0, 1)
        x = (shares - self.mean) / self.std  # (B, 3, S, S)
        if not self.tokens:
            maps = self.visual.forward_intermediates(x, indices=1, intermediates_only=True)["image_intermediates"]
            last: Tensor = maps[0]
            return last  # (B, D, s, s)
        tokens: Tensor = self.visual(x)[1] @ self.visual.proj  # (B, s * s, D)
        side = round(tokens.shape[1] ** 0.5)
        return tokens.transpose(1, 2).reshape(len(x), -1, side, side)  # (B, D, s, s)


class ClassifierTeacher(nn.Module):
    """The embedded stand-in: one slice of the photo classifier, (B, 3, H, W) in [-1, 1] -> (B, D, s, s)."""

    def __init__(self, classifier: PhotoClassifier, layer: str) -> None:
        super().__init__()
        self.classifier, self.layer = classifier, layer

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, D, s, s)."""
        found: Tensor = getattr(self.classifier.slices(images), self.layer)
        return found


def open_teacher(spec: PretrainedSpec, layer: str, finished: Finished, device: str | torch.device = "cpu") -> nn.Module:
    """A teacher with the weights that step ``pretrained`` checked or trained, frozen.

    Raises:
        MissingWeights: the file is missing, changed since, or another network's.
    """
    if spec.kind == "photo-classifier":
        return ClassifierTeacher(open_classifier(spec, finished, device), layer).eval().requires_grad_(False)
    return open_clip_teacher(weights_path(spec, finished), spec.kind).to(device)


def open_clip_teacher(path: Path, kind: str, architecture: str = "") -> ClipTeacher:
    """The image tower of OpenAI's file or of one of open_clip's."""
    from vqbench.clip import open_clip_network  # imports open_clip: two seconds

    return (
        ClipTeacher(open_clip_network(path, architecture or ARCHITECTURES[kind], kind).visual)
        .eval()
        .requires_grad_(False)
    )


def untrained_teacher(spec: PretrainedSpec, layer: str) -> nn.Module:
    """A teacher without its weights, to count its operations; on the meta device."""
    if spec.kind == "photo-classifier":
        return ClassifierTeacher(PhotoClassifier(spec.options["channels"], 1), layer)
    import open_clip

    model = open_clip.create_model(ARCHITECTURES[spec.kind], pretrained=None, load_weights=False, device="meta")
    return ClipTeacher(model.visual)


def patch_features(teacher: Callable[[Tensor], Tensor], images: Tensor, grid: int) -> Tensor:
    """(B, 3, H, W) -> (B * g * g, D): the map, average-pooled to g x g, row by row.

    Of ViT-L/14's 16 x 16 patches that is the paper's 4 x 4 pooling (g = 4); where g does not divide the side, neighbouring
    cells overlap (ours).

    Raises:
        SpecError: the map is smaller than the grid.
    """
    found = teacher(images)  # (B, D, s, s)
    if min(found.shape[2:]) < grid:
        raise SpecError(f"the teacher's map is {found.shape[2]} x {found.shape[3]}, smaller than {grid} x {grid}: name an "
                        "earlier layer under 'teachers' of the scale, or use larger images")  # fmt: skip
    return F.adaptive_avg_pool2d(found, grid).flatten(2).transpose(1, 2).flatten(0, 1)  # (B * g * g, D)
