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
PAIRED = ("psnr", "ssim", "ms_ssim", "lpips", "lpips_alex")
JUDGED = frozenset({"fid", "rfid", "sfid", "kid", "is", "precision", "recall", "density", "coverage", "fid_infinity"})

Resampler = Literal[
    "none",  # the network takes images as they are
    "tf1-bilinear",  # TensorFlow 1's resize_bilinear: no half-pixel shift, no antialiasing
    "torch-bilinear",  # torch.nn.functional.interpolate(align_corners=False), no antialiasing
    "torch-bilinear-antialias",
    "pil-bicubic",  # PIL's bicubic on float channels, antialiased (clean-fid's "clean")
    "pil-bicubic-uint8",  # PIL's bicubic on uint8 RGB: rounded to levels after the resize
    "pil-bilinear-uint8",
]


class Sets(Spec):
    """Which images the protocol's published numbers are of; other counts are scored, and warned of."""

    count: int | None = Field(gt=0, description="generated images, or reconstructions; null: its source fixes none")
    reference: str = Field(description="what generated images are compared with")
    reconstruction: str | None = Field(default=None, description="what reconstructions are; null: the same")
    uncropped: bool = Field(
        default=False, description="the reference is files as they are: the originals of pairs, cropped, are not it"
    )


class ImageRules(Spec):
    """How files and tensors become the uint8 images that are scored."""

    crop: Literal["adm", "resize-centre", "none"] = Field(
        description="of reference images that are not yet of the generated images' size"
    )
    rounding: Literal["nearest", "truncate"] = Field(
        description="of float images to 256 levels: nearest, or the integer part of 255 x (corrupts exact round trips)"
    )
    bit_depth: Literal[8] = Field(
        default=8, description="bits a channel that are scored; 16-bit files are refused, their levels would be cut"
    )


class Judge(Spec):
    """Which network gives features and logits, from which of its layers, of images resized how."""

    network: Literal["inception-v3", "vgg16", "dinov2-vitl14", "clip-vitb32", "photo-classifier"]
    resize: Resampler
    size: int | None = Field(default=None, gt=0, description="side the network sees; null: the images' own")
    gain: float = Field(default=1.0, gt=0, description="of resized levels, before the network's own scaling of them")
    features: str = Field(description="layer of FID and KID")
    logits: str | None = Field(default=None, description="layer of the Inception Score")
    spatial: str | None = Field(default=None, description="layer of sFID")


class Splits(Spec):
    """Inception Score: mean over parts of the samples, so many or of so many images, shuffled by a fixed seed or in order."""

    splits: int | None = Field(default=None, gt=0)
    split_size: int | None = Field(default=None, gt=1, description="images of a part; the last part takes what is left")
    shuffle: bool
    seed: int

    @model_validator(mode="after")
    def _one_way_to_cut(self) -> Splits:
        if (self.splits is None) == (self.split_size is None):
            raise ValueError("either 'splits' or 'split_size' cuts the samples, not both and not neither")
        return self

    def cuts(self, count: int) -> list[int]:
        """Where `count` images are cut: 0, ..., `count`.

        Raises:
            SpecError: fewer images than parts.
        """
        if self.split_size is not None:
            return [*range(0, count, self.split_size), count]
        assert self.splits is not None
        if count < self.splits:
            raise SpecError(
                f"{count} images cannot be cut into {self.splits} splits; lower 'is.splits' or give more images"
            )
        return [i * count // self.splits for i in range(self.splits + 1)]

    def whole(self, count: int) -> int:
        """How many parts `count` images make that compare with each other; 0 where the last one is smaller."""
        return 0 if self.rest(count) else len(self.cuts(count)) - 1

    def rest(self, count: int) -> int:
        """Images of a last part that is smaller than the others; 0 where there is none."""
        return count % self.split_size if self.split_size is not None and count > self.split_size else 0


class Neighbours(Spec):
    """Precision, recall, density and coverage: k-nearest-neighbour balls around generated and reference features."""

    judge: Judge | None = Field(default=None, description="network of its own; null: the judge's `features` layer")
    neighborhood: int = Field(gt=0)
    comparison: Literal["<=", "<"] = Field(description="a point on a ball's surface is inside, or is not")
    reference_count: int | None = Field(gt=1, description="reference images, drawn by seed; null: all")
    equal_counts: bool = Field(
        default=False, description="as many images of both sets, the smaller number, drawn by seed"
    )
    seed: int


class Kernel(Spec):
    """KID: unbiased MMD^2 with a polynomial kernel, mean over random subsets."""

    subsets: int = Field(gt=1)
    subset_size: int = Field(gt=1)
    degree: int = Field(gt=0)
    gamma: float | None = Field(default=None, description="null: 1 / d")
    coef0: float
    seed: int


class Extrapolation(Spec):
    """FID-infinity: FID of random subsets of several sizes, a line through them in 1/N, its value at 0."""

    points: int = Field(gt=2)
    smallest: int = Field(gt=1, description="images of the smallest subset where there are enough")
    seed: int


class SignalNoise(Spec):
    """PSNR of an image pair, then the mean over images, or one PSNR of the MSE pooled over all images."""

    space: Literal["rgb", "y"] = Field(description="y: ITU-R BT.601 luma")
    pooling: Literal["images", "mse"]
    data_range: float = Field(gt=0, description="of images in levels 0..255")
    identical: Literal["exclude"] = Field(description="PSNR is infinite: left out of the mean and not counted in n")
    suffix: str = Field(default="", description="of its name, where it is not adm's")


class Window(Spec):
    """SSIM's window, range and channels; `sigma` only for the Gaussian one."""

    window: Literal["uniform", "gaussian"]
    size: int = Field(gt=2)
    sigma: float | None = Field(default=None, gt=0)
    data_range: float = Field(gt=0, description="of images in levels 0..255; 510 where [0, 1] images were given 2")
    channels: Literal["rgb", "gray", "y"]
    covariance: Literal["sample", "population"]
    downsample: bool = Field(default=False, description="average-pool so that the short side is near 256, as piq does")
    suffix: str = Field(default="", description="of its name and MS-SSIM's, where it is not adm's")

    @model_validator(mode="after")
    def _whole_window(self) -> Window:
        if self.size % 2 == 0:
            raise ValueError("a window has an odd size")
        if (self.sigma is not None) != (self.window == "gaussian"):
            raise ValueError("sigma belongs to the gaussian window, and only to it")
        return self


class Distance(Spec):
    """LPIPS: the network under it."""

    network: Literal["lpips-vgg16", "lpips-alexnet", "photo-classifier"]
    suffix: str = Field(description="of its name, where it is not adm's")
    rescaled: bool = Field(
        default=False, description="images in [-1, 1] are taken for ones in [0, 1]: the network sees them in [-3, 1]"
    )


ALEX = Distance(network="lpips-alexnet", suffix="")  # metric lpips_alex, whatever the protocol's own LPIPS is


class ProbeRecipe(Spec):
    """Linear probing: affine-free batch norm and one linear layer on frozen latents."""

    pooling: Literal["mean", "flat"] = Field(description="spatial mean of the latents, or all of them")
    optimizer: Literal["adamw", "lbfgs"]
    lr: float | None = Field(default=None, gt=0, description="adamw")
    betas: tuple[float, float] | None = Field(default=None, description="adamw")
    weight_decay: float = Field(ge=0, description="adamw: decoupled; lbfgs: L2 penalty of the mean loss")
    epochs: int = Field(gt=0, description="adamw: passes; lbfgs: iterations")
    batch: int | None = Field(default=None, gt=1, description="adamw")
    seed: int

    @model_validator(mode="after")
    def _own_settings(self) -> ProbeRecipe:
        given = {"lr": self.lr, "betas": self.betas, "batch": self.batch}
        wrong = [k for k, v in given.items() if (v is None) == (self.optimizer == "adamw")]
        if wrong:
            state = "needs" if self.optimizer == "adamw" else "has no"
            raise ValueError(f"{self.optimizer} {state} {', '.join(wrong)}")
        return self


class Protocol(Spec):
    """One protocol. `suffix` ends the name of every judged metric: ``[demo-judge]``, or nothing for the plain one.

    PSNR, SSIM and LPIPS have a suffix of their own: plain where they are computed as adm's, whatever the judge is.
    """

    name: str
    summary: str = Field(description="one line for people")
    source: tuple[str, ...] = Field(min_length=1, description="repository:path or paper section of each choice")
    suffix: str
    batch: int = Field(gt=0, description="images that go through the judge together; bounds memory, not the value")
    sets: Sets
    images: ImageRules
    judge: Judge
    metrics: tuple[str, ...] = Field(description="what `vqbench evaluate` computes where --metrics is not given")
    inception_score: Splits | None = Field(alias="is")
    precision_recall: Neighbours | None
    kid: Kernel | None
    fid_infinity: Extrapolation | None
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

    @model_validator(mode="after")
    def _defined(self) -> Protocol:
        """What is listed can be computed."""
        missing = [name for name in self.metrics if not self.defines(name)]
        if missing:
            raise ValueError(f"'metrics' lists {', '.join(missing)}, which the protocol does not define")
        return self

    def defines(self, metric: str) -> bool:
        """Whether a metric has the block that it needs; one that needs none always has."""
        neighbours = dict.fromkeys(("precision", "recall", "density", "coverage"), self.precision_recall)
        blocks = {"is": self.inception_score, "kid": self.kid, "fid_infinity": self.fid_infinity,
                  "sfid": self.judge.spatial, **neighbours}  # fmt: skip
        return blocks.get(metric, "") is not None


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
    if base in JUDGED:
        return base + _suffix(protocol)
    if base in PAIRED and base != "lpips_alex":
        return base + _suffix(protocol, "ssim" if base == "ms_ssim" else base)
    return base


def _suffix(protocol: Protocol | Mapping[str, Any], block: str = "") -> str:
    """The protocol's, or a block's."""
    if isinstance(protocol, Protocol):
        return str((getattr(protocol, block) if block else protocol).suffix)
    return str(((protocol.get(block) or {}) if block else protocol).get("suffix") or "")
