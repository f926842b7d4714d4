"""``codebooks:`` entries, and the patch features that they are made from: from YAML to specs. No torch.

A codebook is made once and used by any number of tokenizers, on any data set; a family says in its literal ``NEEDS``
that it wants one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vqbench.errors import SpecError, nearest
from vqbench.resolve import Overlay
from vqbench.rooms import needs
from vqbench.specs import (
    SLICES,
    CodebookSpec,
    DatasetSpec,
    FeaturesSpec,
    PretrainedSpec,
    Spec,
    TokenizerSpec,
    parse,
)

GRID = 4  # patch features along each side of an image: VQGAN-LC Sec. 4.1 pools ViT-L/14's 16 x 16 by 4 x 4

# kind of network -> length of its patch features. ViT: after the projection (the released code); ResNet-50: the map under
# the attention pool (ours: the paper says no more than "patch-level features").
DIMS = {"clip-vitl14": 768, "clip-vitb16": 512, "clip-rn50": 2048}

ENTRY = ("method", "num_codes", "code_dim", "teacher", "dataset", "passes", "batch_size", "seed")


def resolve_features(
    teacher: str,
    dataset: str,
    datasets: Mapping[str, DatasetSpec],
    pretrained: Mapping[str, PretrainedSpec],
    overlay: Overlay,
    where: str,
) -> FeaturesSpec:
    """What a teacher gives of a data set's training split at one scale.

    Raises:
        SpecError: no such teacher or layer, no such data set, or one without a training split.
    """
    network, layer = overlay.teacher(teacher)
    if network not in pretrained or pretrained[network].kind not in (*DIMS, "photo-classifier"):
        known = [name for name, spec in pretrained.items() if spec.kind in DIMS]
        raise SpecError(f"{where}: no teacher '{teacher}'; {nearest(teacher, known)}")
    if dataset not in datasets or "train" not in datasets[dataset].sizes:
        known = [name for name, spec in datasets.items() if "train" in spec.sizes]
        raise SpecError(f"{where}: '{dataset}' is no data set with a training split; {nearest(dataset, known)}")
    data = {"teacher": teacher, "network": network, "layer": layer, "dataset": dataset, "grid": GRID,
            "dim": _dim(pretrained[network], layer, where), "batch": overlay.tokens.get("batch"),
            "threads": overlay.threads}  # fmt: skip
    return parse(FeaturesSpec, data, where)


def _dim(spec: PretrainedSpec, layer: str, where: str) -> int:
    if spec.kind in DIMS:
        if layer:
            raise SpecError(f"{where}: '{spec.kind}' has one map of features, no layer '{layer}'; leave the layer out")
        return DIMS[spec.kind]
    if layer not in SLICES:
        raise SpecError(f"{where}: the embedded classifier has no layer '{layer}'; {nearest(layer, SLICES)}")
    channels = spec.options.get("channels")
    if not isinstance(channels, list) or len(channels) != len(SLICES) or not all(type(c) is int for c in channels):
        raise SpecError(
            f"{where}: the embedded classifier's 'channels' are {channels!r}: expected {len(SLICES)} counts"
        )
    return int(channels[SLICES.index(layer)])


def resolve_codebook(
    entry: dict[str, Any],
    datasets: Mapping[str, DatasetSpec],
    pretrained: Mapping[str, PretrainedSpec],
    overlay: Overlay,
    where: str,
) -> CodebookSpec:
    """One ``codebooks:`` entry at one scale; the scale replaces ``num_codes`` and ``code_dim`` as it does tokenizers'.

    Raises:
        SpecError: unknown key, method, teacher or data set; more codes than features; codes that the classes cannot share.
    """
    for key in entry:
        if key not in ENTRY:
            raise SpecError(f"{where}: unknown key '{key}'; {nearest(key, ENTRY)}")
    if entry.get("method") == "random":
        return _random(entry, overlay, where)
    for key in ("teacher", "dataset"):
        if key not in entry:
            raise SpecError(f"{where}: key '{key}' is missing; only 'method: random' needs no features")
    if "code_dim" in entry:
        raise SpecError(f"{where}: 'code_dim' is the teacher's; leave it out, or set method: random")
    dataset = overlay.dataset(str(entry["dataset"]))
    features = resolve_features(str(entry["teacher"]), dataset, datasets, pretrained, overlay, where)
    per_class = entry.get("method") == "kmeans-per-class"
    data = {**overlay.options("tokenizers", "", entry), "dataset": dataset, "code_dim": features.dim,
            "classes": datasets[dataset].classes if per_class else 1, "threads": overlay.threads}  # fmt: skip
    found = parse(CodebookSpec, data, where)
    _check_counts(found, datasets[dataset].sizes["train"] * features.grid**2, where)
    return found


def _random(entry: dict[str, Any], overlay: Overlay, where: str) -> CodebookSpec:
    for key in ("teacher", "dataset", "passes", "batch_size"):
        if key in entry:
            raise SpecError(f"{where}: 'method: random' reads no features; leave '{key}' out")
    return parse(CodebookSpec, {**overlay.options("tokenizers", "", entry), "threads": overlay.threads}, where)


def _check_counts(spec: CodebookSpec, features: int, where: str) -> None:
    if spec.num_codes > features:
        raise SpecError(f"{where}: num_codes is {spec.num_codes}, and '{spec.teacher}' gives {features} features of "
                        f"'{spec.dataset}'; lower num_codes, or use a larger data set")  # fmt: skip
    if spec.method != "kmeans-per-class":
        return
    if spec.classes == 1:
        raise SpecError(f"{where}: data set '{spec.dataset}' has one class; set method: kmeans")
    if spec.num_codes % spec.classes:
        raise SpecError(f"{where}: {spec.num_codes} codes cannot be shared evenly by the {spec.classes} classes of "
                        f"'{spec.dataset}'; set method: kmeans, which clusters all features together")  # fmt: skip


def check_needs(spec: TokenizerSpec, known: Mapping[str, Mapping[str, Spec]], where: str) -> None:
    """What a family's ``NEEDS`` names is there and fits the tokenizer's own options.

    Args:
        known: kind -> name -> spec.

    Raises:
        SpecError: an option names nothing, or a value that must match does not.
    """
    for option, rule in needs(spec.family).items():
        kind, name = rule["kind"], spec.options[option]
        if name not in known[kind]:
            raise SpecError(f"{where}: '{option}' is {name!r}, no {kind} of a paper; {nearest(name, known[kind])}")
        for own, theirs in rule["match"].items():
            value = getattr(known[kind][name], theirs)
            if spec.options[own] != value:
                raise SpecError(f"{where}: '{own}' is {spec.options[own]}, and that of {kind} '{name}' is {value} "
                                f"at this scale; give both the same, or name another {kind}")  # fmt: skip
