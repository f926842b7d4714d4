"""From YAML entries to specs: recipe with its bases, the family's defaults, the entry, then what the scale replaces."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from vqbench.errors import Impossible, SpecError, nearest
from vqbench.rooms import Room, families, family_literals
from vqbench.shapes import ScaleShape
from vqbench.specs import (
    ClassifierSpec,
    DatasetSpec,
    GeneratorSpec,
    SampleSpec,
    TokenizerSpec,
    TokenSpec,
    TrainingSpec,
    VitSpec,
    parse,
)

KINDS = ("tokenizers", "generators", "samples", "classifiers")


class Overlay:
    """What a scale replaces (workflow/scales/<scale>.yaml).

    ``replace`` maps printed values to scaled ones by option name ({num_codes: {16384: 256}}); ``set`` overrides options
    by name whatever their value was; ``families`` does so for one family. An option that a family does not have is
    left alone, so a new family is scaled without an entry of its own.
    """

    SIZES: ClassVar = {"steps", "batch_size", "micro_batch", "schedule", "precision", "tf32", "compile", "recompute",
                       "checkpoint_every", "usage_every"}  # fmt: skip

    def __init__(self, data: dict[str, Any], scale: str) -> None:
        parse(ScaleShape, data, f"scales/{scale}.yaml")
        self.scale = scale
        self.about: str = data.get("about", "")
        self.protocol: str = data["protocol"]
        self.roles: dict[str, str] = data["roles"]
        self.threads: int = data.get("threads", 1)
        self.tokens: dict[str, Any] = data.get("tokens", {})
        self.resources: dict[str, dict[str, Any]] = data.get("resources") or {}
        self._datasets: dict[str, str] = data.get("datasets") or {}
        self._teachers: dict[str, str] = data.get("teachers") or {}
        self._kinds: dict[str, dict[str, Any]] = {k: data.get(k) or {} for k in KINDS}

    def dataset(self, name: str) -> str:
        """The data set that stands for `name` at this scale."""
        return self._datasets.get(name, name)

    def teacher(self, name: str) -> tuple[str, str]:
        """The pretrained network that stands for a teacher at this scale, and its layer ("" where it has one alone)."""
        network, _, layer = self._teachers.get(name, name).partition("/")
        return network, layer

    def options(self, kind: str, family: str, options: dict[str, Any]) -> dict[str, Any]:
        """`options` with the scale's replacements."""
        layer = self._kinds[kind]
        replaced = {k: _mapped(layer.get("replace", {}).get(k, {}), v) for k, v in options.items()}
        for forced in (layer.get("set", {}), layer.get("families", {}).get(family, {})):
            replaced.update({k: v for k, v in forced.items() if k in replaced})
        return replaced

    def training(self, kind: str, family: str, training: dict[str, Any]) -> dict[str, Any]:
        """A recipe with the scale's training settings merged over it; an EMA, GAN or term that it lacks stays absent."""
        layer = {k: v for k, v in self._kinds[kind].get("training", {}).items() if k in training or k in self.SIZES}
        if "weights" in layer:
            layer["weights"] = {k: v for k, v in layer["weights"].items() if k in training["weights"]}
        merged = _merge(training, layer)
        return _merge(merged, self._kinds[kind].get("family_training", {}).get(family, {}))


def _mapped(table: Mapping[Any, Any], value: Any) -> Any:
    return table.get(value, value) if isinstance(value, int | float | str) else value


# No size, count or number of layers is larger: a model of 10^30 layers would be built for ever.
LARGEST = 10**8

# Different ways to say one thing: what an overlay or entry says in one way replaces what the recipe says in another.
SAME = (
    {"steps", "epochs"},
    {"start_step", "start_epoch", "start_share"},
    {"warmup_steps", "warmup_epochs", "warmup_share"},
)


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings merged, `over` winning; a value of None removes a key."""
    replaced = {k for group in SAME if group & over.keys() for k in group}
    merged = {k: v for k, v in base.items() if k not in replaced}
    for key, value in over.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def recipe_of(recipes: Mapping[str, Mapping[str, Any]], name: str, where: str) -> dict[str, Any]:
    """A recipe with its bases merged in. ``vqgan`` means ``vqgan/paper``.

    Raises:
        SpecError: unknown recipe, or bases in a circle.
    """
    full = name if "/" in name else f"{name}/paper"
    chain: list[str] = []
    while full:
        if full not in recipes:
            raise SpecError(f"{where}: unknown recipe '{full}'; {nearest(full, recipes)}")
        if full in chain:
            raise SpecError(f"{where}: recipe '{full}' includes itself ({' -> '.join([*chain, full])})")
        chain.append(full)
        full = recipes[full].get("base", "")
    merged: dict[str, Any] = {}
    for link in reversed(chain):
        merged = _merge(merged, {k: v for k, v in recipes[link].items() if k != "base"})
    return merged


def resolve_training(recipe: Mapping[str, Any], images: int, where: str) -> dict[str, Any]:
    """Turn ``epochs``, ``start_epoch`` and ``warmup_epochs`` into steps for a data set of `images` images.

    A run that asks for a ``share`` is that part of its recipe's length, at every scale.

    Raises:
        SpecError: unknown key, neither steps nor epochs given, one of them not positive, or no share.
    """
    data: dict[str, Any] = {k: dict(v) if isinstance(v, Mapping) else v for k, v in recipe.items()}
    for key in data:
        if key not in (known := {*TrainingSpec.model_fields, "epochs", "share", "options"}):
            raise SpecError(f"{where}: unknown key 'training.{key}'; {nearest(key, known)}")
    for key in ("steps", "epochs", "batch_size"):
        if key in data and (not isinstance(data[key], int | float) or data[key] <= 0):
            raise SpecError(f"{where}: '{key}' is {data[key]!r}: input should be greater than 0")
    epochs, per_epoch = data.pop("epochs", None), images / data["batch_size"] if "batch_size" in data else 0
    if epochs is None and "steps" not in data:
        raise SpecError(f"{where}: its recipe gives neither 'steps' nor 'epochs'")
    data.setdefault("steps", round((epochs or 0) * per_epoch))
    for part, name in (("discriminator", "start_step"), ("schedule", "warmup_steps")):
        if isinstance(data.get(part), dict):
            _to_steps(data[part], name, per_epoch, data["steps"], where)
    data.setdefault("micro_batch", data.get("batch_size"))
    return _cut(data, where)


def _cut(training: dict[str, Any], where: str) -> dict[str, Any]:
    """`training` with all its numbers of steps cut to its ``share``: the warm-up stays the same part of the whole."""
    share = training.pop("share", 1.0)
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        raise SpecError(f"{where}: 'share' is {share!r}: expected a part of the recipe's steps, above 0 and at most 1")
    for part, name, least in ((training, "steps", 1), (training.get("discriminator"), "start_step", 0),
                              (training.get("schedule"), "warmup_steps", 0)):  # fmt: skip
        if isinstance(part, dict) and share < 1 and isinstance(part.get(name), int | float):
            part[name] = max(least, round(share * part[name]))
    return training


def _to_steps(part: dict[str, Any], name: str, per_epoch: float, steps: int, where: str) -> None:
    """``start_epoch: 10`` or ``start_share: 0.5`` -> ``start_step``; likewise ``warmup_...``."""
    stem = name.split("_")[0]
    for key, unit in ((f"{stem}_epoch", per_epoch), (f"{stem}_epochs", per_epoch), (f"{stem}_share", steps)):
        if key in part:
            if not isinstance(part[key], int | float) or part[key] < 0:
                raise SpecError(f"{where}: '{key}' is {part[key]!r}: input should be a number, 0 or more")
            part[name] = round(part.pop(key) * unit)


def resolve_tokenizer(
    entry: dict[str, Any],
    datasets: Mapping[str, DatasetSpec],
    recipes: Mapping[str, Mapping[str, Any]],
    overlay: Overlay,
    where: str,
) -> TokenizerSpec:
    """One ``tokenizers:`` entry at one scale. Keys that are not common to all families are the family's options."""
    own = _split(entry, {"family", "dataset", "recipe", "downsample", "seed", "training"}, "tokenizers", where)
    common, family = own["common"], own["family"]
    dataset_id = _dataset_id(common, datasets, overlay, where)
    dataset = datasets[dataset_id]
    recipe = recipe_of(recipes, common.get("recipe", family), where)
    defaults = {**own["literals"]["OPTIONS"], **_known(recipe.pop("options", {}), own["literals"]["OPTIONS"], where)}
    wanted = {"downsample": common.get("downsample", 16), **defaults, **own["options"]}
    known = {"downsample": 16, **own["literals"]["OPTIONS"]}
    options = _fitted(_scaled(overlay, "tokenizers", family, wanted, known, where), wanted)
    downsample = options.pop("downsample")
    recipe = overlay.training("tokenizers", family, _merge(recipe, common.get("training", {})))
    _check_terms(recipe.get("weights", {}), {*TERMS, *own["literals"].get("TERMS", ())}, where)
    tokens = _token_spec(own["literals"], options, dataset.resolution, downsample, where)
    data = {
        "family": family, "dataset": dataset_id, "resolution": dataset.resolution, "downsample": downsample,
        "recipe": common.get("recipe", family), "options": options, "tokens": tokens.model_dump(),
        "training": resolve_training(recipe, dataset.sizes["train"], where),
        "perceptual": overlay.roles["perceptual"], "seed": common.get("seed", 0), "threads": overlay.threads,
    }  # fmt: skip
    return parse(TokenizerSpec, data, where)


def resolve_generator(
    entry: dict[str, Any],
    tokenizers: Mapping[str, TokenizerSpec],
    datasets: Mapping[str, DatasetSpec],
    recipes: Mapping[str, Mapping[str, Any]],
    overlay: Overlay,
    where: str,
) -> GeneratorSpec:
    """One ``generators:`` entry at one scale.

    Raises:
        SpecError: also for a tokenizer that the family declares not to accept (:class:`Impossible`), with its reason.
    """
    own = _split(entry, {"family", "tokenizer", "recipe", "seed", "training"}, "generators", where)
    common, family = own["common"], own["family"]
    name, tokenizer = _learned_from(common, tokenizers, where)
    _check_accepts(own["literals"], tokenizer.tokens, f"{where}: family '{family}' cannot take tokenizer '{name}'")
    dataset = datasets[tokenizer.dataset]
    recipe = _merge(recipe_of(recipes, common.get("recipe", family), where), common.get("training", {}))
    _check_terms(recipe.get("weights", {}), set(own["literals"].get("TERMS", ("cross_entropy",))), where)
    known = own["literals"]["OPTIONS"]
    options = {**known, **_known(recipe.pop("options", {}), known, where), **own["options"]}
    recipe = overlay.training("generators", family, recipe)
    if dataset.classes == 1:  # no guidance can ask for what it learned without its one class
        recipe["class_drop"] = 0.0
    data = {
        "family": family, "reads": own["literals"].get("READS", "tokens"), "tokenizer": name,
        "dataset": tokenizer.dataset, "recipe": common.get("recipe", family),
        "tokens": tokenizer.tokens.model_dump(), "num_classes": dataset.classes,
        "options": _scaled(overlay, "generators", family, options, known, where),
        "training": resolve_training(recipe, dataset.sizes["train"], where),
        "seed": common.get("seed", 0), "threads": overlay.threads,
    }  # fmt: skip
    return parse(GeneratorSpec, data, where)


def resolve_samples(
    entry: dict[str, Any], generators: Mapping[str, GeneratorSpec], overlay: Overlay, where: str
) -> SampleSpec:
    """One ``samples:`` entry at one scale: a generator and its family's sampler options.

    Raises:
        SpecError: also for a paper-scale count other than 50,000.
    """
    entry = dict(entry)
    name = entry.pop("generator", "")
    if name not in generators:
        raise SpecError(f"{where}: unknown generator '{name}'; {nearest(name, generators)}")
    generator = generators[name]
    defaults = family_literals("generators", generator.family, where)["SAMPLER"]
    common = {k: entry.pop(k) for k in ("count", "block", "seed") if k in entry}
    sizes = {"count": 50_000, "block": 250, "seed": 0}
    wanted = {**sizes, **common, **defaults, **_known(entry, defaults, where)}
    scaled = _scaled(overlay, "samples", generator.family, wanted, {**sizes, **defaults}, where)
    _check_guided(scaled, generator, name, where)
    count, block, _ = (scaled.pop(name) for name in sizes)
    if overlay.scale == "paper" and count != 50_000:
        raise SpecError(
            f"{where}: count is {count}: a paper-scale generation cell needs 50,000 images (FID is biased in 1/N); "
            "use another scale for fewer"
        )
    data = {"generator": name, "sampler": scaled, "count": count, "block": block, "num_classes": generator.num_classes,
            "seed": common.get("seed", 0), "threads": overlay.threads}  # fmt: skip
    return parse(SampleSpec, data, where)


def _check_guided(sampler: Mapping[str, Any], generator: GeneratorSpec, name: str, where: str) -> None:
    """Guidance leads away from "no class": there must be classes, and training must have shown none of them at times."""
    guidance = sampler.get("guidance", 1)
    if guidance == 1:
        return
    if generator.num_classes == 1:
        raise Impossible(
            where,
            f"guidance is {guidance}, and '{name}' has learned one class alone (data set '{generator.dataset}'): there is "
            "nothing to guide by; set guidance: 1.0",
        )
    if generator.training.class_drop == 0:
        raise SpecError(
            f"{where}: guidance is {guidance}, and '{name}' was never trained without a class (its recipe "
            f"'{generator.recipe}' has class_drop 0): set guidance: 1.0, or train it with class_drop, say 0.1"
        )


def resolve_classifier(
    entry: dict[str, Any],
    tokenizers: Mapping[str, TokenizerSpec],
    datasets: Mapping[str, DatasetSpec],
    recipes: Mapping[str, Mapping[str, Any]],
    overlay: Overlay,
    where: str,
) -> ClassifierSpec:
    """One ``classifiers:`` entry at one scale. Keys beside the common ones are the network's.

    Raises:
        SpecError: also for a tokenizer whose data set has one class alone.
    """
    common = {k: v for k, v in entry.items() if k in {"tokenizer", "recipe", "seed", "training"}}
    name, tokenizer = _learned_from(common, tokenizers, where)
    dataset = datasets[tokenizer.dataset]
    if dataset.classes < 2:
        raise SpecError(
            f"{where}: '{name}' was trained on '{tokenizer.dataset}', which has one class: nothing to classify"
        )
    recipe = _merge(recipe_of(recipes, common.get("recipe", "classifier"), where), common.get("training", {}))
    _check_terms(recipe.get("weights", {}), {"cross_entropy"}, where)
    asked = {**recipe.pop("options", {}), **{k: v for k, v in entry.items() if k not in common}}
    network = parse(VitSpec, asked, where).model_dump()
    recipe = overlay.training("classifiers", "vit", recipe)
    data = {
        "tokenizer": name, "dataset": tokenizer.dataset, "recipe": common.get("recipe", "classifier"),
        "tokens": tokenizer.tokens.model_dump(), "num_classes": dataset.classes,
        "network": overlay.options("classifiers", "vit", network),
        "training": resolve_training(recipe, dataset.sizes["train"], where),
        "seed": common.get("seed", 0), "threads": overlay.threads,
    }  # fmt: skip
    return parse(ClassifierSpec, data, where)


def _learned_from(
    entry: Mapping[str, Any], tokenizers: Mapping[str, TokenizerSpec], where: str
) -> tuple[str, TokenizerSpec]:
    """The tokenizer whose tokens an entry learns from: its name and spec."""
    name = entry.get("tokenizer", "")
    if name not in tokenizers:
        raise SpecError(f"{where}: unknown tokenizer '{name}'; {nearest(name, tokenizers)}")
    return name, tokenizers[name]


def _split(entry: dict[str, Any], common: set[str], room: Room, where: str) -> dict[str, Any]:
    """The entry's common keys and the family's options, with the family's literals.

    Raises:
        SpecError: unknown family or a key that neither all runs nor this family know.
    """
    family = entry.get("family", "")
    if not family:
        raise SpecError(f"{where}: key 'family' is missing; known: {', '.join(families(room))}")
    found = family_literals(room, family, where)
    if not isinstance(entry.get("training", {}), Mapping):
        raise SpecError(f"{where}: 'training' is {entry['training']!r}: expected a mapping")
    rest = {k: v for k, v in entry.items() if k not in common}
    for key in rest:
        if key not in found["OPTIONS"]:
            raise SpecError(f"{where}: unknown key '{key}'; {nearest(key, [*common, *found['OPTIONS']])}")
    return {
        "common": {k: v for k, v in entry.items() if k in common},
        "options": rest,
        "family": family,
        "literals": found,
    }


def _fitted(options: dict[str, Any], stated: Mapping[str, Any]) -> dict[str, Any]:
    """A scale states multipliers for one downsampling; a tokenizer that downsamples less takes the last of them."""
    levels = int(options["downsample"]).bit_length()
    if options.get("multipliers") != stated.get("multipliers"):
        options["multipliers"] = list(options["multipliers"])[-levels:]
    return options


def _known(options: Mapping[str, Any], defaults: Mapping[str, Any], where: str) -> dict[str, Any]:
    for key in options:
        if key not in defaults:
            raise SpecError(f"{where}: unknown key '{key}'; {nearest(key, defaults)}")
    return dict(options)


def _scaled(
    overlay: Overlay, kind: str, family: str, options: dict[str, Any], defaults: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """`options` as the scale leaves them, checked before and after: a scale can be as wrong as a paper's entry."""
    _check_options(options, defaults, where)
    scaled = overlay.options(kind, family, options)
    _check_options(scaled, defaults, f"{where}, as scales/{overlay.scale}.yaml leaves it")
    return scaled


def _check_options(options: Mapping[str, Any], defaults: Mapping[str, Any], where: str) -> None:
    """Each option, and each item of a list, has its default's type; what is positive by default stays so."""
    for key, value in options.items():
        _check_value(value, defaults[key], f"{where}: '{key}' is {value!r}")


def _check_value(value: Any, default: Any, what: str) -> None:
    allowed: Any = (
        (int, float)
        if isinstance(default, float)
        else (list, tuple)
        if isinstance(default, list | tuple)
        else type(default)
    )
    if isinstance(value, bool) != isinstance(default, bool) or not isinstance(value, allowed):
        raise SpecError(f"{what}: expected {type(default).__name__}")
    if isinstance(default, int) and not isinstance(default, bool) and default > 0 and value <= 0:
        raise SpecError(f"{what}: input should be greater than 0")
    if isinstance(value, int) and abs(value) > LARGEST:
        raise SpecError(f"{what}: input should be at most {LARGEST}")
    if isinstance(value, float) and not math.isfinite(value):
        raise SpecError(f"{what}: input should be finite")
    if isinstance(default, list | tuple):
        for item in value if default else ():
            _check_value(item, default[0], what)


def _dataset_id(common: Mapping[str, Any], datasets: Mapping[str, DatasetSpec], overlay: Overlay, where: str) -> str:
    if "dataset" not in common:
        raise SpecError(f"{where}: key 'dataset' is missing; known: {', '.join(sorted(datasets))}")
    name = overlay.dataset(common["dataset"])
    if name not in datasets:
        raise SpecError(f"{where}: unknown data set '{name}'; {nearest(name, datasets)}")
    if "train" not in datasets[name].sizes:
        raise SpecError(f"{where}: data set '{name}' has no split 'train'; it can only be scored on")
    return name


# Terms that every tokenizer's training knows; a family with more names them in its literal ``TERMS``.
TERMS = ("l1", "l2", "codebook", "commitment", "entropy", "perceptual", "adversarial")


def _check_terms(weights: Mapping[str, Any], known: set[str], where: str) -> None:
    for name in weights:
        if name not in known:
            raise SpecError(f"{where}: the recipe weighs an unknown term '{name}'; {nearest(name, known)}")


def _token_spec(found: Mapping[str, Any], options: Mapping[str, Any], resolution: int, f: int, where: str) -> TokenSpec:
    """The rule of the family's ``LAYOUT`` literal: what one id stands for and how many an image has."""
    if resolution % f:
        raise SpecError(f"{where}: downsample {f} does not divide the resolution {resolution}")
    if "multipliers" in options and 2 ** (len(options["multipliers"]) - 1) != f:
        raise SpecError(f"{where}: {len(options['multipliers'])} multipliers downsample by "
                        f"{2 ** (len(options['multipliers']) - 1)}, not by {f}")  # fmt: skip
    grid, layout = resolution // f, found.get("LAYOUT", "raster")
    scales = tuple(options.get("scales", ())) if layout == "multiscale" else ()
    num_tokens = {
        "raster": grid * grid,
        "channel": options.get("num_tokens", 0),
        "multiscale": sum(s * s for s in scales),
    }
    code_dim = grid * grid if layout == "channel" else options["code_dim"]
    data = {"kind": found.get("KIND", "discrete"), "layout": layout, "grid": grid, "num_tokens": num_tokens[layout],
            "code_dim": code_dim, "num_codes": options["num_codes"], "num_slots": found.get("NUM_SLOTS", 1),
            "scales": scales}  # fmt: skip
    return parse(TokenSpec, data, where)


def _check_accepts(found: Mapping[str, Any], tokens: TokenSpec, where: str) -> None:
    """The family's ``ACCEPTS`` literal: field of TokenSpec -> {values, why}.

    Raises:
        Impossible: with the family's reason.
    """
    for name, rule in found.get("ACCEPTS", {}).items():
        value = getattr(tokens, name)
        if value not in rule["values"]:
            raise Impossible(where, f"its {name} is {value!r}, accepted: {rule['values']}; {rule['why']}")
