"""The networks of an evaluation without the DAG: found by kind, checked, opened at first use, their digests noted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vqbench.artifacts import sha256_file
from vqbench.clone import CLONE, WORKFLOW, read_yaml
from vqbench.errors import ArtifactError, MissingWeights, SpecError, nearest
from vqbench.eval.base import Layer
from vqbench.eval.features import ClassifierNetwork, Extractor, JudgeNetwork, make_extractor, open_network
from vqbench.eval.perceptual import classifier_lpips, open_lpips
from vqbench.eval.protocols import FOLDER, Distance, Judge, Protocol, load_protocol
from vqbench.jobs import finished
from vqbench.papers import bench
from vqbench.pretrained import PhotoClassifier, open_classifier
from vqbench.specs import PretrainedSpec, parse
from vqbench.weights import check_weights, locate

STAND_IN = "photo-classifier"


class Judges:
    """Opens what a protocol's metrics need.

    Args:
        weights: kind of network (``inception-v3``, ``lpips-alexnet`` ...) -> weights file, or a module in its place
            (a :class:`PhotoClassifier`). A kind that is not given is looked for in torch's hub cache under the name
            that workflow/pretrained.yaml states; the stand-in, where ``make demo`` left it.

    Attributes:
        digests: kind -> SHA-256 of the weights file, of those that were opened.
    """

    def __init__(
        self, protocol: Protocol, device: torch.device, weights: Mapping[str, str | Path | nn.Module] | None = None
    ) -> None:
        self.protocol, self.device, self.weights = protocol, device, dict(weights or {})
        self.digests: dict[str, str] = {}
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

    def lpips(self) -> nn.Module:
        """LPIPS over the protocol's network."""
        kind = self.protocol.lpips.network
        if kind == "photo-classifier":
            return classifier_lpips(self._classifier())
        return open_lpips(kind, self.file(kind), self.device)

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
                raise MissingWeights(f"{path} does not exist; mend --weights {kind}={path}")
            self.digests[kind] = sha256_file(path)
            return path
        spec = known_networks(kind)
        path = locate(spec)
        self.digests[kind] = check_weights(spec, path)
        return path

    def _classifier(self) -> PhotoClassifier:
        given = self.weights.get(STAND_IN)
        if isinstance(given, PhotoClassifier):
            return given.to(self.device).eval().requires_grad_(False)
        found, base = bench("demo"), CLONE
        try:
            done = finished(found, ("pretrained", STAND_IN), base)
        except ArtifactError as error:
            raise MissingWeights(f"the demo's judge is not there ({error}); train it: make demo") from None
        self.digests[STAND_IN] = done.manifest["outputs"]["model.safetensors"]["sha256"]
        return open_classifier(found.pretrained[STAND_IN], done, self.device)


def known_networks(kind: str) -> PretrainedSpec:
    """The first entry of a kind in workflow/pretrained.yaml."""
    entries = {
        name: parse(PretrainedSpec, data, f"pretrained '{name}'")
        for name, data in read_yaml(WORKFLOW / "pretrained.yaml").items()
        if data["kind"] == kind
    }
    if not entries:
        raise MissingWeights(f"workflow/pretrained.yaml has no network of kind '{kind}'; give --weights {kind}=FILE")
    return next(iter(entries.values()))


def with_judge(protocol: Protocol, kind: str) -> Protocol:
    """The protocol with another network as judge: that network's own resize and layers, and its name in every metric's.

    The stand-in also takes LPIPS' place and that of a judge of precision and recall.

    Raises:
        SpecError: no shipped protocol uses such a network.
    """
    if kind == protocol.judge.network:
        return protocol
    blocks: dict[str, Judge] = {}
    for path in sorted(FOLDER.glob("*.yaml")):
        blocks.setdefault((judge := load_protocol(path.stem).judge).network, judge)
    if kind not in blocks:
        raise SpecError(f"no protocol says how to use a judge '{kind}'; {nearest(kind, blocks)}")
    suffix = "[demo-judge]" if kind == STAND_IN else f"[{kind}]"
    judge = blocks[kind]
    change: dict[str, Any] = {"name": f"{protocol.name}+{kind}", "suffix": protocol.suffix + suffix, "judge": judge}
    if judge.logits is None:
        change["inception_score"] = None
    if judge.spatial is None:
        change["metrics"] = tuple(name for name in protocol.metrics if name != "sfid")
    if kind == STAND_IN:
        change["lpips"] = Distance(network="photo-classifier", suffix=suffix)
        if protocol.precision_recall is not None:
            change["precision_recall"] = protocol.precision_recall.model_copy(update={"judge": None})
    return protocol.model_copy(update=change)
