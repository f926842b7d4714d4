"""The DAG as data: kinds of step, what each needs, and the digest of what it is made from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vqbench.clone import read_yaml
from vqbench.closure import PACKAGE, code_digest
from vqbench.codebooks import resolve_features
from vqbench.errors import SpecError, nearest
from vqbench.resolve import Overlay
from vqbench.rooms import load, needs
from vqbench.specs import (
    NO_WEIGHTS,
    ClassifierSpec,
    CodebookSpec,
    DatasetSpec,
    EncodedSpec,
    GeneratorSpec,
    PretrainedSpec,
    SampleSpec,
    TokenizerSpec,
    TokensSpec,
    digest_of,
    parse,
    plain,
)

Key = tuple[str, str]  # (kind, name), e.g. ("tokenizer", "cq-k16384")

# kind -> (folder under the results root, module whose run(job) does it)
KINDS = {
    "dataset": ("datasets", "vqbench.data"),
    "pretrained": ("pretrained", "vqbench.pretrained"),
    "features": ("features", "vqbench.tokenizers.features"),
    "codebook": ("codebooks", "vqbench.tokenizers.codebooks"),
    "tokenizer": ("tokenizers", "vqbench.tokenizers.training"),
    "tokens": ("tokens", "vqbench.tokenizers.encoding"),
    "latents": ("latents", "vqbench.tokenizers.latents"),
    "reconstruction": ("reconstructions", "vqbench.tokenizers.decoding"),
    "generator": ("generators", "vqbench.generators.training"),
    "samples": ("samples", "vqbench.generators.sampling"),
    "reference": ("references", "vqbench.eval.reference"),
    "tokenizer-scores": ("scores/tokenizers", "vqbench.eval.score_tokenizer"),
    "sample-scores": ("scores/samples", "vqbench.eval.score_samples"),
    "classifier": ("classifiers", "vqbench.eval.classifier"),
    "classifier-scores": ("scores/classifiers", "vqbench.eval.score_classifier"),
    "train-usage": ("scores/usage", "vqbench.eval.score_usage"),
    "pair-scores": ("scores/pairs", "vqbench.eval.score_pairs"),
    "probe": ("scores/probes", "vqbench.eval.probe"),
    "controls": ("scores/controls", "vqbench.eval.controls"),
}

# Parts of a kind's name, where it has more than one: tokens are of a tokenizer, a data set and a split.
PARTS = {"features": 2, "tokens": 3, "latents": 3, "reconstruction": 2, "reference": 2, "tokenizer-scores": 2,
         "pair-scores": 3}  # fmt: skip

# Kinds that several processes can do together (vqbench/distributed.py).
SHARED = ("features", "tokenizer", "generator", "classifier", "tokens", "latents", "samples", "tokenizer-scores",
          "sample-scores")  # fmt: skip

# Kinds that eval_only never makes: they train or sample.
TRAINED = {"pretrained", "features", "codebook", "tokenizer", "generator", "samples", "classifier"}


@dataclass(frozen=True)
class Step:
    """One job: what it makes, from which spec, with which code, after which others."""

    kind: str
    name: str
    spec: Any
    roots: tuple[str, ...]
    upstream: tuple[Key, ...]


class Graph:
    """The edges between the runs of one scale."""

    scale: str
    root: str
    overlay: Overlay
    papers: dict[str, dict[str, Any]]
    datasets: dict[str, DatasetSpec]
    pretrained: dict[str, PretrainedSpec]
    codebooks: dict[str, CodebookSpec]
    tokenizers: dict[str, TokenizerSpec]
    generators: dict[str, GeneratorSpec]
    samples: dict[str, SampleSpec]
    classifiers: dict[str, ClassifierSpec]
    accepted: dict[str, dict[str, str]]
    _owner: dict[str, str]
    _digests: dict[Key, str]
    _codes: dict[tuple[str, ...], str]
    _protocols: dict[str, dict[str, Any]]
    _drawn: dict[Key, str]

    def role(self, role: str) -> str:
        """The pretrained network that this scale puts in a role, e.g. ``role("judge")``."""
        if role not in self.overlay.roles:
            raise SpecError(
                f"scales/{self.scale}.yaml: 'roles' names no {role}; it has {', '.join(self.overlay.roles)}"
            )
        return str(self.overlay.roles[role])

    @cached_property
    def protocol(self) -> dict[str, Any]:
        """The scale's evaluation protocol, as data, checked by what will read it before anything trains for it."""
        return self.protocol_of(self.overlay.protocol)

    def protocol_of(self, name: str) -> dict[str, Any]:
        """A shipped protocol, likewise.

        Raises:
            SpecError: there is none of that name, or it is not of a protocol's shape.
        """
        if name not in self._protocols:
            known = {path.stem: path for path in (PACKAGE / "eval" / "protocols").glob("*.yaml")}
            data = read_yaml(self._get("protocol", known, name))
            load("eval", "protocols").read_protocol(data)
            self._protocols[name] = data
        return self._protocols[name]

    def ood(self, tokenizer: str) -> tuple[str, ...]:
        """Data sets beside its own on which a tokenizer is scored (MS-COCO in the cq paper)."""
        found = self.papers[self._owner[tokenizer]].get("ood") or {}
        return tuple(self.overlay.dataset(d) for d in found.get(tokenizer, ()))

    def step(self, key: Key) -> Step:
        """The job that makes `key`.

        Raises:
            SpecError: no run of that kind has this name.
        """
        kind, name = key
        if kind not in KINDS:
            raise SpecError(f"unknown kind '{kind}'; {nearest(kind, KINDS)}")
        make, parts = getattr(self, "_step_" + kind.replace("-", "_")), name.split("/")
        if len(parts) != PARTS.get(kind, 1):
            raise SpecError(f"'{name}' does not name a {kind}: expected {PARTS.get(kind, 1)} parts between slashes")
        spec, families, upstream = make(*parts)
        return Step(kind, name, spec, (KINDS[kind][1], *families), tuple(upstream))

    def _get(self, kind: str, runs: Mapping[str, object], name: str) -> Any:
        if name not in runs:
            raise SpecError(f"unknown {kind} '{name}'; {nearest(name, runs)}")
        return runs[name]

    def _step_dataset(self, name: str) -> Any:
        return self._get("data set", self.datasets, name), (), ()

    def _step_pretrained(self, name: str) -> Any:
        spec = self._get("pretrained network", self.pretrained, name)
        return spec, (), [("dataset", spec.dataset)] if spec.dataset else []

    def _step_features(self, teacher: str, dataset: str) -> Any:
        spec = resolve_features(teacher, dataset, self.datasets, self.pretrained, self.overlay, f"features '{teacher}'")
        return spec, (), [("dataset", dataset), ("pretrained", spec.network)]

    def _step_codebook(self, name: str) -> Any:
        spec = self._get("codebook", self.codebooks, name)
        return spec, (), [("features", f"{spec.teacher}/{spec.dataset}")] if spec.teacher else []

    def _step_tokenizer(self, name: str) -> Any:
        spec = self._get("tokenizer", self.tokenizers, name)
        needed = [(rule["kind"], spec.options[option]) for option, rule in needs(spec.family).items()]
        upstream = [("dataset", spec.dataset), ("pretrained", spec.perceptual), *needed]
        return spec, (f"vqbench.tokenizers.{spec.family}",), upstream

    def _step_tokens(self, tokenizer: str, dataset: str, split: str) -> Any:
        return self._encoded(TokensSpec, tokenizer, dataset, split, pooling=self.protocol["probe"]["pooling"])

    def _step_latents(self, tokenizer: str, dataset: str, split: str) -> Any:
        return self._encoded(EncodedSpec, tokenizer, dataset, split)

    def _encoded(self, kind: type[EncodedSpec], tokenizer: str, dataset: str, split: str, **more: Any) -> Any:
        spec = self._get("tokenizer", self.tokenizers, tokenizer)
        self._get("data set", self.datasets, dataset)
        data = {"tokenizer": tokenizer, "dataset": dataset, "split": split, "threads": spec.threads,
                **more, **self.overlay.tokens, **({} if split == "train" else {"views": 1})}  # fmt: skip
        found = parse(kind, data, f"'{tokenizer}/{dataset}/{split}'")
        return found, (f"vqbench.tokenizers.{spec.family}",), [("tokenizer", tokenizer), ("dataset", dataset)]

    def _step_reconstruction(self, tokenizer: str, dataset: str) -> Any:
        spec, families, _ = self._step_tokens(tokenizer, dataset, "validation")
        return spec, families, [("tokenizer", tokenizer), ("tokens", f"{tokenizer}/{dataset}/validation")]

    def _step_generator(self, name: str) -> Any:
        spec = self._get("generator", self.generators, name)
        read = f"{spec.tokenizer}/{spec.dataset}/train"
        return spec, (f"vqbench.generators.{spec.family}",), [(spec.reads, read)]

    def _step_samples(self, name: str) -> Any:
        spec = self._get("samples", self.samples, name)
        generator = self.generators[spec.generator]
        tokenizer = self.tokenizers[generator.tokenizer]
        families = (f"vqbench.generators.{generator.family}", f"vqbench.tokenizers.{tokenizer.family}")
        return spec, families, [("generator", spec.generator), ("tokenizer", generator.tokenizer)]

    def _step_reference(self, dataset: str, split: str) -> Any:
        self._get("data set", self.datasets, dataset)
        judge = self.role("judge")
        return (
            {"dataset": dataset, "split": split, "judge": judge, "protocol": self.protocol},
            (),
            [("dataset", dataset), ("pretrained", judge)],
        )

    def _step_tokenizer_scores(self, tokenizer: str, dataset: str) -> Any:
        name = f"{tokenizer}/{dataset}"
        spec = {"tokenizer": tokenizer, "dataset": dataset, "judge": self.role("judge"),
                "perceptual": self.role("perceptual"), "protocol": self.protocol,
                "tokens": self._get("tokenizer", self.tokenizers, tokenizer).tokens.model_dump(mode="json")}  # fmt: skip
        upstream = [("reconstruction", name), ("tokens", f"{name}/validation"), ("reference", f"{dataset}/validation"),
                    ("dataset", dataset), *self._roles()]  # fmt: skip
        return spec, (), upstream

    def _step_pair_scores(self, tokenizer: str, dataset: str, protocol: str) -> Any:
        self._get("tokenizer", self.tokenizers, tokenizer)
        spec = {"tokenizer": tokenizer, "dataset": dataset, "protocol": self.protocol_of(protocol)}
        return spec, (), [("reconstruction", f"{tokenizer}/{dataset}"), ("dataset", dataset)]

    def _step_sample_scores(self, name: str) -> Any:
        spec = self._get("samples", self.samples, name)
        generator = self.generators[spec.generator]
        dataset, tokens = generator.dataset, f"{generator.tokenizer}/{generator.dataset}/train"
        plain = {"samples": name, "dataset": dataset, "tokens": tokens, "judge": self.role("judge"),
                 "protocol": self.protocol}  # fmt: skip
        upstream = [("samples", name), ("tokens", tokens),
                    ("reference", f"{dataset}/{self.datasets[dataset].fid_reference}"),
                    ("pretrained", self.role("judge"))]  # fmt: skip
        return plain, (), upstream

    def _step_classifier(self, name: str) -> Any:
        spec = self._get("classifier", self.classifiers, name)
        upstream = [("tokens", f"{spec.tokenizer}/{spec.dataset}/train"), ("tokenizer", spec.tokenizer)]
        if (weights := spec.network.weights) != NO_WEIGHTS:
            if (kind := self._get("pretrained network", self.pretrained, weights).kind) != "mae-vitb16":
                raise SpecError(
                    f"classifier '{name}': weights '{weights}' are of '{kind}', it starts from 'mae-vitb16'"
                )
            upstream.append(("pretrained", weights))
        return spec, (f"vqbench.tokenizers.{self.tokenizers[spec.tokenizer].family}",), upstream

    def _step_classifier_scores(self, name: str) -> Any:
        spec = self._get("classifier", self.classifiers, name)
        plain = {"classifier": name, "dataset": spec.dataset, "protocol": self.protocol}
        upstream = [("classifier", name), ("tokens", f"{spec.tokenizer}/{spec.dataset}/validation"),
                    ("tokenizer", spec.tokenizer)]  # fmt: skip
        return plain, (f"vqbench.tokenizers.{self.tokenizers[spec.tokenizer].family}",), upstream

    def _step_train_usage(self, tokenizer: str) -> Any:
        spec = self._get("tokenizer", self.tokenizers, tokenizer)
        plain = {"tokenizer": tokenizer, "dataset": spec.dataset, "protocol": self.protocol,
                 "tokens": spec.tokens.model_dump(mode="json")}  # fmt: skip
        return plain, (), [("tokens", f"{tokenizer}/{spec.dataset}/train")]

    def _step_probe(self, tokenizer: str) -> Any:
        spec = self._get("tokenizer", self.tokenizers, tokenizer)
        data = f"{tokenizer}/{spec.dataset}"
        plain = {"tokenizer": tokenizer, "protocol": self.protocol, "num_classes": self.datasets[spec.dataset].classes}
        return plain, (), [("tokens", f"{data}/train"), ("tokens", f"{data}/validation")]

    def _step_controls(self, tokenizer: str) -> Any:
        spec = self._get("tokenizer", self.tokenizers, tokenizer)
        plain = {"tokenizer": tokenizer, "dataset": spec.dataset, "judge": self.role("judge"),
                 "perceptual": self.role("perceptual"), "protocol": self.protocol}  # fmt: skip
        upstream = [("tokenizer", tokenizer), ("dataset", spec.dataset), ("reference", f"{spec.dataset}/validation"),
                    ("reference", f"{spec.dataset}/train"), *self._roles()]  # fmt: skip
        return plain, (f"vqbench.tokenizers.{spec.family}",), upstream

    def _roles(self) -> list[Key]:
        return [("pretrained", name) for name in dict.fromkeys((self.role("judge"), self.role("perceptual")))]

    # ---- digests and paths -----------------------------------------------------------------------------------------

    def digest(self, key: Key) -> str:
        """What `key` is made from: spec, code closure and the digests upstream. Static: nothing needs to exist.

        A run accepted under changed code (``vqbench accept``) keeps the digest that it was made with.
        """
        if key not in self._digests:
            step = self.step(key)
            now = digest_of({
                "kind": step.kind,
                "spec": plain(step.spec),
                "code": self._code(step.roots),
                "upstream": {"/".join(k): self.digest(k) for k in step.upstream},
            })  # fmt: skip
            kept = self.accepted.get("/".join(key), {})
            self._digests[key] = kept["digest"] if kept.get("current") == now else now
        return self._digests[key]

    def _code(self, roots: tuple[str, ...]) -> str:
        """The digest of a step's code, read once: hundreds of steps share some twenty closures."""
        if roots not in self._codes:
            self._codes[roots] = code_digest(roots)
        return self._codes[roots]

    def asked(self) -> dict[Key, str]:
        """The digests that were asked for so far: of a DAG, those of its jobs and all upstream of them."""
        return dict(self._digests)

    def keep(self, key: Key, digest: str, reason: str) -> None:
        """Let `key` keep the digest that it was made with, for as long as its own now stays what it is."""
        self.accepted["/".join(key)] = {"digest": digest, "current": self.digest(key), "reason": reason}
        self._digests.clear()
        self._drawn.clear()

    def kept(self, keys: Iterable[Key]) -> dict[str, str]:
        """Those of `keys` and their inputs that stand under changed code or spec, with the reason given."""
        names = {"/".join(k): k for k in self.with_upstream(keys)}
        entries = {n: self.accepted[n] for n in names if n in self.accepted}
        return {n: e["reason"] for n, e in entries.items() if self.digest(names[n]) == e["digest"]}

    def folder(self, key: Key) -> str:
        """Folder of a key's manifest, relative to the clone."""
        return f"{self.root}/{KINDS[key[0]][0]}/{key[1]}"

    def manifest(self, key: Key) -> str:
        return f"{self.folder(key)}/manifest.json"

    def with_upstream(self, keys: Iterable[Key]) -> list[Key]:
        """`keys` and all that they need, each once, needs first."""
        order: dict[Key, None] = {}

        def visit(key: Key) -> None:
            if key not in order:
                for need in self.step(key).upstream:
                    visit(need)
                order[key] = None

        for key in keys:
            visit(key)
        return list(order)

    def own_scores(self, kind: str, name: str) -> list[Key]:
        """The score artifacts of one run (none for a generator: its sample sets are scored)."""
        if kind == "tokenizer":
            sets = (self.tokenizers[name].dataset, *self.ood(name))
            return [("tokenizer-scores", f"{name}/{dataset}") for dataset in sets]
        return {"samples": [("sample-scores", name)], "classifier": [("classifier-scores", name)]}.get(kind, [])

    def is_current(self, key: Key, base: Path) -> bool:
        """Whether a finished artifact of this very digest is published (its files are checked when it is read)."""
        path = base / self.manifest(key)
        try:
            return bool(json.loads(path.read_text())["digest"] == self.digest(key))
        except (OSError, ValueError, KeyError):
            return False

    def scorable(self, keys: Iterable[Key], base: Path) -> tuple[list[Key], dict[Key, str]]:
        """Which of the score `keys` need no training or sampling now, and why the others do."""
        ready, missing = [], {}
        for key in keys:
            needs = [k for k in self.with_upstream([key]) if k[0] in TRAINED]
            lacking = [k for k in needs if not self.is_current(k, base)]
            if lacking:
                state = "is out of date" if (base / self.manifest(lacking[0])).exists() else "is missing"
                missing[key] = f"{'/'.join(lacking[0])} {state}"
            else:
                ready.append(key)
        return ready, missing
