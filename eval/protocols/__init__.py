"""Protocols: how images become numbers, as data in ``<name>.yaml`` beside this file, and the names that metrics then bear.

No torch here: tables, figures and the resolver read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, model_validator

from vqbench.errors import SpecError, nearest
from vqbench.specs import Spec, parse

FOLDER = Path(__file__).resolve().parent
JUDGED = frozenset({"fid", "rfid", "is", "precision", "recall"})  # metrics that need the judge's features


class Judge(Spec):
    """Which network gives features and logits, through which library, from which of its layers."""

    network: Literal["inception-v3", "photo-classifier"]
    engine: Literal["torch-fidelity", "clean-fid"]
    extractor: str = Field(description="torch-fidelity's registered name, or clean-fid's mode")
    features: str = Field(description="layer of FID, precision and recall")
    logits: str | None = Field(default=None, description="layer of the Inception Score")


class Splits(Spec):
    """Inception Score: mean over `splits` parts of the shuffled samples."""

    splits: int = Field(gt=0)
    shuffle: bool
    seed: int


class Neighbours(Spec):
    """Precision and recall: k-nearest-neighbour balls around generated and reference features."""

    neighborhood: int = Field(gt=0)
    reference_count: int = Field(gt=1)
    seed: int
    batch: int = Field(gt=0, description="rows of one distance block; bounds memory, not the value")


class SignalNoise(Spec):
    """PSNR per RGB image, then the mean over images."""

    space: Literal["rgb"]
    data_range: int = Field(gt=0)
    identical: Literal["exclude"] = Field(description="PSNR is infinite: left out of the mean and not counted in n")


class Window(Spec):
    """SSIM's window; `sigma` only for the Gaussian one."""

    window: Literal["uniform", "gaussian"]
    size: int = Field(gt=2)
    sigma: float | None = Field(default=None, gt=0)
    data_range: int = Field(gt=0)

    @model_validator(mode="after")
    def _whole_window(self) -> Window:
        if self.size % 2 == 0:
            raise ValueError("a window has an odd size")
        if (self.sigma is not None) != (self.window == "gaussian"):
            raise ValueError("sigma belongs to the gaussian window, and only to it")
        # scikit-image cuts its Gaussian at 3.5 sigma whatever window size it is told.
        if self.sigma is not None and self.size != 2 * int(3.5 * self.sigma + 0.5) + 1:
            raise ValueError(f"scikit-image's gaussian window of sigma {self.sigma} is not {self.size} wide")
        return self


class Distance(Spec):
    """LPIPS: the network under it, and the suffix of its name where that is a stand-in."""

    network: Literal["lpips-vgg16", "photo-classifier"]
    suffix: str


class ProbeRecipe(Spec):
    """Linear probing: affine-free batch norm and one linear layer on frozen, mean-pooled features."""

    optimizer: Literal["adamw"]
    lr: float = Field(gt=0)
    betas: tuple[float, float]
    weight_decay: float = Field(ge=0)
    epochs: int = Field(gt=0)
    batch: int = Field(gt=1)
    seed: int


class Protocol(Spec):
    """One protocol. `suffix` ends the name of every judged metric: ``[demo-judge]``, or nothing for the plain one."""

    name: str
    suffix: str
    batch: int = Field(gt=0, description="images that go through the judge together")
    judge: Judge
    inception_score: Splits | None = Field(alias="is")
    precision_recall: Neighbours | None
    psnr: SignalNoise
    ssim: Window
    lpips: Distance
    probe: ProbeRecipe

    @model_validator(mode="after")
    def _honest_names(self) -> Protocol:
        for network, suffix in ((self.judge.network, self.suffix), (self.lpips.network, self.lpips.suffix)):
            if network == "photo-classifier" and not suffix:
                raise ValueError("a stand-in network needs a suffix: its numbers must not bear the plain name")
        if self.inception_score is not None and self.judge.logits is None:
            raise ValueError("the Inception Score needs the judge's 'logits' layer")
        return self


def read_protocol(data: Mapping[str, Any]) -> Protocol:
    """A protocol from its YAML mapping.

    Raises:
        SpecError: unknown or missing key, value out of range, or a stand-in network without a suffix.
    """
    return parse(Protocol, dict(data), f"protocol '{data.get('name', '?')}'")


def load_protocol(name: str) -> Protocol:
    """A shipped protocol by its name, e.g. ``adm``.

    Raises:
        SpecError: there is none of that name.
    """
    known = {p.stem: p for p in FOLDER.glob("*.yaml")}
    if name not in known:
        raise SpecError(f"unknown protocol '{name}'; {nearest(name, known)}")
    return read_protocol(yaml.safe_load(known[name].read_text(encoding="utf-8")))


def metric_name(base: str, protocol: Protocol | Mapping[str, Any]) -> str:
    """The name a metric bears under a protocol (as read, or as its YAML mapping).

    >>> metric_name("fid", {"suffix": "[demo-judge]"}), metric_name("psnr", {"suffix": "[demo-judge]"})
    ('fid[demo-judge]', 'psnr')
    """
    if isinstance(protocol, Protocol):
        suffix, perceptual = protocol.suffix, protocol.lpips.suffix
    else:
        suffix = str(protocol.get("suffix") or "")
        perceptual = str((protocol.get("lpips") or {}).get("suffix", suffix))
    if base == "lpips":
        return base + perceptual
    return base + suffix if base in JUDGED else base
