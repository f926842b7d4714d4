"""The libraries against the engine: same images, same weights, each value to its tolerance; and what they refuse."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from random_weights import write_inception, write_torchscript
from torch import nn

from vqbench.errors import DataError, MissingWeights, SpecError
from vqbench.eval.base import Batch, Estimate, Features
from vqbench.eval.evaluator import Evaluator, layers_of
from vqbench.eval.feature_set import FeatureSet, choose
from vqbench.eval.fid import Fid
from vqbench.eval.judges import Judges, with_judge
from vqbench.eval.kid import Kid
from vqbench.eval.libraries import _calls, score_with_libraries, why_not
from vqbench.eval.library_clean_fid import clean_distances, clean_features, clean_mode, legacy_seed
from vqbench.eval.pair_metrics import PAIRED, pair_metrics
from vqbench.eval.protocols import FOLDER, Protocol, load_protocol, read_protocol
from vqbench.eval.request import Request
from vqbench.eval.scoring import entry
from vqbench.eval.set_metrics import BUILD, set_metrics
from vqbench.eval.sources import open_source

from .image_sets import noisy

CPU = torch.device("cpu")
SMALL_FID = 1e-7  # torch-fidelity's means are float32, which moves the fifth digit of the stand-in's small distances


def request(
    protocol: Protocol, names: Sequence[str], weights: Any, pairs: bool = False, explicit: bool = True
) -> Request:
    return Request(protocol, list(names), explicit, pairs, CPU, Judges(protocol, CPU, weights))


def libraries(wanted: Request, generated: np.ndarray, reference: np.ndarray | None) -> dict[str, Estimate]:
    rules = wanted.protocol.images
    found, left = score_with_libraries(
        wanted, open_source(generated, rules), None if reference is None else open_source(reference, rules)
    )
    assert not left
    return {name: estimate for _, name, estimate in found}


def engine(wanted: Request, generated: np.ndarray, reference: np.ndarray) -> dict[str, Estimate]:
    """The engine's own metrics, fed by hand."""
    protocol = wanted.protocol
    sets = set_metrics([name for name in wanted.names if name in BUILD], protocol)
    paired = pair_metrics([n for n in wanted.names if n in PAIRED], protocol, wanted.judges.lpips, CPU)
    extract = wanted.judges.extractor(layers_of(sets) | {"pooled"}) if sets else None
    evaluator = Evaluator(paired, sets, extract)
    evaluator.see(Batch(np.arange(len(generated)), generated, reference if wanted.pairs else None))
    known = None
    if extract is not None:
        neighbours, m = protocol.precision_recall, np.arange(len(reference))
        rows = choose(len(m), neighbours) if neighbours else None
        layers = sorted(layers_of(sets) - {"logits", "spatial"})
        known = FeatureSet(frozenset({"pooled"}), dict.fromkeys(layers, rows))
        known.update(Batch(m, features=extract(reference)))
    return {name: estimate for _, name, estimate in evaluator.compute(known)}


def counted(found: dict[str, Estimate], generated: int, reference: int) -> list[int]:
    """The images that precision and recall are shares of; torch-fidelity gives them in float32."""
    counts = [found["precision"].value * generated, found["recall"].value * reference]
    assert counts == pytest.approx([round(count) for count in counts], abs=1e-5)
    return [round(count) for count in counts]


def test_torch_fidelity_finds_the_engines_set_metrics(
    real: np.ndarray, other: np.ndarray, protocol: Protocol, weights: dict[str, Any]
) -> None:
    wanted = request(protocol, ["fid", "is", "precision", "recall"], weights)
    theirs, ours = libraries(wanted, other, real), engine(wanted, other, real)
    assert theirs["fid"].value == pytest.approx(ours["fid"].value, rel=1e-6, abs=SMALL_FID)
    assert theirs["is"].value == pytest.approx(ours["is"].value, rel=1e-8)
    # The reference of precision and recall is the 20 images that the protocol draws, of all others the whole set.
    assert counted(theirs, 40, 20) == counted(ours, 40, 20)
    assert 0 < theirs["precision"].value < 1 and 0 < theirs["recall"].value < 1 and theirs["fid"].value > 0.001
    assert {name: e.n for name, e in theirs.items()} == {name: ours[name].n for name in theirs}
    assert all(math.isnan(e.low) and math.isnan(e.high) for e in theirs.values())
    assert wanted.seconds["torch-fidelity"] > 0


def test_all_reference_images_count_where_the_protocol_says_so(
    real: np.ndarray, other: np.ndarray, protocol: Protocol, weights: dict[str, Any]
) -> None:
    neighbours = protocol.precision_recall
    assert neighbours is not None
    whole = neighbours.model_copy(update={"reference_count": None})
    protocol = protocol.model_copy(update={"precision_recall": whole})
    wanted = request(protocol, ["kid", "precision", "recall"], weights)
    theirs, ours = libraries(wanted, other, real), engine(wanted, other, real)
    assert theirs["kid"].value == pytest.approx(ours["kid"].value, rel=1e-4, abs=1e-7)
    assert counted(theirs, 40, 48) == counted(ours, 40, 48)


def test_scikit_image_and_lpips_find_the_engines_pair_metrics(
    real: np.ndarray, protocol: Protocol, weights: dict[str, Any]
) -> None:
    changed = noisy(real)
    changed[5] = real[5]  # an identical pair has no PSNR
    wanted = request(protocol, ["rfid", "psnr", "ssim", "lpips"], weights, pairs=True)
    theirs, ours = libraries(wanted, changed, real), engine(wanted, changed, real)
    tolerances = {"rfid": 1e-6, "psnr": 1e-10, "ssim": 1e-6, "lpips": 1e-5}
    for name, tolerance in tolerances.items():
        least = SMALL_FID if name == "rfid" else 0.0
        assert theirs[name].value == pytest.approx(ours[name].value, rel=tolerance, abs=least), name
        assert theirs[name].n == ours[name].n, name
    assert theirs["psnr"].n == 47 and theirs["ssim"].n == 48
    assert {"torch-fidelity", "scikit-image", "lpips"} <= set(wanted.seconds)


def test_lpips_finds_the_engines_distance_of_images_scaled_twice(
    real: np.ndarray, protocol: Protocol, weights: dict[str, Any]
) -> None:
    twice = protocol.model_copy(update={"lpips": protocol.lpips.model_copy(update={"rescaled": True})})
    changed = noisy(real)
    once, found = (request(rules, ["lpips"], weights, pairs=True) for rules in (protocol, twice))
    theirs = libraries(found, changed, real)["lpips"].value
    assert theirs == pytest.approx(engine(found, changed, real)["lpips"].value, rel=1e-5)
    assert abs(theirs / libraries(once, changed, real)["lpips"].value - 1) > 0.005


def test_pooled_psnr_is_that_of_the_mean_error(real: np.ndarray, protocol: Protocol) -> None:
    pooled = protocol.model_copy(update={"psnr": protocol.psnr.model_copy(update={"pooling": "mse"})})
    changed = np.concatenate([noisy(real[:20], 3), noisy(real[20:], 40)])
    theirs = libraries(request(pooled, ["psnr"], {}, pairs=True), changed, real)["psnr"]
    mse = np.mean((changed.astype(float) - real.astype(float)) ** 2)
    assert theirs.value == pytest.approx(10 * math.log10(255**2 / mse), rel=1e-12)
    ours = engine(request(pooled, ["psnr"], {}, pairs=True), changed, real)["psnr"]
    assert (theirs.value, theirs.n) == (pytest.approx(ours.value, rel=1e-10), ours.n)


@pytest.mark.parametrize("name", ["vqgan-lc-code", "llamagen-code"])
@pytest.mark.parametrize("shape", [(32, 40), (401, 520)])
def test_the_papers_psnr_and_ssim(name: str, shape: tuple[int, int]) -> None:
    """Luma, the gaussian window and the pooling of large images; twice the range."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (2, -(-shape[0] // 8), -(-shape[1] // 8), 3))
    real = np.kron(coarse, np.ones((1, 8, 8, 1), int))[:, : shape[0], : shape[1]].astype(np.uint8)
    wanted = request(load_protocol(name), ["psnr", "ssim"], {}, pairs=True)
    theirs, ours = libraries(wanted, noisy(real, 30), real), engine(wanted, noisy(real, 30), real)
    assert theirs["psnr"].value == pytest.approx(ours["psnr"].value, rel=1e-10)
    assert theirs["ssim"].value == pytest.approx(ours["ssim"].value, rel=1e-6)
    assert 0.1 < theirs["ssim"].value < 0.99


def test_clean_fids_distances_are_the_engines() -> None:
    rng, kernel = np.random.default_rng(0), load_protocol("clean-fid").kid
    assert kernel is not None
    kernel = kernel.model_copy(update={"subsets": 7, "subset_size": 30})
    generated = rng.normal(size=(90, 8)).astype(np.float32)
    reference = (rng.normal(size=(80, 8)) * 1.2 + 0.1).astype(np.float32)
    before = np.random.get_state()[1].tolist()  # type: ignore[index, union-attr]
    theirs = clean_distances(["fid", "kid"], generated, reference, kernel)
    assert np.random.get_state()[1].tolist() == before  # type: ignore[index, union-attr]
    sets = []
    for rows in (generated, reference):
        sets.append(FeatureSet(frozenset({"pooled"}), {"pooled": None}))
        sets[-1].update(Batch(np.arange(len(rows)), features=Features(torch.from_numpy(rows))))
    assert theirs["fid"] == pytest.approx(Fid().compute(*sets)["fid"].value, rel=1e-6)
    assert theirs["kid"] == pytest.approx(Kid(kernel).compute(*sets)["kid"].value, rel=1e-4)


def test_a_seed_of_numpys_own_generator_is_put_back() -> None:
    np.random.seed(3)
    first = np.random.rand()
    np.random.seed(3)
    with legacy_seed(8):
        inside = np.random.rand()
    assert np.random.rand() == first
    with legacy_seed(8):
        assert np.random.rand() == inside


def test_which_protocols_are_clean_fids() -> None:
    modes = {path.stem: clean_mode(load_protocol(path.stem)) for path in FOLDER.glob("*.yaml")}
    assert {name: mode for name, mode in modes.items() if mode} == {
        "clean-fid": "clean", "vqgan-lc-code": "clean", "clean-fid-legacy": "legacy_tensorflow",
        "pytorch-fid": "legacy_pytorch",
    }  # fmt: skip
    assert clean_mode(with_judge(load_protocol("clean-fid"), "photo-classifier")) is None


def test_a_call_has_one_network_one_reference_and_one_seed() -> None:
    names = ["fid", "kid", "is", "precision", "recall"]

    def groups(protocol: Protocol, count: int) -> list[tuple[list[str], int | None]]:
        others = np.zeros((count, 1, 1, 3), np.uint8)
        return [(g, None if part is None else len(part)) for g, part in _calls(names, protocol, others)]

    assert groups(load_protocol("torch-fidelity"), 9) == [(["fid", "kid", "is"], None), (["precision", "recall"], None)]
    adm = load_protocol("adm")
    assert groups(adm, 9) == [(names, None)]
    assert groups(adm, 10001) == [(["fid", "kid", "is"], None), (["precision", "recall"], 10000)]
    assert adm.kid is not None
    seeded = adm.model_copy(update={"kid": adm.kid.model_copy(update={"seed": 1})})
    assert groups(seeded, 9) == [(["fid", "is", "precision", "recall"], None), (["kid"], None)]


@pytest.mark.parametrize(
    ("protocol", "name", "message"),
    [
        ("adm", "sfid", "no library here computes it"),
        ("adm", "fid_infinity", "no library here computes it"),
        ("adm", "density", "no library here computes it"),
        ("adm", "coverage", "no library here computes it"),
        ("adm", "clip_score", "no library here computes it"),
        ("adm", "ms_ssim", "no library here computes it"),
        ("adm", "usage", "no library here computes it"),
        ("clean-fid", "is", "defines no 'is'"),
        ("pytorch-fid", "kid", "defines no 'kid'"),
        ("dgm-eval", "fid", "dinov2-vitl14"),
        ("dgm-eval", "precision", "dinov2-vitl14"),
        ("torch-fidelity", "kid", "subsets are of 1000 images, there are 40 and 48"),
    ],
)
def test_what_no_library_computes_is_refused_by_name(
    real: np.ndarray, other: np.ndarray, protocol: str, name: str, message: str
) -> None:
    with pytest.raises(SpecError, match=message) as raised:
        libraries(request(load_protocol(protocol), [name], {}, pairs=name in PAIRED), other, real)
    assert f"'{name}'" in str(raised.value) and "--metrics" in str(raised.value)
    assert "--engine vqbench" in str(raised.value)


def test_settings_that_a_library_does_not_have(demo_protocol: dict[str, Any]) -> None:
    demo_protocol["precision_recall"]["comparison"] = "<"
    demo_protocol["ssim"] |= {"window": "gaussian", "size": 7, "sigma": 1.5}
    protocol = read_protocol(demo_protocol)
    assert "by <=" in why_not("precision", protocol, 40, 40) and "11 wide" in why_not("ssim", protocol, 40, 40)
    adm, clean = load_protocol("adm"), load_protocol("clean-fid")
    splits = load_protocol("torch-fidelity")
    assert "10 splits" in why_not("is", splits, 9, None) and why_not("is", splits, 10, None) == ""
    for count, reason in ((10, ""), (5000, ""), (15_000, ""), (7000, "parts are of 5000 images")):
        assert reason in why_not("is", adm, count, None) and bool(why_not("is", adm, count, None)) == bool(reason)
    assert "more than 3" in why_not("recall", adm, 3, 9) and why_not("recall", adm, 4, 9) == ""
    assert "2 images" in why_not("fid", adm, 1, 9) and "--reference" in why_not("fid", adm, 9, None)
    louder = adm.model_copy(update={"judge": adm.judge.model_copy(update={"gain": 2.0})})
    assert "no gain of 2" in why_not("fid", louder, 9, 9)
    wider = adm.model_copy(update={"judge": adm.judge.model_copy(update={"resize": "torch-bilinear-antialias"})})
    assert "resizes by tf1-bilinear" in why_not("fid", wider, 9, 9)
    deeper = adm.model_copy(update={"judge": adm.judge.model_copy(update={"features": "2049"})})
    assert "no layer 2049" in why_not("fid", deeper, 9, 9)
    assert clean.kid is not None
    steeper = clean.model_copy(update={"kid": clean.kid.model_copy(update={"degree": 2})})
    assert "kernel" in why_not("kid", steeper, 9, 9) and why_not("kid", clean, 9, 9) == ""


def test_a_protocols_own_list_is_shortened_with_the_reason(
    real: np.ndarray, other: np.ndarray, protocol: Protocol, weights: dict[str, Any]
) -> None:
    wanted = request(protocol, ["is", "density", "clip_score"], weights, explicit=False)
    found, left = score_with_libraries(wanted, open_source(other, protocol.images), None)
    assert [f.name for f in found] == ["is"] and len(left) == 2
    assert "density" in left[0] and "clip_score" in left[1]
    wanted = request(load_protocol("dgm-eval"), ["fid", "coverage"], {}, explicit=False)
    with pytest.raises(SpecError, match=r"compute nothing of this.*coverage"):
        score_with_libraries(wanted, open_source(other, protocol.images), open_source(real, protocol.images))


def test_a_librarys_value_has_a_unit_and_a_direction_and_no_interval(real: np.ndarray, protocol: Protocol) -> None:
    wanted = request(protocol, ["psnr"], {}, pairs=True)
    sources = [open_source(x, protocol.images) for x in (noisy(real), real)]
    ((found,), _) = score_with_libraries(wanted, sources[0], sources[1])
    line = entry(found.metric, found.estimate, found.name)
    assert (line["unit"], line["higher_is_better"], line["n"]) == ("dB", True, 48)
    assert line["low"] is None and line["high"] is None and line["interval"] == "none: the library gives none"


def test_images_that_do_not_fit_on_the_disk(
    real: np.ndarray, protocol: Protocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 10))
    with pytest.raises(DataError, match="TMPDIR"):
        libraries(request(protocol, ["psnr"], {}, pairs=True), real, real)


def test_images_of_several_sizes(protocol: Protocol, tmp_path: Path) -> None:
    for i, side in enumerate((16, 16, 24)):
        Image.fromarray(np.zeros((side, 20, 3), np.uint8)).save(tmp_path / f"{i}.png")
    source = open_source(tmp_path, protocol.images, any_size=True)
    with pytest.raises(DataError, match="sets of one size"):
        score_with_libraries(request(protocol, ["is"], {}), source, None)


def test_a_window_larger_than_the_images(protocol: Protocol) -> None:
    with pytest.raises(SpecError, match="window of 7"):
        libraries(request(protocol, ["ssim"], {}, pairs=True), *np.zeros((2, 3, 6, 9, 3), np.uint8))


def test_weights_of_another_network_are_refused(real: np.ndarray, other: np.ndarray, tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pth")
    for name in ("adm", "clean-fid", "pytorch-fid"):
        wanted = request(load_protocol(name), ["fid"], {"inception-v3": tmp_path / "other.pth"})
        with pytest.raises(MissingWeights, match=r"other\.pth.*fetch it again"):
            libraries(wanted, other[:4], real[:4])


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of Inception's true shapes."""
    return write_inception(tmp_path_factory.mktemp("weights") / "weights-inception-2015-12-05-6726825d.pth")


@pytest.mark.full
def test_inception_by_torch_fidelity_and_by_the_engine(real: np.ndarray, other: np.ndarray, inception: Path) -> None:
    wanted = request(load_protocol("adm"), ["fid", "is", "precision", "recall"], {"inception-v3": inception})
    theirs, ours = libraries(wanted, other[:12], real[:14]), engine(wanted, other[:12], real[:14])
    assert theirs["fid"].value == pytest.approx(ours["fid"].value, rel=1e-3)  # singular: its root is not exact
    assert theirs["is"].value == pytest.approx(ours["is"].value, rel=1e-4)
    assert counted(theirs, 12, 14) == counted(ours, 12, 14)


@pytest.mark.full
@pytest.mark.parametrize("name", ["clean-fid", "clean-fid-legacy", "pytorch-fid"])
def test_inception_by_clean_fid_and_by_the_engine(real: np.ndarray, inception: Path, tmp_path: Path, name: str) -> None:
    protocol, some = load_protocol(name), real[:3]
    mode = clean_mode(protocol)
    assert mode is not None
    theirs = torch.from_numpy(clean_features(some, mode, inception, 2, CPU))
    ours = Judges(protocol, CPU, {"inception-v3": inception}).extractor(frozenset({"pooled"}))(some).pooled
    torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-3 * float(ours.std()))
    if mode == "clean":  # clean-fid's own file, with the same weights
        script = write_torchscript(tmp_path / "inception-2015-12-05.pt", inception)
        own = torch.from_numpy(clean_features(some, mode, script, 2, CPU))
        torch.testing.assert_close(own, theirs, rtol=1e-4, atol=1e-4 * float(ours.std()))
