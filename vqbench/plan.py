"""``vqbench list`` and ``vqbench plan``: what can be run, what a target needs, and what the rest costs at its scale."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from vqbench.artifacts import write_json
from vqbench.cluster import estimates_path, hours_of
from vqbench.errors import SpecError, naming, nearest
from vqbench.papers import Bench, Key, bench, scale_of, score_keys
from vqbench.specs import GeneratorSpec, SampleSpec, TokenizerSpec, digest_of

# Copies of the weights on disk while training: the result, and two checkpoints of weights, EMA and Adam's two moments.
PEAK = 9
ESTIMATED = ("tokenizer", "generator", "samples", "tokens", "reconstruction")
WHAT = ("tokenizers", "generators", "samples", "tables", "figures")


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
    if part == "tokenizers":
        return [
            f"  {name:24} {s.family:10} K {t.num_codes:<7} {t.num_tokens} tokens of {t.code_dim} d, {s.dataset}"
            for name, s in found.tokenizers.items()
            for t in (s.tokens,)
        ]
    if part == "generators":
        return [f"  {name:24} {s.family:10} on {s.tokenizer}" for name, s in found.generators.items()]
    return [f"  {name:24} {s.count} images of {s.generator}" for name, s in found.samples.items()]


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
    for kind, runs in (("tokenizer", found.tokenizers), ("generator", found.generators), ("samples", found.samples)):
        if target in runs:
            return found, [(kind, target), *found.own_scores(kind, target)]
    known = [*found.papers, *found.tokenizers, *found.generators, *found.samples]
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
    """Write the operations of every step of a scale, with the digest of its spec, for the jobs' run times."""
    path = path or estimates_path(found)
    keys = [k for k in found.with_upstream(score_keys(found)) if k[0] in ESTIMATED]
    found_now = {"/".join(k): {"spec": digest_of(found.step(k).spec), "flops": estimate(found, k)[1]} for k in keys}
    write_json(path, found_now)
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
        blocks, vocabulary = generator_counts(spec)
        return seen, 6.0 * (blocks + vocabulary) * spec.tokens.num_tokens * seen, PEAK * 4.0 * (blocks + vocabulary)
    if kind == "samples":
        return _samples_estimate(found, spec)
    images = found.datasets[spec.dataset].sizes[spec.split] * (spec.views if kind == "tokens" else 1)
    tokenizer = found.tokenizers[spec.tokenizer]
    size = images * (
        4 * tokenizer.tokens.num_tokens + 8.0 * tokenizer.tokens.num_tokens
        if kind == "tokens"
        else 3 * tokenizer.resolution**2
    )
    return images, images * _tokenizer_flops(tokenizer)[0] / 2, size


def _samples_estimate(found: Bench, spec: SampleSpec) -> tuple[int, float, float]:
    generator = found.generators[spec.generator]
    blocks, vocabulary = generator_counts(generator)
    passes = 2 if float(spec.sampler.get("guidance", 1.0)) != 1.0 else 1
    forward = 2.0 * (blocks + vocabulary) * generator.tokens.num_tokens * passes * int(spec.sampler["steps"])
    return spec.count, spec.count * forward, spec.count * 3.0 * found.datasets[generator.dataset].resolution ** 2


def generator_counts(spec: GeneratorSpec) -> tuple[int, int]:
    """(parameters without vocabulary matrices, parameters of the vocabulary matrices), from the meta device."""
    import torch

    from vqbench.rooms import build

    with torch.device("meta"):
        counts = build("generators", spec).parameter_counts()
    return counts["blocks"], counts["vocabulary"]


def _tokenizer_flops(spec: TokenizerSpec) -> tuple[float, float, float]:
    """(forward FLOPs of the tokenizer an image, of its discriminator, bytes of its weights), on the meta device."""
    return _counted(spec.model_dump_json())


@lru_cache(maxsize=256)
def _counted(as_json: str) -> tuple[float, float, float]:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from vqbench.rooms import build, load

    spec = TokenizerSpec.model_validate_json(as_json)  # as text it can be remembered: its mappings cannot be hashed
    with torch.device("meta"):
        model, image = build("tokenizers", spec), torch.empty(1, 3, spec.resolution, spec.resolution)
        with FlopCounterMode(display=False) as counter:
            model.decode(model.encode(image).new_empty(1, *_latent_shape(spec)))
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


def _latent_shape(spec: TokenizerSpec) -> tuple[int, int, int]:
    channels = spec.tokens.num_tokens if spec.tokens.layout == "channel" else spec.tokens.code_dim
    return channels, spec.tokens.grid, spec.tokens.grid
