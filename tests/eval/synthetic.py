"""A small workflow and artifacts that look finished, for the tests of tables and figures: no training, no downloads."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from vqbench.artifacts import describe, write_atomic, write_json, write_text
from vqbench.papers import Bench, Key
from vqbench.seeds import numpy_rng
from vqbench.specs import digest_of, plain

CODE = "0" * 64  # stands for the digest of the code, so that an edit elsewhere does not turn a test's artifacts stale

TRAINING = {
    "steps": 40, "batch_size": 8, "optimizer": {"name": "adam", "lr": 1e-4, "betas": [0.9, 0.99]},
    "weights": {"l2": 1.0, "codebook": 1.0, "commitment": 0.25},
}  # fmt: skip
PHOTOS = {
    "kind": "embedded", "images": ["astronaut", "chelsea"], "sizes": {"train": 64, "validation": 16},
    "classes": 2, "resolution": 32, "short_side": 144,
}  # fmt: skip
RECIPES = {
    "tok": {"paper": TRAINING | {"discriminator": {
        "name": "patchgan", "loss": "hinge", "start_step": 20, "optimizer": TRAINING["optimizer"]}}},
    "gen": {"paper": TRAINING | {"weights": {"cross_entropy": 1.0}, "class_drop": 0.1}},
}  # fmt: skip
RFID, USAGE = {"rFID": {"metric": "rfid"}, "Usage": {"metric": "usage"}}.items()
PAPER: dict[str, Any] = {
    "paper": "cq", "title": "a small version of the first paper",
    "tokenizers": {
        "cq-k16384": {"family": "channel", "dataset": "imagenet256", "recipe": "tok", "num_codes": 16384},
        "cq-k1024": {"family": "channel", "dataset": "imagenet256", "recipe": "tok", "num_codes": 1024},
        "llamagen-d8": {"family": "vq", "dataset": "imagenet256", "recipe": "tok", "num_codes": 16384, "code_dim": 8},
        "llamagen-d4": {"family": "vq", "dataset": "imagenet256", "recipe": "tok", "num_codes": 16384, "code_dim": 4},
    },
    "ood": {"llamagen-d8": ["coco-val2017"]},
    "generators": {"cq-l-k16384": {
        "family": "maskgit", "tokenizer": "cq-k16384", "recipe": "gen", "layers": 32, "width": 1280}},
    "samples": {
        "cq-l-k16384-s10": {"generator": "cq-l-k16384", "steps": 10},
        "cq-l-k16384-s64": {"generator": "cq-l-k16384", "steps": 64},
    },
    "tables": {
        "1": {"title": "Model sizes", "columns": {
            "#Para.": {"fact": "parameters"}, "#layers": {"fact": "layers"}, "MLP dim": {"fact": "mlp_width"}},
            "rows": {"Ours-L": {"generator": "cq-l-k16384"}}},
        "2": {"title": "Class-conditional generation", "columns": {
            "Type": {"printed": "only"}, "FID": {"metric": "fid"}, "IS": {"metric": "is"}, "#Step": {"fact": "steps"}},
            "rows": {"Ours-L/steps=10": {"samples": "cq-l-k16384-s10"}, "Ours-L*/steps=64": {"samples": "cq-l-k16384-s64"}}},
        "4": {"title": "Text to image", "columns": {"FID": {"metric": "fid"}},
              "rows": {"Ours-L/steps=10": {"not_yet": "text conditions come later"}}},
        "5": {"title": "Comparison with other tokenizers", "columns": {
            "codebook size": {"fact": "num_codes"}, "rFID(ImageNet)": {"metric": "rfid"},
            "rFID(MS-COCO)": {"metric": "rfid", "on": "coco-val2017"}},
            "rows": {"LlamaGen/dim=8": {"tokenizer": "llamagen-d8"}}},
        "6a": {"title": "Spatial and channel-wise", "columns": {"Token dim": {"fact": "code_dim"}, **dict([RFID, USAGE])},
               "rows": {"LlamaGen/dim=8": {"tokenizer": "llamagen-d8"}, "Ours/dim=256": {"tokenizer": "cq-k16384"}}},
        "7": {"title": "Ablation", "columns": {"FID": {"metric": "fid"}, "IS": {"metric": "is"}}, "rows": {
            "634M/codebook=16384/steps=10": {"samples": "cq-l-k16384-s10"},
            "634M/codebook=16384/steps=64": {"samples": "cq-l-k16384-s64"}}},
    },
    "figures": {
        "fig1": {"title": "Usage and rFID", "kind": "usage-and-rfid", "tables": ["6a"], "runs": {
            "spatial": ["llamagen-d8", "llamagen-d4"], "channel": ["cq-k1024", "cq-k16384"]}},
        "reconstructions": {"title": "Reconstructions", "kind": "reconstructions", "runs": {
            "tokenizers": ["llamagen-d8", "cq-k16384"]}},
        "fig3": {"title": "Samples", "kind": "samples", "runs": {"samples": ["cq-l-k16384-s10"]}},
        "fig4": {"title": "Codebook", "kind": "codebook", "runs": {"tokenizers": ["cq-k16384", "llamagen-d8"]}},
        "usage": {"title": "Usage", "kind": "usage-over-epochs", "runs": {"tokenizers": ["llamagen-d8", "cq-k16384"]}},
        "frequency": {"title": "Frequency", "kind": "code-frequency", "runs": {"tokenizers": ["llamagen-d8", "cq-k16384"]}},
        "map": {"title": "Map", "kind": "code-map", "runs": {"tokenizers": ["llamagen-d8", "cq-k1024"]}},
        "replaced": {"title": "Replacement", "kind": "nearest-replacement", "runs": {
            "tokenizers": ["llamagen-d8", "cq-k16384"]}},
        "losses": {"title": "Losses", "kind": "losses", "runs": {
            "tokenizers": ["llamagen-d8"], "generators": ["cq-l-k16384"]}},
    },
}  # fmt: skip
DEMO = {
    "about": "demo: two photographs stand for ImageNet", "protocol": "demo",
    "roles": {"judge": "photo-classifier", "perceptual": "photo-classifier"},
    "datasets": {"imagenet256": "photos", "coco-val2017": "photos-ood"}, "tokens": {"batch": 8},
    "tokenizers": {
        "replace": {"num_codes": {16384: 64, 1024: 16}, "num_tokens": {256: 16}, "downsample": {16: 4}},
        "set": {"base_channels": 8, "multipliers": [1, 1, 2], "num_res_blocks": 1, "attention_resolutions": [],
                "latent_channels": 16},
    },
    "generators": {"replace": {"layers": {32: 2}, "width": {1280: 32}, "heads": {16: 2}}},
    "samples": {"set": {"count": 32, "block": 16}},
}  # fmt: skip


def write_workflow(folder: Path) -> Path:
    """The workflow folder that :class:`Bench` reads: one paper, two scales."""
    judge = {"kind": "photo-classifier", "dataset": "photos", "resolution": 32,
             "options": {"channels": [4, 4, 8, 8, 8]}}  # fmt: skip
    imagenet = {"kind": "folder", "path": "$NOWHERE", "sizes": {"train": 1281167, "validation": 50000}}
    paper = {k: v for k, v in DEMO.items() if k in ("tokens", "roles")} | {"about": "as printed", "protocol": "adm"}
    files = {
        "papers/cq.yaml": PAPER, "scales/demo.yaml": DEMO, "scales/paper.yaml": paper,
        "pretrained.yaml": {"photo-classifier": judge},
        "datasets.yaml": {"photos": PHOTOS, "photos-ood": PHOTOS | {"images": ["rocket", "coffee"]},
                          "imagenet256": imagenet | {"classes": 1000, "resolution": 256},
                          "coco-val2017": imagenet | {"classes": 1, "resolution": 256}},
        **{f"recipes/{name}.yaml": recipe for name, recipe in RECIPES.items()},
    }  # fmt: skip
    for name, data in files.items():
        write_text(folder / name, yaml.safe_dump(data, sort_keys=False, allow_unicode=True))
    return folder


def finish(
    bench: Bench,
    key: Key,
    base: Path,
    files: Mapping[str, bytes],
    code: str = CODE,
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Publish `files` as what the step `key` made."""
    digest = bench.digest(key)
    store = base / bench.root / "store" / key[0] / key[1] / digest[:16]
    for name, data in files.items():
        write_atomic(store / name, lambda f, data=data: f.write(data))  # type: ignore[misc]
    body = {
        "kind": key[0], "name": key[1], "scale": bench.scale, "digest": digest, "spec": plain(bench.step(key).spec),
        "code_digest": code, "outputs": describe(store, files), "facts": dict(facts or {}), "inputs": {}, "seed": 0,
        "store": str(store.relative_to(base)),
    }  # fmt: skip
    write_json(base / bench.manifest(key), body | {"self": digest_of(body)})
    return store


def scores_json(
    metrics: Mapping[str, tuple[float, str]], protocol: Mapping[str, Any], n: int = 32, warnings: Sequence[str] = ()
) -> bytes:
    """``scores.json`` from ``{name: (value, unit)}``, each with an interval of a tenth on both sides."""
    import json

    better = ("is", "usage", "psnr", "ssim")
    entries = {
        name: {"value": value, "low": 0.9 * value, "high": 1.1 * value, "interval": "a tenth", "unit": unit,
               "higher_is_better": name.split("[")[0] in better, "n": n}
        for name, (value, unit) in metrics.items()
    }  # fmt: skip
    found = {
        "metrics": entries,
        "warnings": list(warnings),
        "protocol": protocol,
        "protocol_digest": digest_of(protocol),
    }
    return json.dumps(found).encode()


def fail(bench: Bench, key: Key, base: Path, reason: str) -> None:
    """Record that the step `key` refused."""
    folder = base / bench.root / "store" / key[0] / key[1] / bench.digest(key)[:16]
    write_json(folder / "failure.json", {"reason": reason, "key": "/".join(key)})


def finish_scores(bench: Bench, base: Path, only: str = "", protocol: Mapping[str, Any] | None = None) -> None:
    """Scores of all tokenizers and sample sets (or those whose name holds `only`), a different value each."""
    protocol = protocol or bench.protocol
    judged = str(protocol["suffix"])
    keys = {k for table in bench.tables.values() for k in bench.table_keys(table)}
    keys |= {("tokenizer-scores", f"{name}/{spec.dataset}") for name, spec in bench.tokenizers.items()}
    for key in sorted(k for k in keys if only in k[1]):
        size = numpy_rng(0, *key).uniform(1, 9)
        metrics = {f"fid{judged}": (size, ""), f"is{judged}": (10 * size, "")}
        if key[0] == "tokenizer-scores":
            metrics = {f"rfid{judged}": (size, ""), "usage": (90 + size, "%"), "psnr": (2 * size, "dB"),
                       "ssim": (size / 10, ""), "unique_ratio": (9 * size, "%")}  # fmt: skip
        finish(bench, key, base, {"scores.json": scores_json(metrics, protocol)})


def npy(array: np.ndarray) -> bytes:
    """An array as the bytes of a ``.npy``."""
    np.save(file := io.BytesIO(), array, allow_pickle=False)
    return file.getvalue()


def losses_csv(terms: Mapping[str, float], steps: int = 40, adversarial_from: int | None = None) -> bytes:
    """A training log: each term falls from its size with noise; the adversarial one starts later and turns negative."""
    import csv

    rng, rows = numpy_rng(0, "losses"), []
    for step in range(steps):
        row: dict[str, float] = {"step": step, "lr": 1e-4}
        row |= {name: size * (0.2 + np.exp(-4 * step / steps)) * rng.uniform(0.8, 1.2) for name, size in terms.items()}
        if adversarial_from is not None and step >= adversarial_from:
            row["adversarial"] = rng.normal()
        rows.append(row)
    writer = csv.DictWriter(text := io.StringIO(), list(rows[-1]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
