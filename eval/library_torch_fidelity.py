"""FID, KID, IS, precision and recall by ``torch_fidelity.calculate_metrics``, with the network that a protocol names.

Importing this imports torch-fidelity (seconds): only ``--engine reference`` does.

Letters: n generated, m reference images, B images of a batch, H W pixels, d feature length.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch_fidelity
from torch import Tensor, nn
from torch.utils.data import Dataset
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from vqbench.errors import MissingWeights
from vqbench.eval.protocols import Judge, Protocol, Splits
from vqbench.weights import fetch_again

CLASSIFIER = "photo-classifier"

# Network of a protocol -> torch-fidelity's extractor, with the resize that it does itself.
EXTRACTORS = {
    "inception-v3": ("inception-v3-compat", "tf1-bilinear", 299),
    "vgg16": ("vgg16", "tf1-bilinear", 224),
    CLASSIFIER: (CLASSIFIER, "none", None),
}
KEYS = {
    "fid": torch_fidelity.KEY_METRIC_FID, "rfid": torch_fidelity.KEY_METRIC_FID,
    "kid": torch_fidelity.KEY_METRIC_KID_MEAN, "is": torch_fidelity.KEY_METRIC_ISC_MEAN,
    "precision": torch_fidelity.KEY_METRIC_PRECISION, "recall": torch_fidelity.KEY_METRIC_RECALL,
}  # fmt: skip


class ClassifierExtractor(FeatureExtractorBase):
    """The embedded classifier behind torch-fidelity's interface: uint8 (B, 3, H, W) -> tuple of the layers asked for.

    ``calculate_metrics(feature_extractor="photo-classifier", classifier=...)``.
    """

    def __init__(self, name: str, features_list: list[str], classifier: nn.Module | None = None, **_: Any) -> None:
        super().__init__(name, features_list)
        if classifier is None:
            raise ValueError("pass classifier=...: the embedded judge has no weights of its own to fetch")
        self.classifier: Any = classifier

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) uint8 -> features (B, d) and logits (B, classes), those asked for."""
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
    torch_fidelity.register_feature_extractor(CLASSIFIER, ClassifierExtractor)


class Tensors(Dataset[Tensor]):
    """Images (n, H, W, 3), or those at `chosen`, as torch-fidelity takes them: one uint8 (3, H, W) tensor each."""

    def __init__(self, images: np.ndarray, chosen: np.ndarray | None = None) -> None:
        self.images, self.chosen = images, np.arange(len(images)) if chosen is None else chosen

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(np.array(self.images[self.chosen[index]])).permute(2, 0, 1)


def not_given(judge: Judge, *layers: str | None) -> str:
    """Why torch-fidelity has no such features; empty where it has: no such network, another resize, or no such layer."""
    extractor, resize, size = EXTRACTORS.get(judge.network, ("", "", None))
    if not extractor:
        return f"no library here runs '{judge.network}' as the protocol does"
    if judge.gain != 1:
        return f"torch-fidelity's '{extractor}' has no gain of {judge.gain:g}"
    if judge.resize != resize or (size and judge.size != size):
        return f"torch-fidelity's '{extractor}' resizes by {resize} to {size}, not by {judge.resize} to {judge.size}"
    known = FEATURE_EXTRACTORS_REGISTRY[extractor].get_provided_features_list()
    missing = [str(layer) for layer in layers if layer not in known]
    return f"torch-fidelity's '{extractor}' has no layer {', '.join(missing)}" if missing else ""


def judge_of(name: str, protocol: Protocol) -> Judge:
    """The network of a metric: precision and recall may have their own."""
    neighbours = protocol.precision_recall
    own = neighbours.judge if name in ("precision", "recall") and neighbours is not None else None
    return own or protocol.judge


def fidelity_layer(name: str, protocol: Protocol) -> str | None:
    """The layer that a metric reads."""
    return protocol.judge.logits if name == "is" else judge_of(name, protocol).features


def not_cut(splits: Splits, count: int) -> str:
    """Why torch-fidelity cannot cut so many images as the protocol does; empty where it can: into equal parts."""
    if splits.splits is not None and splits.splits > count:
        return f"it has {splits.splits} splits, there are {count} images"
    if splits.split_size is not None and count > splits.split_size and count % splits.split_size:
        return f"its parts are of {splits.split_size} images, torch-fidelity cuts {count} images into equal ones"
    return ""


def fidelity_options(name: str, protocol: Protocol, count: int) -> dict[str, Any]:
    """What ``calculate_metrics`` is told of one metric of `count` generated images."""
    splits, kernel, neighbours = protocol.inception_score, protocol.kid, protocol.precision_recall
    layer = fidelity_layer(name, protocol)
    if name == "is" and splits is not None:
        return {"isc": True, "feature_layer_isc": layer, "isc_splits": len(splits.cuts(count)) - 1,
                "samples_shuffle": splits.shuffle, "rng_seed": splits.seed}  # fmt: skip
    if name == "kid" and kernel is not None:
        return {"kid": True, "feature_layer_kid": layer, "kid_subsets": kernel.subsets,
                "kid_subset_size": kernel.subset_size, "kid_kernel_poly_degree": kernel.degree,
                "kid_kernel_poly_gamma": kernel.gamma, "kid_kernel_poly_coef0": kernel.coef0,
                "rng_seed": kernel.seed}  # fmt: skip
    if name in ("precision", "recall") and neighbours is not None:
        return {"prc": True, "feature_layer_prc": layer, "prc_neighborhood": neighbours.neighborhood}
    return {"fid": True, "feature_layer_fid": layer}


def fidelity_call(
    names: Sequence[str],
    protocol: Protocol,
    generated: Tensors,
    reference: Tensors | None,
    network: Path | nn.Module,
    device: torch.device,
) -> dict[str, float]:
    """One ``torch_fidelity.calculate_metrics`` for metrics of one network and one reference.

    The file of weights goes to every extractor of a call, so a call must have one network only. Caches are off: they go
    by name and would return what another call of that name found.

    Args:
        names: metrics; those that draw share one seed.
        reference: None for the Inception Score alone.
        network: weights file, or the classifier.

    Raises:
        MissingWeights: the file does not hold what torch-fidelity loads.
    """
    options: dict[str, Any] = {}
    for name in names:
        options |= fidelity_options(name, protocol, len(generated))
    judge = judge_of(names[0], protocol)
    key = "classifier" if isinstance(network, nn.Module) else "feature_extractor_weights_path"
    with weights_errors(network, judge.network):
        options[key] = network if isinstance(network, nn.Module) else harmless(network)
        found: Mapping[str, float] = torch_fidelity.calculate_metrics(
            input1=generated, input2=None if list(names) == ["is"] else reference, batch_size=protocol.batch,
            feature_extractor=EXTRACTORS[judge.network][0], cuda=device.type == "cuda",
            cache=False, save_cpu_ram=True, verbose=False, **options,
        )  # fmt: skip
    return {name: float(found[KEYS[name]]) for name in names}


def harmless(weights: Path) -> str:
    """The path of a file that torch-fidelity will unpickle unchecked, read once as nothing but tensors.

    Raises:
        UnpicklingError: it holds more than tensors and plain containers; reading it unchecked could run anything.
    """
    torch.load(weights, map_location="cpu", weights_only=True)
    return str(weights)


@contextmanager
def weights_errors(network: Path | nn.Module, kind: str) -> Iterator[None]:
    """Turn what the libraries raise of a file that is not their network into MissingWeights."""
    try:
        yield
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        if isinstance(error, RuntimeError) and "state_dict" not in str(error) and "archive" not in str(error):
            raise
        said = " ".join(str(error).split())[:160]
        raise MissingWeights(f"{network} is not what the library loads ({said}); {fetch_again(kind)}") from None
