"""The pretrained roles (judge, perceptual, teacher): real networks from checked files, or one small classifier.

The embedded classifier is trained in the DAG in seconds and named for what it is: metrics judged by it carry its name,
never plain FID. It has VGG's shape (five slices of conv-relu behind max-pooling), so that the same lpips and
torch-fidelity code runs over it.
"""

from __future__ import annotations

import warnings
from collections import namedtuple
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqbench.artifacts import read_tensors, sha256_file, write_json
from vqbench.data import Images, open_images, to_float
from vqbench.errors import MissingWeights
from vqbench.specs import PretrainedSpec
from vqbench.top_one import count_right
from vqbench.training import Batch, Player, Task, Terms, Trainer, finish
from vqbench.weights import UNREADABLE, check_weights, fetch_again, locate

if TYPE_CHECKING:
    from vqbench.jobs import Finished, Job

Slices = namedtuple("Slices", ["relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3"])  # as specs.SLICES


class PhotoClassifier(nn.Module):
    """A VGG-shaped classifier: five slices of conv-relu, 2x2 max-pooling between them, mean pooling, a linear head."""

    def __init__(self, channels: list[int], classes: int) -> None:
        super().__init__()
        widths = [3, *channels]
        self.convs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(i, o, 3, padding=1, bias=False), nn.GroupNorm(4, o), nn.ReLU())
            for i, o in pairwise(widths)
        )
        self.head = nn.Linear(channels[-1] + channels[-2], classes)

    def slices(self, images: Tensor) -> Slices:
        """(B, 3, H, W) in [-1, 1] -> the five relu maps under VGG-16's layer names."""
        found, x = [], images
        for i, conv in enumerate(self.convs):
            x = conv(F.max_pool2d(x, 2) if i and min(x.shape[-2:]) > 1 else x)
            found.append(x)
        return Slices(*found)

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, d): the last two slices, mean-pooled."""
        found = self.slices(images)
        return torch.cat([found.relu4_3.mean((2, 3)), found.relu5_3.mean((2, 3))], dim=1)

    def logits(self, features: Tensor) -> Tensor:
        """(B, d) -> (B, classes)."""
        out: Tensor = self.head(features)
        return out

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> logits (B, classes)."""
        return self.logits(self.features(images))


class _ClassifierTask(Task):
    def __init__(self, spec: PretrainedSpec, images: Images, classes: int) -> None:
        assert spec.training is not None
        self.images, self.seed = images, spec.seed
        torch.manual_seed(spec.seed)
        model = PhotoClassifier(spec.options["channels"], classes)
        self.players = {"model": Player(model, spec.training.optimizer)}
        self.extras: dict[str, nn.Module] = {}

    def examples(self, start: int, count: int) -> Batch:
        images, labels = self.images.stream(start, count, self.seed)
        return to_float(images), torch.from_numpy(labels)

    def terms(self, player: str, batch: Batch, step: int, micro: int, rng: torch.Generator) -> Terms:
        logits = self.players[player].module(batch[0])
        loss = F.cross_entropy(logits, batch[1])
        accuracy = (logits.argmax(1) == batch[1]).float().mean()
        return Terms(loss, {"cross_entropy": loss, "accuracy": accuracy})


def run(job: Job) -> dict[str, Any]:
    """Step ``pretrained``: train the embedded classifier, or check the real weights and record their digest."""
    spec: PretrainedSpec = job.spec
    if spec.training is None:
        path = locate(spec)
        record = {"file": path.name, "sha256": check_weights(spec, path)}
        write_json(job.store / "weights.json", record)
        return record
    torch.set_num_threads(spec.threads)
    dataset = job.bench.datasets[spec.dataset or ""]
    job.upstream("dataset", spec.dataset or "")
    task = _ClassifierTask(spec, open_images(dataset, "train"), dataset.classes)
    trainer = Trainer(task, spec.training, job.state, spec.seed, job.key[1])
    trainer.run()
    finish(trainer, job.store)
    model = PhotoClassifier(spec.options["channels"], dataset.classes)
    model.load_state_dict(trainer.weights())
    accuracy = _accuracy(model.eval(), open_images(dataset, "validation"))
    return {"classes": dataset.classes, "validation_accuracy": accuracy}


def _accuracy(model: PhotoClassifier, images: Images) -> float:
    right = count_right(
        lambda part: model(to_float(images.batch(part.start, part.stop - part.start))), images.labels, len(images)
    )
    return round(right / len(images), 6)


def weights_path(spec: PretrainedSpec, finished: Finished) -> Path:
    """The real weights' file, checked against the digest recorded when the step ran."""
    path = locate(spec)
    if sha256_file(path) != finished.facts["sha256"]:
        raise MissingWeights(
            f"{path} changed since it was recorded in {finished.store}; restore it or remove that record"
        )
    return path


def open_classifier(spec: PretrainedSpec, finished: Finished, device: str | torch.device = "cpu") -> PhotoClassifier:
    """The trained embedded classifier, frozen, in eval mode."""
    model = PhotoClassifier(spec.options["channels"], finished.facts["classes"])
    model.load_state_dict(read_tensors(finished.file("model.safetensors")))
    return model.to(device).eval().requires_grad_(False)


class _ClassifierSlices(nn.Module):
    """What lpips expects as its network: five relu maps as a named tuple. Undoes lpips' ImageNet scaling."""

    def __init__(self, classifier: PhotoClassifier, scaling: Any) -> None:
        super().__init__()
        self.classifier = classifier
        self.scale, self.shift = nn.Buffer(scaling.scale), nn.Buffer(scaling.shift)

    def forward(self, scaled: Tensor) -> Slices:
        return self.classifier.slices(scaled * self.scale + self.shift)


def open_perceptual(spec: PretrainedSpec, finished: Finished, device: str | torch.device = "cpu") -> nn.Module:
    """The perceptual network of a role, an ``lpips.LPIPS`` in eval mode: (a, b) in [-1, 1] -> (B, 1, 1, 1)."""
    if spec.kind == "photo-classifier":
        return classifier_lpips(open_classifier(spec, finished, device))
    return open_lpips(spec.kind, weights_path(spec, finished), device)


def classifier_lpips(classifier: PhotoClassifier) -> nn.Module:
    """An ``lpips.LPIPS`` over the embedded classifier, on its device.

    The classifier has no human-judgement weights: this is lpips' unweighted baseline distance on its slices.
    """
    import lpips

    with torch.device("meta"):  # its VGG-16 is replaced at once: no memory, no time
        network = _lpips("vgg", lpips=False)
    network.scaling_layer = lpips.ScalingLayer()
    network.net = _ClassifierSlices(classifier, network.scaling_layer)
    return _frozen(network, next(classifier.parameters()).device)


def open_lpips(kind: str, path: Path, device: str | torch.device = "cpu") -> nn.Module:
    """LPIPS (Zhang et al. 2018) over torchvision's weights; the linear weights, version 0.1, ship with lpips.

    Args:
        kind: ``lpips-vgg16`` or ``lpips-alexnet``.
        path: torchvision's state dict, of which ``features.*`` is read.

    Raises:
        MissingWeights: the file cannot be read, or holds another network.
    """
    network = _lpips(_TRUNKS[kind])
    try:
        _load_trunk(network.net, torch.load(path, map_location="cpu", weights_only=True))
    except UNREADABLE as error:
        reason = str(error).strip().partition("\n")[0]
        raise MissingWeights(
            f"{path} does not hold torchvision's weights of '{kind}' ({reason}); {fetch_again(kind)}"
        ) from None
    return _frozen(network, device)


_TRUNKS = {"lpips-vgg16": "vgg", "lpips-alexnet": "alex"}  # kind -> lpips' name


def _lpips(net: str, **options: bool) -> Any:
    import lpips

    with warnings.catch_warnings():  # lpips 0.1.4 still passes torchvision the argument `pretrained`
        warnings.filterwarnings("ignore", category=UserWarning, module=r"torchvision\.models")
        return lpips.LPIPS(net=net, pnet_rand=True, verbose=False, **options)


def _frozen(network: nn.Module, device: str | torch.device) -> nn.Module:
    return network.to(device).eval().requires_grad_(False)


def _load_trunk(slices: nn.Module, state: dict[str, Tensor]) -> None:
    """Put torchvision's ``features.N.weight`` into lpips' five slices, which keep torchvision's indices."""
    names = [name.split(".", 1) for name in slices.state_dict()]  # slice1, 0.weight
    slices.load_state_dict({f"{part}.{rest}": state[f"features.{rest}"] for part, rest in names})
