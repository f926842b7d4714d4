"""The judge: features and logits of uint8 images, through torch-fidelity's registry or clean-fid.

The embedded classifier is registered with torch-fidelity as ``photo-classifier``, so that a stand-in judge runs the very
code that Inception runs. Importing this imports torch-fidelity (two seconds): steps do, tables do not.

Letters: B images, H W pixels, d feature length.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor
from torch_fidelity.utils import create_feature_extractor

from vqbench.errors import MissingWeights, SpecError, nearest
from vqbench.eval.protocols import Judge
from vqbench.pretrained import open_classifier, weights_path
from vqbench.specs import PretrainedSpec

if TYPE_CHECKING:
    from vqbench.steps import Finished

CLASSIFIER = "photo-classifier"
TORCHSCRIPT = "inception-2015-12-05.pt"  # the only name under which clean-fid looks for its network


class Features(NamedTuple):
    """What the judge says of a batch: `pooled` (B, d) float32, `logits` (B, classes) or None."""

    pooled: Tensor
    logits: Tensor | None


Extractor = Callable[[np.ndarray], Features]  # uint8 (B, H, W, 3) -> Features on the judge's device


class ClassifierExtractor(FeatureExtractorBase):
    """The embedded classifier behind torch-fidelity's interface: uint8 (B, 3, H, W) -> tuple of the layers asked for.

    ``calculate_metrics(feature_extractor="photo-classifier", classifier=...)`` works as well.
    """

    def __init__(self, name: str, features_list: list[str], classifier: nn.Module | None = None, **_: Any) -> None:
        super().__init__(name, features_list)
        if classifier is None:
            raise ValueError("pass classifier=...: the embedded judge has no weights of its own to fetch")
        self.classifier: Any = classifier

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        pooled = self.classifier.features(images.float().div(127.5).sub(1.0))  # (B, d)
        found = {"features": pooled, "logits": self.classifier.logits(pooled)}
        return tuple(found[name] for name in self.features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """Layers it can give."""
        return "features", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        """Logits for the Inception Score, features for all others."""
        return "logits" if metric == "isc" else "features"

    @staticmethod
    def can_be_compiled() -> bool:
        """Never: it takes milliseconds."""
        return False


if CLASSIFIER not in FEATURE_EXTRACTORS_REGISTRY:
    register_feature_extractor(CLASSIFIER, ClassifierExtractor)


def open_extractor(judge: Judge, spec: PretrainedSpec, finished: Finished, device: torch.device) -> Extractor:
    """The judge that a protocol names, over the network that the scale puts in that role.

    Raises:
        SpecError: the scale's network is not the protocol's, or the library has no such extractor or layer.
        MissingWeights: the weights are not there, or are not what the library loads.
    """
    if spec.kind != judge.network:
        raise SpecError(
            f"the protocol's judge is '{judge.network}', the scale's is '{spec.kind}'; mend 'protocol' or 'roles.judge'"
        )
    if spec.kind == CLASSIFIER:
        return fidelity_extractor(judge, device, classifier=open_classifier(spec, finished, device))
    weights = weights_path(spec, finished)
    if judge.engine == "clean-fid":
        return clean_extractor(judge, weights, device)
    return fidelity_extractor(judge, device, feature_extractor_weights_path=str(weights))


def fidelity_extractor(judge: Judge, device: torch.device, **options: Any) -> Extractor:
    """An extractor of torch-fidelity's registry; `options` go to its constructor."""
    layers = [judge.features, *([judge.logits] if judge.logits else [])]
    _check_layers(judge.extractor, layers)
    try:
        network = create_feature_extractor(judge.extractor, layers, device.type == "cuda", verbose=False, **options)
    except (RuntimeError, OSError, pickle.UnpicklingError) as error:
        raise MissingWeights(f"torch-fidelity cannot load the judge's weights: {error}; fetch them again") from None

    @torch.no_grad()
    def extract(images: np.ndarray) -> Features:
        batch = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).to(device)
        found = network.convert_features_tuple_to_dict(network(batch.contiguous()))
        return Features(found[judge.features], found[judge.logits] if judge.logits else None)

    return extract


def _check_layers(extractor: str, layers: list[str]) -> None:
    if extractor not in FEATURE_EXTRACTORS_REGISTRY:
        raise SpecError(f"unknown extractor '{extractor}'; {nearest(extractor, FEATURE_EXTRACTORS_REGISTRY)}")
    known = FEATURE_EXTRACTORS_REGISTRY[extractor].get_provided_features_list()
    for layer in layers:
        if layer not in known:
            raise SpecError(f"extractor '{extractor}' has no layer '{layer}'; {nearest(layer, known)}")


def clean_extractor(judge: Judge, weights: Path, device: torch.device) -> Extractor:
    """clean-fid's resize (PIL bicubic, floats, per channel) and its TorchScript Inception: pool3, (B, 2048).

    Raises:
        MissingWeights: the file is not the TorchScript one that clean-fid opens.
        SpecError: another mode than ``clean``.
    """
    from cleanfid.inception_torchscript import InceptionV3W
    from cleanfid.resize import build_resizer

    if judge.extractor != "clean":
        raise SpecError(f"clean-fid's mode '{judge.extractor}' is not supported; use 'clean'")
    if weights.name != TORCHSCRIPT:
        raise MissingWeights(f"clean-fid opens '{TORCHSCRIPT}', not '{weights.name}'; name a judge that is that file")
    with _quiet():
        network = InceptionV3W(str(weights.parent), download=False, resize_inside=False).to(device).eval()
    resize = build_resizer(judge.extractor)

    @torch.no_grad()
    def extract(images: np.ndarray) -> Features:
        with _quiet():
            resized = np.stack([resize(image) for image in images])  # (B, 299, 299, 3)
            pooled = network(torch.from_numpy(resized).permute(0, 3, 1, 2).to(device))  # (B, 2048)
        return Features(pooled, None)

    return extract


def _quiet() -> warnings.catch_warnings[None]:
    """clean-fid uses torch.jit and a Pillow argument that are deprecated."""
    return warnings.catch_warnings(action="ignore")
