"""The token classifier: end to end at the tiny scale, what it counts, and MAE's weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers import copy_clone, snakemake, vqbench

from vqbench.errors import MissingWeights, SpecError
from vqbench.eval.judge_kinds import fitted_places
from vqbench.eval.score_classifier import right_of
from vqbench.eval.token_classifier import TokenClassifier, forward_flops
from vqbench.papers import Bench
from vqbench.specs import ClassifierSpec, TokenSpec, TrainingSpec, VitSpec
from vqbench.tokenizers.quantizers.codebook import VectorQuantizer

NAME = "vqgan-k1024-vit"
PRODUCTS = ("results/tiny/second/table1.csv", "results/tiny/second/figures/fig3.pdf")
TRAINING = TrainingSpec.model_validate({
    "steps": 3, "batch_size": 4, "micro_batch": 4, "optimizer": {"name": "adamw", "lr": 1e-3, "betas": (0.9, 0.99)},
    "weights": {"cross_entropy": 1.0},
})  # fmt: skip


def spec(side: int = 4, **network: Any) -> ClassifierSpec:
    tokens = TokenSpec(layout="raster", grid=side, num_tokens=side * side, code_dim=3, num_codes=16)
    return ClassifierSpec(tokenizer="t", dataset="d", recipe="classifier", tokens=tokens, num_classes=5,
                          network=VitSpec(**(network or {"layers": 2, "width": 12, "heads": 2})), training=TRAINING)  # fmt: skip


def declare(clone: Path, **changes: Any) -> None:
    """A second paper: a classifier, a table with its accuracy, and a figure."""
    paper = {
        "paper": "second", "title": "A second paper",
        "classifiers": {NAME: {"tokenizer": "vqgan-k1024", "weights": "mae-vitb16", **changes}},
        "tables": {"1": {"title": "Classification", "rows": {"FC": {"classifier": NAME}}, "columns": {
            "Top-1": {"metric": "top1"}, "K": {"fact": "num_codes"}, "Width": {"fact": "width"}}}},
        "figures": {"fig3": {"title": "Utilization", "kind": "usage-over-epochs", "runs": {"tokenizers": ["vqgan-k1024"]}}},
    }  # fmt: skip
    (clone / "workflow" / "papers" / "second.yaml").write_text(yaml.safe_dump(paper, sort_keys=False))


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    clone = copy_clone(tmp_path_factory.mktemp("classifier") / "clone")
    declare(clone)
    done = snakemake(clone, *PRODUCTS, NAME, "--config", "scale=tiny", "--show-failed-logs")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-4000:]
    return clone


def store(clone: Path, kind: str, name: str) -> Path:
    (found,) = (clone / "results" / "tiny" / "store" / kind / name).iterdir()
    return found


def test_the_accuracy_in_the_table_is_a_true_count(ran: Path) -> None:
    """Counted again here, image by image, from the files alone."""
    from safetensors.torch import load_file

    known = Bench("tiny", ran / "workflow").classifiers[NAME]
    assert (known.network.width, known.network.weights) == (16, "none"), "what the scale replaced"
    model = TokenClassifier(known)
    model.load_state_dict(load_file(store(ran, "classifier", NAME) / "model.safetensors"))
    weights = load_file(store(ran, "tokenizer", "vqgan-k1024") / "model.safetensors")["quantizer.weight"]  # (K, d)
    tokens = store(ran, "tokens", "vqgan-k1024/photos-tiny/validation")
    ids, labels = np.load(tokens / "ids.npy"), np.load(tokens / "labels.npy")
    side = known.tokens.grid
    right = 0
    with torch.no_grad():
        for row, label in zip(ids[:, :, 0], labels, strict=True):
            latents = weights[torch.from_numpy(row).long()].T.reshape(1, -1, side, side)
            right += int(model.eval()(latents).argmax()) == label
    entry = json.loads((store(ran, "classifier-scores", NAME) / "scores.json").read_text())["metrics"]["top1"]
    assert entry["value"] == pytest.approx(100 * right / 48) and entry["n"] == 48
    table = (ran / PRODUCTS[0]).read_text()
    assert f"{entry['value']:.1f}%" in table and NAME in table and ",16," in table


def test_two_processes_give_the_same_bytes(ran: Path) -> None:
    path = ran / "results/tiny/classifiers" / NAME / "manifest.json"
    before = json.loads(path.read_text())
    assert set(before["outputs"]) == {"model.safetensors", "losses.csv"}
    shutil.rmtree(ran / before["store"])
    done = vqbench(ran, "train-classifier", NAME, "--scale", "tiny", "--processes", "2")
    assert done.returncode == 0, done.stderr
    assert json.loads(path.read_text()) == before


def test_the_report_says_how_a_figure_is_read(ran: Path) -> None:
    done = snakemake(ran, "--report", "report.html", PRODUCTS[1], "--config", "scale=tiny")
    assert done.returncode == 0, done.stderr[-3000:]
    text = (ran / "report.html").read_text()
    assert "Utilization. Share of the codebook that the training ids of each epoch hit" in text


def test_it_is_listed_planned_and_refused_with_the_mend(clone: Path) -> None:
    declare(clone)
    listed = vqbench(clone, "list", "classifiers", "--scale", "tiny")
    assert f"{NAME:24} ViT 1 x 16 on vqgan-k1024" in listed.stdout
    plan = vqbench(clone, "plan", NAME, "--scale", "paper")
    assert f"classifier/{NAME}" in plan.stdout, plan.stderr
    doctor = vqbench(clone, "doctor", NAME, "--scale", "paper")
    assert "mae_pretrain_vit_base.pth" in doctor.stdout and "fetch-weights" in doctor.stdout
    for changes, said in (({"tokenizer": "vqgan-k1025"}, "did you mean 'vqgan-k1024'"), ({"widht": 3}, "'width'"),
                          ({"weights": "vgg16"}, "starts from 'mae-vitb16'"), ({"weights": "mae"}, "unknown pretrained"),
                          ({"heads": 5}, "no multiple of the 5 heads")):  # fmt: skip
        declare(clone, **changes)
        done = vqbench(clone, "plan", NAME, "--scale", "paper")
        assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, (changes, done.stderr)


def test_top_one_counts_codes_that_give_the_class_away() -> None:
    """A network of one position, one block silenced, whose head reads the code itself."""
    torch.manual_seed(0)
    one = spec(side=1, layers=1, width=4, heads=1)
    codes = VectorQuantizer(one.tokens, init="normal").eval()
    model = TokenClassifier(one).eval()
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 16, (50, 1, 1))
    with torch.no_grad():
        given = model(codes.lookup(torch.from_numpy(ids))).argmax(1).numpy()
    labels = np.where(np.arange(50) < 31, given, (given + 1) % 5)
    assert right_of(model, codes, ids.astype(np.int32), labels, batch=7) == 31


def mae_state(width: int, layers: int, side: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Names and shapes of mae_pretrain_vit_base.pth, at any width."""
    rng = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width), "pos_embed": (1, 1 + side * side, width), "norm.weight": (width,), "norm.bias": (width,),
        "patch_embed.proj.weight": (width, 3, 16, 16), "patch_embed.proj.bias": (width,),
    }  # fmt: skip
    for i in range(layers):
        shapes |= {f"blocks.{i}.{n}.{part}": (width,) for n in ("norm1", "norm2") for part in ("weight", "bias")}
        for name, out, into in (("attn.qkv", 3 * width, width), ("attn.proj", width, width), ("mlp.fc1", 4 * width, width),
                                ("mlp.fc2", width, 4 * width)):  # fmt: skip
            shapes |= {f"blocks.{i}.{name}.weight": (out, into), f"blocks.{i}.{name}.bias": (out,)}
    return {name: torch.randn(shape, generator=rng) for name, shape in shapes.items()}


def saved(path: Path, state: Any) -> Path:
    torch.save(state, path)
    return path


def test_maes_file_fills_all_but_projection_and_head(tmp_path: Path) -> None:
    state = mae_state(12, 2, side=3)
    model = TokenClassifier(spec())
    fresh = {k: v.clone() for k, v in model.vit.state_dict().items()}
    model.start_from(saved(tmp_path / "mae.pth", {"model": state}))
    found = model.vit.state_dict()
    for name, value in found.items():
        if name.startswith(("patch_embed", "fc_norm")) or name == "head.bias":
            assert torch.equal(value, fresh[name]), name
        elif name == "head.weight":
            assert value.abs().max() < 1e-4
        elif name == "pos_embed":
            # facebookresearch/mae:util/pos_embed.py
            grid = state[name][:, 1:].reshape(1, 3, 3, 12).permute(0, 3, 1, 2)
            grid = torch.nn.functional.interpolate(grid, size=(4, 4), mode="bicubic", align_corners=False)
            assert torch.allclose(value[:, 1:], grid.permute(0, 2, 3, 1).flatten(1, 2), atol=1e-6)
            assert torch.equal(value[:, :1], state[name][:, :1])
        else:
            assert torch.equal(value, state[name]), name
    assert fitted_places(found["pos_embed"], 4).equal(found["pos_embed"])


def test_the_blocks_compute_what_maes_do(tmp_path: Path) -> None:
    """Against the forward pass of facebookresearch/mae:models_vit.py, written out with plain torch."""
    state, model = mae_state(12, 2, side=4), TokenClassifier(spec()).eval()
    model.start_from(saved(tmp_path / "mae.pth", {"model": state}))
    latents = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    norm = torch.nn.functional.layer_norm
    x = model.vit.patch_embed(latents)
    x = torch.cat([state["cls_token"].expand(2, -1, -1), x], 1) + state["pos_embed"]
    for i in range(2):
        at = {k.removeprefix(f"blocks.{i}."): v for k, v in state.items() if k.startswith(f"blocks.{i}.")}
        y = norm(x, (12,), at["norm1.weight"], at["norm1.bias"], 1e-6) @ at["attn.qkv.weight"].T + at["attn.qkv.bias"]
        q, k, v = y.unflatten(-1, (3, 2, 6)).permute(2, 0, 3, 1, 4)
        mixed = ((q @ k.mT) * 6**-0.5).softmax(-1) @ v
        x = x + mixed.transpose(1, 2).flatten(2) @ at["attn.proj.weight"].T + at["attn.proj.bias"]
        y = norm(x, (12,), at["norm2.weight"], at["norm2.bias"], 1e-6) @ at["mlp.fc1.weight"].T + at["mlp.fc1.bias"]
        x = x + torch.nn.functional.gelu(y) @ at["mlp.fc2.weight"].T + at["mlp.fc2.bias"]
    expected = model.vit.head(model.vit.fc_norm(x[:, 1:].mean(1)))
    with torch.no_grad():
        torch.testing.assert_close(model(latents), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s, "no state dict under 'model'"),
        (lambda s: {"model": mae_state(8, 2, 3)}, r"'pos_embed' has shape \(1, 10, 8\), expected \(1, 10, 12\)"),
        (lambda s: {"model": mae_state(12, 1, 3)}, r"'blocks.1.norm1.weight' is missing"),
        (lambda s: {"model": mae_state(12, 3, 3)}, "12 more tensors, e.g. 'blocks.2.attn.proj.bias'"),
        (lambda s: {"model": {k: v for k, v in s.items() if k != "pos_embed"}}, "'pos_embed' is missing"),
    ],
)
def test_another_networks_file_is_refused(tmp_path: Path, change: Any, said: str) -> None:
    path = saved(tmp_path / "mae.pth", change(mae_state(12, 2, 3)))
    with pytest.raises(MissingWeights, match=said) as refused:
        TokenClassifier(spec()).start_from(path)
    assert str(path) in str(refused.value) and "fetch-weights" in str(refused.value)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(SpecError, match="width 10 is no multiple of the 3 heads"):
        TokenClassifier(spec(layers=1, width=10, heads=3))
    with pytest.raises(SpecError, match="patch 3 does not divide the token map's side 4"):
        TokenClassifier(spec(layers=1, width=12, heads=2, patch=3))


def test_the_defaults_are_vit_b() -> None:
    tokens = TokenSpec(layout="raster", grid=16, num_tokens=256, code_dim=8, num_codes=100_000)
    flops, parameters = forward_flops(
        spec().model_copy(update={"tokens": tokens, "num_classes": 1000, "network": VitSpec()})
    )
    assert parameters == pytest.approx(86e6, rel=0.01)  # its blocks are 85.05M
    assert flops == pytest.approx(2 * 257 * 85e6, rel=0.1)
