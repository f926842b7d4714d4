"""k-means, held against scikit-learn's full one; entries of `codebooks:` that cannot be; a codebook behind a projector."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from helpers import ROOT
from sklearn.cluster import KMeans as FullKMeans

from vqbench.errors import ArtifactError, Interrupted, SpecError
from vqbench.jobs import Finished
from vqbench.notice import Notice
from vqbench.papers import Bench
from vqbench.specs import CodebookSpec, TokenizerSpec, TokenSpec
from vqbench.tokenizers import codebooks, kmeans
from vqbench.tokenizers.base import build_tokenizer
from vqbench.tokenizers.kmeans import Clusters, Features, KMeans, cluster
from vqbench.tokenizers.quantizers.projected import ProjectedQuantizer

MakeSpec = Callable[..., TokenizerSpec]
HOW = KMeans(clusters=20, passes=10, batch_size=512, seed=0)


def saved(folder: Path, values: np.ndarray) -> Features:
    np.save(folder / "features.npy", values)
    return Features(folder / "features.npy")


def mixture(seed: int, apart: float) -> np.ndarray:
    """(4000, 8) float32: twenty clouds that overlap, or lie `apart`."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((20, 8)) * apart
    return (centres[rng.integers(20, size=4000)] + rng.standard_normal((4000, 8))).astype(np.float32)


def clustered(features: Features, folder: Path, how: KMeans = HOW, rows: np.ndarray | None = None) -> Clusters:
    rows = np.arange(len(features)) if rows is None else rows
    return cluster(features, rows, how, folder, Notice())


@pytest.mark.parametrize("apart", [1.5, 8.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_inertia_is_within_two_percent_of_full_k_means(tmp_path: Path, seed: int, apart: float) -> None:
    """Of a hundred clusters, against the best of ten full runs."""
    values = mixture(seed, apart)
    found = clustered(saved(tmp_path, values), tmp_path / "state", KMeans(100, 10, 512, seed=0))
    full = FullKMeans(100, n_init=10, random_state=0).fit(values)
    assert found.inertia < 1.02 * full.inertia_
    nearest = np.square(values[:, None].astype(np.float64) - found.centres[None]).sum(2)  # (M, K)
    assert found.inertia == pytest.approx(nearest.min(1).sum(), rel=1e-5)
    assert found.counts.tolist() == np.bincount(nearest.argmin(1), minlength=100).tolist()


def test_many_clusters_start_from_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within five percent of full k-means; a seed repeats itself."""
    monkeypatch.setattr(kmeans, "DRAWN", 99)
    values, how = mixture(0, 1.5), KMeans(100, 10, 512, seed=0)
    features = saved(tmp_path, values)
    _, start = kmeans._start(features, np.arange(4000), how, tmp_path / "start", 1, "start")
    assert len(np.unique(start.centres, axis=0)) == 100
    assert all((values == centre).all(1).any() for centre in start.centres)
    found = clustered(features, tmp_path / "state", how)
    assert found.inertia < 1.05 * FullKMeans(100, n_init=10, random_state=0).fit(values).inertia_
    assert clustered(features, tmp_path / "again", how).centres.tobytes() == found.centres.tobytes()


@pytest.mark.parametrize("apart", [1.5, 8.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_and_of_few_clusters_from_the_same_start(tmp_path: Path, seed: int, apart: float) -> None:
    """Where clusters are few, full k-means itself ends up to 40% apart from one start to the next."""
    values = mixture(seed, apart)
    features = saved(tmp_path, values)
    _, start = kmeans._start(features, np.arange(4000), HOW, tmp_path / "start", 1, "start")
    full = FullKMeans(20, init=start.centres, n_init=1).fit(values)
    assert clustered(features, tmp_path / "state").inertia < 1.02 * full.inertia_


def test_a_seed_repeats_itself_and_another_does_not(tmp_path: Path) -> None:
    features = saved(tmp_path, mixture(0, 1.5))
    one, same = (clustered(features, tmp_path / name) for name in ("a", "b"))
    other = clustered(features, tmp_path / "c", KMeans(20, 10, 512, seed=1))
    assert one.centres.tobytes() == same.centres.tobytes() and one.inertia == same.inertia
    assert one.centres.tobytes() != other.centres.tobytes()


@pytest.mark.parametrize("stop_after", [1, 5, 10])
def test_a_run_that_is_stopped_goes_on_to_the_same_bytes(tmp_path: Path, stop_after: int) -> None:
    class Told(Notice):
        """Told to stop after so many passes."""

        asked = 0

        def given_to_any(self) -> bool:
            self.asked += 1
            return self.asked == stop_after

    features = saved(tmp_path, mixture(0, 1.5))
    calm = clustered(features, tmp_path / "calm")
    with pytest.raises(Interrupted, match=f"pass {stop_after} "):
        cluster(features, np.arange(4000), HOW, tmp_path / "told", Told(), every=100)
    resumed = clustered(features, tmp_path / "told")
    assert resumed.centres.tobytes() == calm.centres.tobytes()
    assert (resumed.inertia, resumed.counts.tolist()) == (calm.inertia, calm.counts.tolist())


def test_empty_clusters_start_again_and_are_counted(tmp_path: Path) -> None:
    """Five places for twenty clusters: fifteen have nothing to hold, whatever they are moved to."""
    values = np.repeat(np.eye(5, dtype=np.float32), 40, axis=0)
    found = clustered(saved(tmp_path, values), tmp_path / "state")
    assert (found.counts == 0).sum() == 15 and found.counts.sum() == 200 and found.inertia == pytest.approx(0)
    assert found.reseeded == 15 * (HOW.passes - 1)
    assert {tuple(c) for c in found.centres.round(6).tolist()} == {tuple(v) for v in np.eye(5).tolist()}


def test_a_cluster_that_has_lost_its_features_finds_others(tmp_path: Path) -> None:
    """Of a saved state with a centre far from everything, the next pass makes one that holds something."""
    features = saved(tmp_path, mixture(0, 1.5))
    start = Clusters(features.take(np.arange(20)))
    start.centres[7] = 1000.0
    kmeans._save(tmp_path / "state", 3, start)
    found = clustered(features, tmp_path / "state")
    assert found.reseeded >= 1 and (found.counts > 0).all() and np.abs(found.centres).max() < 20


def test_only_the_rows_that_are_given_count(tmp_path: Path) -> None:
    values = mixture(0, 1.5)
    rows = np.arange(100, 900)
    found = clustered(saved(tmp_path, values), tmp_path / "a", KMeans(5, 4, 64, 0), rows)
    (tmp_path / "part").mkdir()
    part = clustered(saved(tmp_path / "part", values[rows]), tmp_path / "b", KMeans(5, 4, 64, 0))
    np.testing.assert_array_equal(found.centres, part.centres)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_feature_that_is_not_finite_is_named(tmp_path: Path, value: float) -> None:
    values = mixture(0, 1.5).astype(np.float16)
    values[1234, 2] = value
    with pytest.raises(ArtifactError, match=r"features.npy holds a feature that is not finite \(row 1234\)"):
        clustered(saved(tmp_path, values), tmp_path / "state")


def test_a_file_that_is_cut_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path, mixture(0, 1.5)).path
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ArtifactError, match=r"cannot read .*features.npy"):
        Features(path)


# ---- entries -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "codes", "message"),
    [
        ("kmeans-per-class", 40, r"class 1 of 'd' has 16 features, fewer than its 20 codes; .* or set method: kmeans"),
        ("kmeans", 70, r"features.npy holds 64 features, fewer than 70 codes; lower num_codes"),
        ("random-features", 70, r"features.npy holds 64 features, fewer than 70 codes; lower num_codes"),
    ],
)
def test_fewer_features_than_codes_are_refused(tmp_path: Path, method: str, codes: int, message: str) -> None:
    """As when bad images were skipped: what was planned is more than what is there."""
    features = saved(tmp_path, mixture(0, 1.5)[:64])
    np.save(tmp_path / "labels.npy", np.array([0, 0, 1, 0]))
    spec = CodebookSpec(method=method, num_codes=codes, code_dim=8, teacher="t", dataset="d",
                        classes=2 if method == "kmeans-per-class" else 1)  # fmt: skip
    made = Finished(("features", "t/d"), features.path.parent, {"outputs": {"features.npy": {}, "labels.npy": {}}})
    job: Any = SimpleNamespace(spec=spec, key=("codebook", "mine"), upstream=lambda kind, key: made,
                               state=tmp_path / "state", store=tmp_path)  # fmt: skip
    with pytest.raises(SpecError, match=message):
        codebooks.run(job)
    assert not list(tmp_path.glob("*.safetensors"))


CLUSTERED = {"teacher": "clip-vitl14", "dataset": "imagenet256", "method": "kmeans-per-class", "num_codes": 100_000}


def read(tmp_path: Path, entry: dict[str, Any], scale: str = "demo", **tokenizer: Any) -> Bench:
    """The papers with one codebook `mine`, and where options are given, a tokenizer on it."""
    shutil.copytree(ROOT / "workflow", tmp_path / "workflow")
    path = tmp_path / "workflow" / "papers" / "cq.yaml"
    data = yaml.safe_load(path.read_text())
    data["codebooks"] = {"mine": entry}
    if tokenizer:
        data["tokenizers"]["lc"] = {
            "family": "large_codebook",
            "dataset": "imagenet256",
            "codebook": "mine",
            **tokenizer,
        }
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return Bench(scale, tmp_path / "workflow")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_codes": 1024}, r"1024 codes cannot be shared evenly by the 1000 classes of 'imagenet256'; set method: kmeans"),
        ({"num_codes": 21_000_000, "method": "kmeans"}, r"num_codes is 21000000, and 'clip-vitl14' gives 20498672 features"),
        ({"num_codes": 21_000_000, "method": "random-features"}, r"num_codes is 21000000, .*; lower num_codes, or use a larger"),
        ({"teacher": "clip-vitl41"}, r"no teacher 'clip-vitl41'; did you mean 'clip-vitl14'"),
        ({"teacher": "vgg16"}, r"no teacher 'vgg16'; known: clip-rn50, clip-vitb16, clip-vitl14"),
        ({"dataset": "coco-val2017"}, r"'coco-val2017' is no data set with a training split"),
        ({"method": "k-means"}, r"'method' is 'k-means': input should be 'kmeans'"),
        ({"num_codes": 0}, r"'num_codes' is 0: input should be greater than 0"),
        ({"num_code": 3}, r"unknown key 'num_code'; did you mean 'num_codes'"),
        ({"classes": 3}, r"unknown key 'classes'"),
        ({"code_dim": 8}, r"'code_dim' is the teacher's; leave it out"),
        ({"method": "random"}, r"'method: random' reads no features; leave 'teacher' out"),
    ],
)  # fmt: skip
def test_an_entry_that_cannot_be_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=rf"cq.yaml: codebook 'mine': {message}"):
        read(tmp_path, CLUSTERED | change, "paper")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"method": "kmeans", "num_codes": 4}, "key 'teacher' is missing; only 'method: random' needs no features"),
        ({"method": "random", "num_codes": 4}, "key 'code_dim' is missing"),
    ],
)
def test_what_a_method_reads_must_be_there(tmp_path: Path, entry: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        read(tmp_path, entry)


def test_one_class_is_clustered_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "workflow" / "datasets.yaml"
    found = read(tmp_path, CLUSTERED | {"method": "kmeans"}, "paper")
    assert found.codebooks["mine"].classes == 1 and found.codebooks["mine"].code_dim == 768
    path.write_text(path.read_text().replace("classes: 1000", "classes: 1"))
    papers = tmp_path / "workflow" / "papers" / "cq.yaml"
    papers.write_text(papers.read_text().replace("method: kmeans\n", "method: kmeans-per-class\n"))
    with pytest.raises(SpecError, match="data set 'imagenet256' has one class; set method: kmeans"):
        Bench("paper", tmp_path / "workflow")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codebook": "mien"}, r"'codebook' is 'mien', no codebook of a paper; did you mean 'mine'"),
        ({"num_codes": 50_000}, r"'num_codes' is 50000, and that of codebook 'mine' is 100000 at this scale"),
        ({"codebook_dim": 512}, r"'codebook_dim' is 512, and that of codebook 'mine' is 768"),
        ({"projector": 3}, r"'projector' is 3: expected bool"),
    ],
)
def test_a_tokenizer_that_does_not_fit_its_codebook_is_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError, match=rf"cq.yaml: tokenizer 'lc': {message}"):
        read(tmp_path, CLUSTERED, "paper", **options)


@pytest.mark.parametrize("scale", ["paper", "demo"])
@pytest.mark.parametrize("teacher", ["clip-vitl14", "clip-vitb16", "clip-rn50"])
def test_every_teacher_fits_at_every_scale(tmp_path: Path, scale: str, teacher: str) -> None:
    dim = {"clip-vitl14": 768, "clip-vitb16": 512, "clip-rn50": 2048}[teacher]
    for number, codes in enumerate((1000, 10_000, 50_000, 100_000, 200_000)):
        entry = CLUSTERED | {"teacher": teacher, "num_codes": codes}
        found = read(tmp_path / str(number), entry, scale, num_codes=codes, codebook_dim=dim)
        assert found.tokenizers["lc"].tokens.num_codes == found.codebooks["mine"].num_codes
        assert found.step(("codebook", "mine")).upstream == (
            ("features", f"{teacher}/{found.overlay.dataset('imagenet256')}"),
        )


def test_the_embedded_slices_are_the_classifiers() -> None:
    from vqbench.pretrained import Slices
    from vqbench.specs import SLICES

    assert Slices._fields == SLICES


# ---- the quantizer -------------------------------------------------------------------------------------------------

TOKENS = TokenSpec(layout="raster", grid=4, num_tokens=16, code_dim=8, num_codes=32)


@pytest.mark.parametrize("dim", [8, 16, 32, 128, 256, 512])
def test_any_dimension_behind_the_projector(make_spec: MakeSpec, dim: int) -> None:
    model = build_tokenizer(make_spec("large_codebook", code_dim=dim)).eval()
    quantized = model(torch.zeros(1, 3, 16, 16)).quantized
    assert quantized.latents.shape == (1, dim, 4, 4)
    assert torch.equal(model.quantizer.lookup(quantized.ids), quantized.latents)
    projector = model.quantizer.get_submodule("projector")
    assert float(projector.get_parameter("weight").detach().std()) == pytest.approx(dim**-0.5, rel=0.05)


def test_the_nearest_projected_code_is_found_and_only_the_projector_learns() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        quantizer, z = ProjectedQuantizer(TOKENS, 24), torch.randn(2, 8, 4, 4)
    codes = F.linear(quantizer.weight, quantizer.projector.weight, quantizer.projector.bias)  # type: ignore[union-attr]
    quantized = quantizer(z)
    distances = torch.cdist(z.permute(0, 2, 3, 1).reshape(-1, 8).double(), codes.detach().double())
    assert torch.equal(quantized.ids.flatten(), distances.argmin(1))
    assert {name for name, _ in quantizer.named_parameters()} == {"projector.weight", "projector.bias"}
    quantized.losses["codebook"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in quantizer.parameters())
    assert quantized.losses["codebook"].item() == pytest.approx(
        float(distances.min(1)[0].square().mean() / 8), rel=1e-5
    )


def test_without_a_projector_latents_have_length_one_and_codes_their_own() -> None:
    quantizer = ProjectedQuantizer(TOKENS, 8, projector=False)
    codes = torch.randn(32, 8, generator=torch.Generator().manual_seed(0)) * 3
    quantizer.take(codes)
    z = torch.randn(1, 8, 4, 4, generator=torch.Generator().manual_seed(1))
    quantized = quantizer(z)
    assert torch.equal(quantized.ids, quantizer(5 * z).ids) and torch.equal(quantizer.codebook(), codes)
    nearest = torch.cdist(F.normalize(z, dim=1).permute(0, 2, 3, 1).reshape(-1, 8), codes).argmin(1)
    assert torch.equal(quantized.ids.flatten(), nearest) and not list(quantizer.parameters())


def test_misfits_of_dimension_are_user_errors() -> None:
    with pytest.raises(
        SpecError, match=r"without a projector codes keep the codebook's 24 dimensions.*set code_dim: 24"
    ):
        ProjectedQuantizer(TOKENS, 24, projector=False)
    with pytest.raises(SpecError, match=r"the codebook is \(16, 24\), the tokenizer's \(32, 24\)"):
        ProjectedQuantizer(TOKENS, 24).take(torch.zeros(16, 24))


def test_a_trainable_codebook_is_a_parameter() -> None:
    quantizer = ProjectedQuantizer(TOKENS, 24, trainable=True)
    quantizer(torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(0))).losses["codebook"].backward()
    assert "weight" in dict(quantizer.named_parameters()) and quantizer.weight.grad is not None
