"""The networks of an evaluation without the DAG: found by kind, checked, opened at first use, their digests noted."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vqbench.artifacts import sha256_file
from vqbench.clone import CLONE
from vqbench.errors import ArtifactError, MissingWeights, SpecError, nearest
from vqbench.eval.base import Layer
from vqbench.eval.features import ClassifierNetwork, Extractor, JudgeNetwork, make_extractor, open_network
from vqbench.eval.perceptual import classifier_lpips, open_lpips
from vqbench.eval.protocols import FOLDER, Distance, Judge, Protocol, load_protocol
from vqbench.jobs import finished
from vqbench.papers import bench
from vqbench.pretrained import PhotoClassifier, open_classifier
from vqbench.weights import check_weights, fetch_again, locate, networks

STAND_IN = "photo-classifier"

# Networks that no shipped protocol has as its judge. clip: GaParmar/clean-fid:cleanfid/clip_features.py.
BESIDE = {"clip-vitb32": Judge(network="clip-vitb32", resize="pil-bicubic-uint8", size=224, features="clip")}


class Judges:
    """Opens what a protocol's metrics need.

    Args:
        weights: kind of network (``inception-v3``, ``lpips-alexnet`` ...) -> weights file, or a module in its place
            (a :class:`PhotoClassifier`). A kind that is not given is looked for in torch's hub cache under the name
            that workflow/pretrained.yaml states; the stand-in, where ``make demo`` left it.

    Attributes:
        digests: kind -> SHA-256 of the weights file (of a module: of its tensors), of those that were opened.
        warnings: which of them are not the published ones.

    Raises:
        SpecError: weights of a kind that no network has.
    """

    def __init__(
        self, protocol: Protocol, device: torch.device, weights: Mapping[str, str | Path | nn.Module] | None = None
    ) -> None:
        self.protocol, self.device, self.weights = protocol, device, dict(weights or {})
        known = [*networks(), STAND_IN]
        for kind in self.weights:
            if kind not in known:
                raise SpecError(f"weights are given for an unknown kind of network '{kind}'; {nearest(kind, known)}")
        self.digests: dict[str, str] = {}
        self.warnings: list[str] = []
        self._opened: dict[str, JudgeNetwork] = {}

    def extractor(self, layers: frozenset[Layer]) -> Extractor:
        """Features of uint8 images, those `layers` of them."""
        neighbours, manifold = self.protocol.precision_recall, None
        if "manifold" in layers and neighbours is not None and neighbours.judge is not None:
            manifold = (neighbours.judge, self.network(neighbours.judge.network))
            if layers == {"manifold"}:  # the protocol's own judge has nothing to say: its weights are not asked for
                return make_extractor(*manifold, self.device, frozenset({"pooled"}))
        judge = self.protocol.judge
        return make_extractor(judge, self.network(judge.network), self.device, layers, manifold)

    def network(self, kind: str) -> JudgeNetwork:
        """A judge's network by its kind."""
        if kind not in self._opened:
            if kind == STAND_IN:
                self._opened[kind] = ClassifierNetwork(self._classifier())
            else:
                self._opened[kind] = open_network(kind, self.file(kind), self.device)
        return self._opened[kind]

    def close(self) -> None:
        """Let go of the networks; the digests stay."""
        self._opened.clear()

    def lpips(self, distance: Distance) -> nn.Module:
        """LPIPS over that distance's network."""
        kind = distance.network
        if kind == "photo-classifier":
            return classifier_lpips(self._classifier())
        network = open_lpips(kind, self.file(kind), self.device)
        self.digests[f"{kind} linear"] = state_digest(network.get_submodule("lins"))  # they come with the library
        return network

    def file(self, kind: str) -> Path:
        """The weights file of a kind, its digest noted.

        Raises:
            MissingWeights: not there, or not what it should be; says what to fetch and where it goes.
        """
        given = self.weights.get(kind)
        if isinstance(given, nn.Module):
            raise SpecError(f"weights of '{kind}' are a file, not a module; give its path")
        if given is not None:
            path = Path(given)
            if not path.is_file():
                raise MissingWeights(
                    f"{path} does not exist; mend --weights {kind}={path}, or leave it out and {fetch_again(kind)}"
                )
            self.digests[kind] = sha256_file(path)
            self._compare_with_published(kind, path)
            return path
        path = locate(networks()[kind])
        self.digests[kind] = check_weights(networks()[kind], path)
        return path

    def _compare_with_published(self, kind: str, path: Path) -> None:
        published, found = networks()[kind].sha256_prefix or "", self.digests[kind]
        warning = (
            f"{path.name} has SHA-256 {found[:16]}..., the published weights of '{kind}' start with {published[:16]}: numbers "
            "do not compare with published ones"
        )
        if not found.startswith(published) and warning not in self.warnings:
            self.warnings.append(warning)

    def _classifier(self) -> PhotoClassifier:
        given = self.weights.get(STAND_IN)
        if isinstance(given, PhotoClassifier):
            self.digests[STAND_IN] = state_digest(given)
            return given.to(self.device).eval().requires_grad_(False)
        found, base = bench("demo"), CLONE
        try:
            done = finished(found, ("pretrained", STAND_IN), base)
        except ArtifactError as error:
            raise MissingWeights(f"the demo's judge is not there ({error}); train it: make demo") from None
        self.digests[STAND_IN] = done.manifest["outputs"]["model.safetensors"]["sha256"]
        return open_classifier(found.pretrained[STAND_IN], done, self.device)


def state_digest(module: nn.Module) -> str:
    """SHA-256 (hex) of a module's tensors under their names."""
    from safetensors.torch import save

    return hashlib.sha256(save({k: v.cpu().contiguous() for k, v in module.state_dict().items()})).hexdigest()


def with_judge(protocol: Protocol, kind: str) -> Protocol:
    """The protocol with another network as judge: that network's own resize and layers, and its name in every metric's.

    Precision and recall go by its features as well, and metrics whose layer it lacks fall away. The stand-in also takes
    LPIPS' place.

    Raises:
        SpecError: nothing says how to use such a network.
    """
    near = protocol.precision_recall
    if kind == protocol.judge.network and (near is None or near.judge is None):
        return protocol
    blocks = known_judges()
    if kind not in blocks:
        raise SpecError(f"no protocol says how to use a judge '{kind}'; {nearest(kind, blocks)}")
    suffix = "[demo-judge]" if kind == STAND_IN else f"[{kind}]"
    judge = protocol.judge if kind == protocol.judge.network else blocks[kind]
    change: dict[str, Any] = {"name": f"{protocol.name}+{kind}", "suffix": protocol.suffix + suffix, "judge": judge}
    if judge.logits is None:
        change["inception_score"] = None
    if near is not None:
        change["precision_recall"] = near.model_copy(update={"judge": None})
    if kind == STAND_IN:
        change["lpips"] = Distance(network="photo-classifier", suffix=suffix)
    changed = protocol.model_copy(update=change)
    return changed.model_copy(update={"metrics": tuple(name for name in protocol.metrics if changed.defines(name))})


def known_judges() -> dict[str, Judge]:
    """How each network is used: as the shipped protocols do, for all metrics or for precision and recall alone."""
    shipped = [load_protocol(path.stem) for path in sorted(FOLDER.glob("*.yaml"))]
    own = [near.judge for p in shipped if (near := p.precision_recall) is not None and near.judge is not None]
    blocks: dict[str, Judge] = {}
    for judge in (*(p.judge for p in shipped), *own):
        blocks.setdefault(judge.network, judge)
    return {**BESIDE, **blocks}
