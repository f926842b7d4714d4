"""CLIP score: how well an image fits its caption, by the cosine of CLIP's image and text features.

Letters: B images, H W pixels, d feature length.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import open_clip
import torch
from PIL import Image
from torch import Tensor

from vqbench.clip import open_clip_network
from vqbench.errors import ArtifactError, SpecError
from vqbench.eval.base import Batch, Estimate, Metric, check_alike
from vqbench.eval.exact_mean import ExactMean


class ClipScore(Metric):
    """100 * max(cos(image, caption), 0), the mean over images; captions as they are, cut at CLIP's 77 tokens.

    Two scales are in use. Hessel et al. 2021 define 2.5 * max(cos, 0) and put "A photo depicts" before each caption
    (jmhessel/clipscore:clipscore.py). torchmetrics takes 100 * cos of bare captions, and the maximum with 0 of the
    mean (Lightning-AI/torchmetrics:src/torchmetrics/functional/multimodal/clip_score.py). Here: the scale and captions of
    torchmetrics, the maximum image by image as Hessel's; the two agree where no cosine is negative. Hessel's number
    is a fortieth of it only for captions that bear his prefix.

    Args:
        weights: OpenAI's TorchScript file, or a state dict as open_clip saves it (``.pt``, ``.safetensors``).
        architecture: open_clip's name of it; OpenAI's ViT-B/32 has the "quickgelu" one.

    Raises:
        SpecError: no such architecture.
        MissingWeights: the file is unreadable or another network's.
    """

    unit = ""
    higher_is_better = True
    interval = "normal over images"
    not_finite = "refused"
    needs = frozenset({"images", "captions"})

    def __init__(
        self,
        weights: str | Path,
        architecture: str = "ViT-B-32-quickgelu",
        device: torch.device | str = "cpu",
    ) -> None:
        self.device, self.architecture = torch.device(device), architecture
        self.network = open_clip_network(Path(weights), architecture, "clip-vitb32").to(self.device)
        self.tokenize: Any = open_clip.get_tokenizer(architecture)
        # OpenAI's preprocessing: bicubic to the short side, centre, their mean and deviation.
        self.prepare: Any = open_clip.image_transform(self.network.visual.image_size, is_train=False)
        self.mean = ExactMean()

    def update(self, batch: Batch) -> None:
        """Add images (B, H, W, 3) uint8 and B captions.

        Raises:
            SpecError: not as many captions as images, or an empty one.
            ArtifactError: a feature is not finite.
        """
        images, captions = batch.images, batch.captions
        assert images is not None and captions is not None, "clip_score needs images and captions"
        if len(images) != len(captions):
            raise SpecError(f"{len(images)} images and {len(captions)} captions; give one caption an image")
        if not all(caption.strip() for caption in captions):
            raise SpecError("a caption is empty; give every image one")
        self.mean.add(self.scores(images, captions))

    @torch.inference_mode()
    def scores(self, images: np.ndarray, captions: Sequence[str]) -> np.ndarray:
        """(B,) float64 in [0, 100]."""
        pixels = torch.stack([self.prepare(Image.fromarray(image)) for image in images]).to(self.device)
        seen: Tensor = self.network.encode_image(pixels)  # (B, d)
        read: Tensor = self.network.encode_text(self.tokenize(list(captions)).to(self.device))  # (B, d)
        cosine = torch.cosine_similarity(seen.double(), read.double())  # (B,)
        if not torch.isfinite(cosine).all():
            raise ArtifactError("CLIP's features are not finite; its weights are damaged, fetch them again")
        found: np.ndarray = 100 * cosine.clamp(0, 1).cpu().numpy()
        return found

    def merge(self, other: Self) -> None:
        """Add a shard's images.

        Raises:
            SpecError: scored by another network.
        """
        check_alike("clip_score", {"architecture": self.architecture}, {"architecture": other.architecture})
        self.mean.merge(other.mean)

    def compute(self) -> dict[str, Estimate]:
        """``{"clip_score": estimate}``, 0 to 100."""
        return {"clip_score": self.mean.estimate()}
