"""``vqbench list`` and ``vqbench plan``: what can be run, what a target needs, and what the rest costs at its scale."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from vqbench.artifacts import read_json, write_json
from vqbench.cluster import counted_digest, estimates_path, hours_of, known_flops
from vqbench.errors import SpecError, naming, nearest
from vqbench.papers import Bench, Key, bench, scale_of, score_keys
from vqbench.specs import GeneratorSpec, PretrainedSpec, SampleSpec, TokenizerSpec

# Copies of the weights on disk while training: the result, and two checkpoints of weights, EMA and Adam's two moments.
PEAK = 9
ESTIMATED = ("features", "tokenizer", "generator", "classifier", "samples", "tokens", "latents", "reconstruction")
WHAT = ("codebooks", "tokenizers", "generators", "samples", "classifiers", "tables", "figures")


def listing(found: Bench, what: str) -> str:
    """Ids of all runs, tables and figures, with what each is.

    Raises:
        SpecError: `what` is none of them.
    """
    if what not in (*WHAT, "all"):
        raise SpecError(f"cannot list '{what}'; {nearest(what, (*WHAT, 'all'))}")
    lines: list[str] = []
    for part in WHAT if what == "all" else (what,):
        lines += [f"{part}:", *_listed(found, part), ""]
    return "\n".join(lines).rstrip()


def _listed(found: Bench, part: str) -> list[str]:
    if part == "tables":
        return [f"  {found.table_path(t):36} {t.title}" for t in found.tables.values()]
    if part == "figures":
        return [f"  {found.figure_path(f):52} {f.title}" for f in found.figures.values()]
    if part == "codebooks":
        return [
            f"  {n:24} {s.method:16} K {s.num_codes:<7} {s.code_dim} d {s.teacher}" for n, s in found.codebooks.items()
        ]
    if part == "tokenizers":
        return [
            f"  {name:24} {s.family:10} K {t.num_codes:<7} {t.num_tokens} tokens of {t.code_dim} d, {s.dataset}"
            for name, s in found.tokenizers.items()
            for t in (s.tokens,)
        ]
    if part == "generators":
        return [f"  {name:24} {s.family:10} on {s.tokenizer}" for name, s in found.generators.items()]
    if part == "classifiers":
        return [
            f"  {name:24} ViT {s.network.layers} x {s.network.width} on {s.tokenizer}"
            for name, s in found.classifiers.items()
        ]
    return [
        f"  {name:24} {s.count} images of {s.generator}{_latency(found, name)}" for name, s in found.samples.items()
    ]


def _latency(found: Bench, name: str) -> str:
    """Seconds an image took where the set was sampled; it is that machine's, so no table has it."""
    path = Path(found.folder(("samples", name))) / "run.json"
    run = read_json(path) if path.is_file() else {}
    return f", {run['seconds_per_image']:.3g} s an image on {run['device']}" if "seconds_per_image" in run else ""


def target_keys(target: str, scale: str) -> tuple[Bench, list[Key]]:
    """What a target stands for: a table's or figure's path (whose scale is the path's own), a paper, or a run's id.

    Raises:
        SpecError: nothing has that name.
    """
    if target.startswith("results"):
        found = bench(scale_of(target))
        figures = {found.figure_path(f): f for f in found.figures.values()}
        if target in figures:
            from vqbench.eval.figure_inputs import figure_keys

            return found, figure_keys(found, figures[target])
        if target == f"{found.root}/scores.csv":
            return found, score_keys(found)
        return found, found.table_keys(found.table_at(target))
    found = bench(scale)
    if target in found.papers:
        return found, [k for t in found.tables.values() if t.paper == target for k in found.table_keys(t)]
    runs: dict[str, Mapping[str, object]] = {"codebook": found.codebooks, "tokenizer": found.tokenizers,
                                             "generator": found.generators, "samples": found.samples,
                                             "classifier": found.classifiers}  # fmt: skip
    for kind, names in runs.items():
        if target in names:
            return found, [(kind, target), *found.own_scores(kind, target)]
    known = [*found.papers, *(name for names in runs.values() for name in names)]
    raise SpecError(f"no target '{target}'; {nearest(target, known)}")


def plan(found: Bench, keys: list[Key], base: Path, tflops: float, tflops_fp32: float) -> str:
    """A table of the runs behind `keys`: state, images seen, GPU-hours, disk; then their sums.

    GPU-hours are floating-point operations of the real architecture, counted by torch on the meta device, over an
    assumed sustained rate (`tflops` for bf16 recipes, `tflops_fp32` for all else); an estimate, and it says so. Disk is
    at its peak: while a run trains it keeps two checkpoints with the optimizer's moments and the EMA.
    """
    lines = [f"{'run':34} {'state':9} {'images seen':>14} {'GPU-hours':>10} {'disk GB':>8}"]
    sums = [0.0, 0.0]
    for key in found.with_upstream(keys):
        if key[0] not in ESTIMATED:
            continue
        seen, flops, size = estimate(found, key)
        state = (
            "done" if found.is_current(key, base) else "outdated" if (base / found.manifest(key)).exists() else "to do"
        )
        hours = hours_of(found, key, flops, tflops, tflops_fp32)
        if state != "done":
            sums = [sums[0] + hours, sums[1] + size / 1e9]
        lines.append(f"{'/'.join(key):34} {state:9} {seen:14,} {hours:10.1f} {size / 1e9:8.2f}")
    rates = f"{tflops:g} sustained TFLOP/s a GPU in bf16, {tflops_fp32:g} in fp32"
    lines.append(f"to do: about {sums[0]:,.0f} GPU-hours and {sums[1]:,.1f} GB, estimated at {rates}")
    return "\n".join(lines)


def record(found: Bench, path: Path | None = None) -> Path:
    """Write the operations of every step of a scale, with the digest of its specs, for the jobs' run times.

    Without `path`, what is known already is not counted again.
    """
    keys = [k for k in found.with_upstream(score_keys(found)) if k[0] in ESTIMATED]
    known = {} if path else {k: flops for k in keys if (flops := known_flops(found, k)) is not None}
    path = path or estimates_path(found)
    write_json(path, {"/".join(k): {"spec": counted_digest(found, k),
                                    "flops": known[k] if k in known else estimate(found, k)[1]} for k in keys})  # fmt: skip
    return path


def estimate(found: Bench, key: Key) -> tuple[int, float, float]:
    """(images seen, floating-point operations, bytes kept) of one step, by its spec."""
    with naming("/".join(key)):
        return _estimate(found, key)


def _estimate(found: Bench, key: Key) -> tuple[int, float, float]:
    kind = key[0]
    spec: Any = found.step(key).spec
    if kind == "tokenizer":
        seen = spec.training.steps * spec.training.batch_size
        share = 1 - spec.training.discriminator.start_step / spec.training.steps if spec.training.discriminator else 0
        forward, adversary, weights = _tokenizer_flops(spec)
        # A backward pass costs two forwards; the perceptual network is counted with the tokenizer, the discriminator
        # runs on the reconstruction (with backward) and on real and fake (with backward) once it has started.
        return seen, seen * (3 * forward + 9 * max(0.0, share) * adversary), PEAK * weights
    if kind == "generator":
        seen = spec.training.steps * spec.training.batch_size
        weights, forward, _ = _generator_costs(spec)
        return seen, 3 * forward * seen, PEAK * 4.0 * weights
    if kind == "features":
        images, pixels = found.datasets[spec.dataset].sizes["train"], found.datasets[spec.dataset].resolution
        flops = _teacher_flops(found.pretrained[spec.network].model_dump_json(), spec.layer, pixels)
        return images, images * flops, 2.0 * images * spec.grid**2 * spec.dim
    if kind == "classifier":
        from vqbench.eval.token_classifier import forward_flops

        seen, (flops, count) = spec.training.steps * spec.training.batch_size, forward_flops(spec)
        return seen, 3 * flops * seen, PEAK * 4.0 * count
    if kind == "samples":
        return _samples_estimate(found, spec)
    images = found.datasets[spec.dataset].sizes[spec.split] * (1 if kind == "reconstruction" else spec.views)
    tokenizer = found.tokenizers[spec.tokenizer]
    sizes = {"tokens": 12.0 * tokenizer.tokens.num_tokens, "latents": 4.0 * prod(tokenizer.tokens.latent_shape),
             "reconstruction": 3.0 * tokenizer.resolution**2}  # fmt: skip
    return images, images * _tokenizer_flops(tokenizer)[0] / 2, images * sizes[kind]


def _samples_estimate(found: Bench, spec: SampleSpec) -> tuple[int, float, float]:
    generator = found.generators[spec.generator]
    both = 2 if float(spec.sampler.get("guidance", 1.0)) != 1.0 else 1
    _, forward, passes = _generator_costs(generator, spec.sampler)
    pixels = 3.0 * found.datasets[generator.dataset].resolution ** 2
    return spec.count, spec.count * forward * both * passes, spec.count * pixels


def _generator_costs(spec: GeneratorSpec, sampler: dict[str, Any] | None = None) -> tuple[int, float, float]:
    """(parameters, FLOPs of a pass for one image, passes of a sample), from the meta device."""
    model, counts, flops = _generator(spec.model_dump_json())
    return counts, flops, model.passes(sampler) if sampler else 0.0


@lru_cache(maxsize=256)
def _generator(as_json: str) -> tuple[Any, int, float]:
    import torch

    from vqbench.rooms import build

    with torch.device("meta"):
        model = build("generators", GeneratorSpec.model_validate_json(as_json))
        return model, sum(model.parameter_counts().values()), model.forward_flops()


def _tokenizer_flops(spec: TokenizerSpec) -> tuple[float, float, float]:
    """(forward FLOPs of the tokenizer an image, of its discriminator, bytes of its weights), on the meta device."""
    return _counted(spec.model_dump_json())


@lru_cache(maxsize=16)
def _teacher_flops(as_json: str, layer: str, resolution: int) -> float:
    """Forward FLOPs of a teacher an image, on the meta device."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from vqbench.rooms import load

    spec = PretrainedSpec.model_validate_json(as_json)
    with torch.device("meta"):
        teacher = load("tokenizers", "teachers").untrained_teacher(spec, layer).eval()
        with FlopCounterMode(display=False) as counter:
            teacher(torch.empty(1, 3, resolution, resolution))
    return float(counter.get_total_flops())


@lru_cache(maxsize=256)
def _counted(as_json: str) -> tuple[float, float, float]:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from vqbench.rooms import build, load

    spec = TokenizerSpec.model_validate_json(as_json)  # as text it can be remembered: its mappings cannot be hashed
    with torch.device("meta"):
        model, image = build("tokenizers", spec), torch.empty(1, 3, spec.resolution, spec.resolution)
        with FlopCounterMode(display=False) as counter:
            model.decode(model.encode(image).new_empty(1, *spec.tokens.latent_shape))
        forward = (
            float(counter.get_total_flops())
            + 2.0 * spec.tokens.num_tokens * spec.tokens.num_codes * spec.tokens.code_dim
        )
        adversary = 0.0
        if spec.training.discriminator:
            network = load("tokenizers.networks", "discriminators").build_discriminator(
                spec.training.discriminator, spec.resolution
            )
            with FlopCounterMode(display=False) as counter:
                network(image.expand(4, -1, -1, -1))
            adversary = counter.get_total_flops() / 4
    return forward, adversary, 4.0 * sum(p.numel() for p in model.parameters())
