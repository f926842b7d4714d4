"""Protocols as shipped: what they say is what the libraries do, the names they give, and what they refuse."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from sklearn.metrics.pairwise import polynomial_kernel

from vqbench.errors import SpecError
from vqbench.eval.protocols import FOLDER, JUDGED, PAIRED, Judge, Kernel, load_protocol, metric_name, read_protocol
from vqbench.specs import digest_of

NAMES = sorted(p.stem for p in FOLDER.glob("*.yaml"))
SOURCE = re.compile(r"(ours: .+|[\w.-]+/[\w.-]+:[\w./-]+)")


def raw(name: str) -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    return data


@pytest.mark.parametrize("name", NAMES)
def test_shipped_protocols_read_and_bear_their_files_name(name: str) -> None:
    protocol = load_protocol(name)
    assert protocol.name == name and protocol.summary and len(protocol.summary) < 110
    assert all(SOURCE.fullmatch(source) for source in protocol.source), protocol.source
    assert protocol.metrics and set(protocol.metrics) <= {*JUDGED, *PAIRED}


def test_the_protocols_of_the_issue_ship() -> None:
    libraries = {"torch-fidelity", "clean-fid", "clean-fid-legacy", "pytorch-fid", "dgm-eval"}
    assert set(NAMES) == {"adm", "demo", "llamagen-code", "vqgan-lc-code", "taming"} | libraries


def test_plain_names_are_adms_alone() -> None:
    protocols = {name: load_protocol(name) for name in NAMES}
    assert protocols["adm"].suffix == "" and protocols["demo"].suffix == "[demo-judge]"
    assert all(p.suffix == f"[{name}]" for name, p in protocols.items() if name not in ("adm", "demo"))
    for block in ("psnr", "ssim", "lpips"):
        for p in protocols.values():  # a plain name has adm's numbers: its block, and its rounding of floats
            plain = {**dict(getattr(protocols["adm"], block)), "rounding": protocols["adm"].images.rounding}
            own = {**dict(getattr(p, block)), "rounding": p.images.rounding}
            same = {k: v for k, v in own.items() if k != "suffix"} == {k: v for k, v in plain.items() if k != "suffix"}
            assert (getattr(p, block).suffix == "") == same, (p.name, block)
    for base in JUDGED:
        assert len({metric_name(base, p) for p in protocols.values()}) == len(NAMES)
    assert len({digest_of(p) for p in protocols.values()}) == len(NAMES)


@pytest.mark.parametrize(
    ("protocol", "base", "name"),
    [
        ("adm", "fid", "fid"),
        ("adm", "lpips", "lpips"),
        ("demo", "fid", "fid[demo-judge]"),
        ("demo", "rfid", "rfid[demo-judge]"),
        ("demo", "is", "is[demo-judge]"),
        ("demo", "precision", "precision[demo-judge]"),
        ("demo", "recall", "recall[demo-judge]"),
        ("demo", "lpips", "lpips[demo-judge]"),
        ("demo", "psnr", "psnr"),
        ("demo", "ssim", "ssim"),
        ("demo", "usage", "usage"),
        ("demo", "unique_ratio", "unique_ratio"),
        ("demo", "probe_before", "probe_before"),
        ("clean-fid", "rfid", "rfid[clean-fid]"),
        ("clean-fid", "lpips", "lpips"),
        ("vqgan-lc-code", "lpips", "lpips[vqgan-lc-code]"),
        ("vqgan-lc-code", "psnr", "psnr[vqgan-lc-code]"),
        ("llamagen-code", "psnr", "psnr"),
        ("llamagen-code", "ssim", "ssim[llamagen-code]"),
        ("llamagen-code", "ms_ssim", "ms_ssim[llamagen-code]"),
        ("taming", "psnr", "psnr[taming]"),
    ],
)
def test_metric_names(protocol: str, base: str, name: str) -> None:
    assert metric_name(base, raw(protocol)) == metric_name(base, read_protocol(raw(protocol))) == name


# ---- what the installed libraries do --------------------------------------------------------------------------------


def test_torch_fidelitys_defaults() -> None:
    from torch_fidelity.defaults import DEFAULTS
    from torch_fidelity.metric_prc import prc_features_to_metric
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY
    from torch_fidelity.utils import DEFAULT_FEATURE_EXTRACTOR

    protocol = load_protocol("torch-fidelity")
    score, near, kernel = protocol.inception_score, protocol.precision_recall, protocol.kid
    assert score is not None and near is not None and near.judge is not None
    assert (score.splits, score.shuffle, score.seed) == tuple(
        DEFAULTS[k] for k in ("isc_splits", "samples_shuffle", "rng_seed")
    )
    assert kernel == Kernel(
        subsets=DEFAULTS["kid_subsets"], subset_size=DEFAULTS["kid_subset_size"], seed=DEFAULTS["rng_seed"],
        degree=DEFAULTS["kid_kernel_poly_degree"], gamma=DEFAULTS["kid_kernel_poly_gamma"],
        coef0=DEFAULTS["kid_kernel_poly_coef0"],
    )  # fmt: skip
    assert (DEFAULTS["kid_kernel"], near.neighborhood) == ("poly", DEFAULTS["prc_neighborhood"])
    assert protocol.images.crop == "none" and DEFAULTS["samples_resize_and_crop"] == 0
    networks = {"inception-v3-compat": protocol.judge, "vgg16": near.judge}
    for metric in ("isc", "fid", "kid", "prc"):
        network = DEFAULT_FEATURE_EXTRACTOR[metric]
        extractor, judge = FEATURE_EXTRACTORS_REGISTRY[network], networks[network]
        layer = extractor.get_default_feature_layer_for_metric(metric)
        assert layer == (judge.logits if metric == "isc" else judge.features)
        assert judge.size == extractor.INPUT_IMAGE_SIZE
    assert near.judge == Judge(network="vgg16", resize="tf1-bilinear", size=224, features="fc2_relu")
    assert near.comparison == "<="  # a point at exactly a ball's radius is inside:
    real, made = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[3.0], [99.0]])
    counts = prc_features_to_metric(made, real, prc_neighborhood=1, verbose=False)
    assert counts["precision"] == 0.5


def test_adm_takes_torch_fidelitys_kernel_and_inception() -> None:
    adm, library = load_protocol("adm"), load_protocol("torch-fidelity")
    assert adm.kid == library.kid and adm.sets.count is not None
    mine, theirs = adm.inception_score, library.inception_score
    assert mine is not None and theirs is not None and (mine.shuffle, mine.seed) == (theirs.shuffle, theirs.seed)
    assert mine.cuts(adm.sets.count) == theirs.cuts(adm.sets.count)  # of the 50,000 images that both are published for
    assert adm.judge.model_copy(update={"spatial": None}) == library.judge


@pytest.mark.parametrize("name", ["clean-fid", "clean-fid-legacy", "pytorch-fid"])
def test_clean_fids_modes_resize_so(name: str) -> None:
    from cleanfid.resize import build_resizer
    from PIL import Image

    judge = load_protocol(name).judge
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    mode = {"clean-fid": "clean", "clean-fid-legacy": "legacy_tensorflow", "pytorch-fid": "legacy_pytorch"}[name]
    found = build_resizer(mode)(image)
    if name == "clean-fid-legacy":  # left to the network
        assert found is image and judge.resize == "tf1-bilinear"
    elif name == "pytorch-fid":
        assert judge.resize == "torch-bilinear"
        levels = torch.from_numpy(image.astype(np.float32).transpose(2, 0, 1)[None])
        expected = F.interpolate(levels, size=judge.size, mode="bilinear", align_corners=False)[0].numpy()
        np.testing.assert_allclose(found, expected.transpose(1, 2, 0), atol=1e-3)
    else:
        assert judge.resize == "pil-bicubic" and judge.size is not None
        size = (judge.size, judge.size)
        planes = [
            Image.fromarray(image[..., c].astype(np.float32)).resize(size, Image.Resampling.BICUBIC) for c in range(3)
        ]
        np.testing.assert_allclose(found, np.stack([np.asarray(p) for p in planes], -1).clip(0, 255), atol=1e-3)


def test_clean_fids_kernel() -> None:
    """Unbiased MMD^2 under the protocol's kernel, where a subset is the whole set."""
    from cleanfid.fid import kernel_distance

    kernel = load_protocol("clean-fid").kid
    assert kernel is not None and kernel == load_protocol("clean-fid-legacy").kid
    defaults = {k: p.default for k, p in inspect.signature(kernel_distance).parameters.items()}
    assert (kernel.subsets, kernel.subset_size) == (defaults["num_subsets"], defaults["max_subset_size"])
    a, b = (np.random.default_rng(i).normal(size=(30, 5)) + i for i in (0, 1))
    aa, bb, ab = (
        polynomial_kernel(x, y, kernel.degree, kernel.gamma, kernel.coef0) for x, y in ((a, a), (b, b), (a, b))
    )
    same = (aa.sum() - np.trace(aa) + bb.sum() - np.trace(bb)) / (30 * 29)
    assert kernel_distance(a, b, num_subsets=2) == pytest.approx(same - 2 * ab.mean(), rel=1e-9)


def test_llamagens_ranges_in_levels() -> None:
    """Its script gives scikit-image floats in [0, 1], the range 2 for SSIM and none for PSNR."""
    rng = np.random.default_rng(0)
    levels = [rng.integers(0, 256, (32, 32, 3)).astype(np.uint8) for _ in range(2)]
    floats = [image.astype(np.float32) / 255 for image in levels]
    protocol = load_protocol("llamagen-code")
    wide = structural_similarity(*levels, data_range=protocol.ssim.data_range, channel_axis=-1)
    assert wide == pytest.approx(structural_similarity(*floats, data_range=2.0, channel_axis=-1), abs=1e-5)
    assert protocol.ssim.data_range == 2 * load_protocol("adm").ssim.data_range
    theirs = peak_signal_noise_ratio(*floats)
    assert peak_signal_noise_ratio(*levels, data_range=protocol.psnr.data_range) == pytest.approx(theirs, abs=1e-4)
    levels_of = np.arange(256) / 127.5 - 1  # 127.5 x + 128 cut to an integer gives every level back
    assert (np.clip(127.5 * levels_of + 128, 0, 255).astype(np.uint8) == np.arange(256)).all()


def test_ssims_of_scikit_image() -> None:
    """Window, size and covariance of the uniform protocols are scikit-image's defaults."""
    image, other = (np.random.default_rng(i).integers(0, 256, (20, 20, 3)).astype(np.uint8) for i in (0, 1))
    plain = structural_similarity(image, other, data_range=255, channel_axis=-1)
    spelled = {"win_size": 7, "gaussian_weights": False, "use_sample_covariance": True}
    assert structural_similarity(image, other, data_range=255, channel_axis=-1, **spelled) == plain
    for name in ("adm", "llamagen-code"):
        window = load_protocol(name).ssim
        assert (window.size, window.window, window.covariance) == (7, "uniform", "sample")


def test_vqgan_lcs_luma_in_levels() -> None:
    """Y of 16..235 over 255, range 1, is full-range luma over a wider range."""
    rng, psnr = np.random.default_rng(0), load_protocol("vqgan-lc-code").psnr
    a, b = (rng.integers(0, 256, (16, 16, 3)) for _ in range(2))
    narrow = ((a - b) / 255 @ np.array([65.481, 128.553, 24.966])) / 255
    full = (a - b) @ np.array([0.299, 0.587, 0.114])
    theirs = 10 * np.log10(1 / np.mean(narrow**2))
    assert 10 * np.log10(psnr.data_range**2 / np.mean(full**2)) == pytest.approx(theirs, abs=1e-9)
    assert psnr.space == "y" and theirs - 10 * np.log10(255**2 / np.mean(full**2)) == pytest.approx(1.3219, abs=1e-4)


# ---- what is refused ------------------------------------------------------------------------------------------------


def _set(data: dict[str, Any], path: str, value: Any) -> None:
    *parents, key = path.split(".")
    for parent in parents:
        data = data[parent]
    data[key] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("precision_recall.neighbourhood", 3, "did you mean 'neighborhood'"),
        ("suffix", "", "stand-in"),
        ("lpips.suffix", "", "stand-in"),
        ("judge.logits", None, "logits"),
        ("ssim.size", 8, "odd"),
        ("ssim.sigma", 1.5, "gaussian"),
        ("ssim.window", "gaussian", "sigma"),
        ("batch", 0, "greater than 0"),
        ("psnr.space", "yuv", "rgb"),
        ("source", [], "at least 1"),
        ("kid", None, None),
        ("is", None, "lists is"),
        ("is.split_size", 5000, "either 'splits' or 'split_size'"),
        ("images.bit_depth", 16, "8"),
        ("metrics", ["sfid"], "lists sfid"),
        ("probe.optimizer", "lbfgs", "lbfgs has no lr, betas, batch"),
        ("probe.lr", None, "adamw needs lr"),
    ],
)
def test_mistakes_are_named(path: str, value: Any, message: str | None) -> None:
    data = raw("demo")
    _set(data, path, value)
    if message is None:  # not listed in 'metrics': may be undefined
        assert read_protocol(data).kid is None
        return
    with pytest.raises(SpecError, match=message):
        read_protocol(data)


def test_unknown_protocol_names_the_nearest() -> None:
    with pytest.raises(SpecError, match="did you mean 'demo'"):
        load_protocol("demos")


def test_tables_can_name_metrics_without_torch() -> None:
    code = "import sys, vqbench.eval.protocols; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_guide_to_linear_probing_holds() -> None:
    """docs/evaluation.md: every shipped protocol has one recipe, and the block shown for another one is a recipe."""
    recipe = load_protocol("adm").probe
    assert all(load_protocol(name).probe == recipe for name in NAMES if name != "demo")
    assert (recipe.pooling, recipe.optimizer, recipe.lr, recipe.epochs) == ("mean", "adamw", 1e-4, 10)
    text = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
    (block,) = re.findall(r"```yaml\n(probe:.*?)```", text, re.DOTALL)
    shown = load_protocol("adm").model_dump(by_alias=True) | yaml.safe_load(block)
    assert (read_protocol(shown).probe.pooling, read_protocol(shown).probe.optimizer) == ("flat", "lbfgs")
