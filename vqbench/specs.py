"""Typed, frozen specs: what a run is, and nothing about where or when it runs. Unknown keys fail with the nearest name.

A spec is what gets hashed, so it holds no absolute path and no wall-clock time. No torch here: the Snakefile reads it.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vqbench.errors import SpecError, nearest

Layout = Literal["raster", "channel", "multiscale"]
Role = Literal["judge", "perceptual", "teacher"]
SLICES = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")  # of the embedded classifier, under VGG-16's names


class Spec(BaseModel):
    """Base of all specs: immutable, no unknown keys, hashable through :func:`digest_of`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


SpecT = TypeVar("SpecT", bound=Spec)


class TokenSpec(Spec):
    """What a generator and the evaluation know of a tokenizer's tokens. ids have shape (B, num_tokens, num_slots)."""

    kind: Literal["discrete", "continuous"] = "discrete"
    layout: Layout
    grid: int = Field(gt=0, description="side h = w of the latent map")
    num_tokens: int = Field(gt=0, description="N: h*w for raster, channels for channel, sum of scales for multiscale")
    code_dim: int = Field(gt=0, description="length of one codebook vector")
    num_codes: int = Field(gt=0, description="K, the codebook size")
    num_slots: int = Field(default=1, gt=0, description="Q, codes a position")
    scales: tuple[int, ...] = ()

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of the latent map that has these tokens."""
        return (self.num_tokens if self.layout == "channel" else self.code_dim, self.grid, self.grid)


class DatasetSpec(Spec):
    """One data set: a folder of class folders, or photographs that ship inside scikit-image and scikit-learn."""

    kind: Literal["folder", "embedded"]
    path: str | None = Field(default=None, description="root folder; $VARIABLES are expanded; never hashed")
    images: tuple[str, ...] = Field(default=(), description="embedded: photograph names, one class each")
    short_side: int = Field(default=0, ge=0, description="embedded: photographs are first scaled to this short side")
    resolution: int = Field(gt=0)
    classes: int = Field(gt=0)
    splits: dict[str, str] = Field(default_factory=dict, description="folder: split name -> sub-folder")
    sizes: dict[str, int] = Field(description="images of each split (embedded: crops drawn)")
    crop: Literal["adm", "resize-center"] = "adm"
    augment: Literal["none", "flip", "random-crop-flip"] = "flip"
    on_bad_image: Literal["fail", "skip"] = "fail"
    fid_reference: Literal["train", "train+validation"] = Field(
        default="train", description="the images that FID of generated ones compares with"
    )
    seed: int = 0


class OptimizerSpec(Spec):
    name: Literal["adam", "adamw"]
    lr: float = Field(gt=0)
    betas: tuple[float, float]
    eps: float = 1e-8
    weight_decay: float = Field(default=0.0, ge=0)


class ScheduleSpec(Spec):
    """Learning rate over steps: linear warm-up, then constant, or by half a cosine or a line down to `final_lr`."""

    name: Literal["constant", "cosine", "linear"] = "constant"
    final_lr: float = Field(default=0.0, ge=0)
    warmup_steps: int = Field(default=0, ge=0)


class DiscriminatorSpec(Spec):
    """The adversary of a tokenizer recipe. Its weight is ``weights["adversarial"]`` of the recipe."""

    name: Literal["patchgan", "stylegan2"]
    loss: Literal["hinge", "non-saturating"]
    start_step: int = Field(ge=0, description="first step with the adversarial and discriminator losses on")
    adaptive: bool = Field(default=False, description="VQGAN's ratio of gradient norms at the last layer")
    base_channels: int = Field(default=64, gt=0)
    num_layers: int = Field(default=3, gt=0)
    lecam_weight: float = Field(default=0.0, ge=0)
    lecam_decay: float = Field(default=0.999, ge=0, lt=1)
    r1_weight: float = Field(default=0.0, ge=0)
    r1_every: int = Field(default=16, gt=0)
    optimizer: OptimizerSpec


class TrainingSpec(Spec):
    """A resolved recipe. `steps` is exact: epochs were turned into steps by the data set's size."""

    steps: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    micro_batch: int = Field(gt=0)
    optimizer: OptimizerSpec
    schedule: ScheduleSpec = ScheduleSpec()
    weights: dict[str, float] = Field(default_factory=dict, description="term of losses() -> weight")
    discriminator: DiscriminatorSpec | None = None
    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    clip_norm: float = Field(default=0.0, ge=0, description="0 is off")
    precision: Literal["fp32", "bf16"] = "fp32"
    tf32: bool = Field(default=False, description="let a GPU round the inputs of fp32 products to 10 bits")
    compile: bool = Field(default=False, description="torch.compile the model's forward pass")
    recompute: bool = Field(
        default=False, description="activation checkpointing: blocks run again in the backward pass"
    )
    checkpoint_every: int = Field(default=1000, gt=0)
    usage_every: int = Field(default=0, ge=0, description="steps by which a tokenizer's usage is counted; 0: an epoch")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    class_drop: float = Field(default=0.0, ge=0, le=1, description="0 where there is one class alone")

    @model_validator(mode="after")
    def _whole_micro_batches(self) -> TrainingSpec:
        if self.batch_size % self.micro_batch:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of micro_batch {self.micro_batch}")
        return self


class PretrainedSpec(Spec):
    """One pretrained network in one of the three roles (judge, perceptual, teacher)."""

    kind: Literal[
        "inception-v3", "lpips-vgg16", "lpips-alexnet", "vgg16", "dinov2-vitl14", "clip-vitb32", "clip-vitl14",
        "clip-vitb16", "clip-rn50", "mae-vitb16", "photo-classifier",
    ]  # fmt: skip
    url: str | None = Field(default=None, pattern=r"^https://")
    filename: str | None = Field(
        default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="in torch's hub cache"
    )
    sha256_prefix: str | None = Field(default=None, description="published digest or the prefix in the file's name")
    dataset: str | None = None
    resolution: int | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    training: TrainingSpec | None = None
    threads: int = Field(default=1, gt=0)
    seed: int = 0

    @model_validator(mode="after")
    def _trained_here_or_fetched(self) -> PretrainedSpec:
        """The embedded classifier has five slices, whose channels its GroupNorm takes in four groups."""
        if self.kind != "photo-classifier":
            if self.training or not self.filename:
                raise ValueError(f"'{self.kind}' is read from a file: it has a 'filename' and no 'training'")
            return self
        channels = self.options.get("channels") if set(self.options) == {"channels"} else None
        if not isinstance(channels, list) or [type(c) is int and c > 0 and c % 4 == 0 for c in channels] != [True] * 5:
            raise ValueError("its 'options' are {channels: [...]}: five positive multiples of 4")
        return self


class FeaturesSpec(Spec):
    """A teacher's patch features of a training split: `grid` x `grid` vectors of length `dim` an image."""

    teacher: str
    network: str = Field(description="the pretrained network that is the teacher at this scale")
    layer: str = Field(default="", description="slice of the embedded classifier; a real teacher has one map alone")
    dataset: str
    grid: int = Field(gt=0)
    dim: int = Field(gt=0)
    batch: int = Field(gt=0)
    threads: int = Field(default=1, gt=0)


class CodebookSpec(Spec):
    """A codebook that is made before any tokenizer trains: ``num_codes`` vectors of length ``code_dim``."""

    method: Literal["kmeans", "kmeans-per-class", "random-features", "random"]
    num_codes: int = Field(gt=0)
    code_dim: int = Field(gt=0, description="of features, the teacher's")
    teacher: str = ""
    dataset: str = Field(default="", description="whose training split the teacher has seen")
    classes: int = Field(default=1, gt=0, description="that are clustered one by one")
    passes: int = Field(default=10, gt=0, description="ours: of k-means over all features")
    batch_size: int = Field(default=4096, gt=0, description="ours: features of one update; never fewer than clusters")
    seed: int = 0
    threads: int = Field(default=1, gt=0)


class TokenizerSpec(Spec):
    family: str
    dataset: str
    resolution: int = Field(gt=0)
    downsample: int = Field(gt=0, description="f = H / h")
    recipe: str
    options: dict[str, Any] = Field(description="the family's own options, all of them, checked against its OPTIONS")
    tokens: TokenSpec
    training: TrainingSpec
    perceptual: str
    seed: int = 0
    threads: int = Field(default=1, gt=0)


class EncodedSpec(Spec):
    """What an encoder makes of one split, written once and memory-mapped by all who read it."""

    tokenizer: str
    dataset: str
    split: Literal["train", "validation"]
    views: int = Field(default=1, gt=0, description="augmented views of each image; 1 is the plain crop")
    batch: int = Field(gt=0)
    threads: int = Field(default=1, gt=0)


class TokensSpec(EncodedSpec):
    """Ids and pooled features."""

    pooling: Literal["mean", "flat"] = Field(default="mean", description="of the latents that linear probing reads")


class GeneratorSpec(Spec):
    family: str
    reads: Literal["tokens", "latents"] = "tokens"
    tokenizer: str
    dataset: str
    recipe: str
    tokens: TokenSpec
    num_classes: int = Field(gt=0)
    options: dict[str, Any]
    training: TrainingSpec
    seed: int = 0
    threads: int = Field(default=1, gt=0)


NO_WEIGHTS = "none"


class VitSpec(Spec):
    """A vision transformer over a token map; the defaults are ViT-B's. `weights` names the network it starts from."""

    layers: int = Field(default=12, gt=0)
    width: int = Field(default=768, gt=0)
    heads: int = Field(default=12, gt=0)
    mlp_ratio: float = Field(default=4.0, gt=0)
    patch: int = Field(default=1, gt=0, description="codes along the side of what becomes one position")
    drop_path: float = Field(default=0.1, ge=0, lt=1)
    weights: str = Field(default=NO_WEIGHTS, description="of pretrained.yaml, or none: from scratch")


class ClassifierSpec(Spec):
    """A classifier of token maps."""

    tokenizer: str
    dataset: str
    recipe: str
    tokens: TokenSpec
    num_classes: int = Field(gt=1)
    network: VitSpec
    training: TrainingSpec
    seed: int = 0
    threads: int = Field(default=1, gt=0)


class SampleSpec(Spec):
    generator: str
    sampler: dict[str, Any] = Field(description="the generator family's sampler options, all of them")
    count: int = Field(gt=0)
    block: int = Field(gt=0, description="images sampled together; seeds go by block, the last one is padded")
    num_classes: int = Field(gt=0)
    seed: int = 0
    threads: int = Field(default=1, gt=0)


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: the text that is hashed."""
    if isinstance(value, Spec):
        value = value.model_dump(mode="json", exclude={"path"})
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise SpecError(
            f"a spec holds what cannot be written down ({error}): only finite numbers, text, lists, mappings"
        ) from None


def plain(spec: Any) -> dict[str, Any]:
    """A spec as plain JSON data, as manifests hold it."""
    return dict(json.loads(canonical(spec)))


def digest_of(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of a spec or a plain value."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def parse(model: type[SpecT], data: dict[str, Any], where: str) -> SpecT:
    """Build a spec; every mistake becomes one :class:`SpecError` that names the entry and the key.

    Raises:
        SpecError: unknown key (with the nearest valid name), missing key, wrong type or value out of range.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        lines = [_explain(model, issue, where) for issue in error.errors(include_url=False)]
        raise SpecError("\n".join(lines)) from None


def _explain(model: type[Spec], issue: Any, where: str) -> str:
    path = [str(p) for p in issue["loc"]]
    key = ".".join(path)
    if issue["type"] == "extra_forbidden":
        return f"{where}: unknown key '{key}'; {nearest(path[-1], _fields_at(model, path[:-1]))}"
    if issue["type"] == "missing":
        return f"{where}: key '{key}' is missing"
    if not key and issue["type"] == "value_error":  # a rule of the whole entry
        return f"{where}: {issue['ctx']['error']}"
    return f"{where}: '{key}' is {issue['input']!r}: {issue['msg'].lower()}"


def _fields_at(model: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        field = model.model_fields.get(part)
        inner = (
            [a for a in _types_in(field.annotation) if isinstance(a, type) and issubclass(a, BaseModel)]
            if field
            else []
        )
        if not inner:
            return []
        model = inner[0]
    return list(model.model_fields)


def _types_in(annotation: Any) -> list[Any]:
    args = getattr(annotation, "__args__", None)
    return [annotation] if not args else [t for a in args for t in _types_in(a)]
