"""Inception under two protocols, and LPIPS, in the DAG: random weights of the true shapes where the libraries look."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import yaml
from helpers import TINY, copy_clone, snakemake
from random_weights import write_inception, write_vgg16

pytestmark = pytest.mark.full

NETWORKS = {
    "inception-random": {"kind": "inception-v3", "filename": "weights-inception-random.pth"},
    "lpips-random": {"kind": "lpips-vgg16", "filename": "vgg16-random.pth"},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TORCH_HOME with random weights of the true shapes."""
    home = tmp_path_factory.mktemp("torch")
    folder = home / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    write_inception(folder / "weights-inception-random.pth")
    write_vgg16(folder / "vgg16-random.pth")
    return home


@pytest.mark.parametrize(("protocol", "name"), [("adm", "rFID measured"), ("clean-fid", "rFID measured [clean-fid]")])
def test_real_architectures_in_the_dag(protocol: str, name: str, home: Path, tmp_path: Path) -> None:
    clone = copy_clone(tmp_path / "clone")
    scale = yaml.safe_load(TINY.read_text())
    scale = {k: v for k, v in scale.items() if not k.startswith("new_")}
    scale |= {"protocol": protocol, "roles": {"judge": "inception-random", "perceptual": "lpips-random"}}
    (clone / "workflow" / "scales" / "real.yaml").write_text(yaml.safe_dump(scale, sort_keys=False))
    with (clone / "workflow" / "pretrained.yaml").open("a") as file:
        yaml.safe_dump(NETWORKS, file)
    targets = ["results/real/scores/tokenizers/cq-k1024/photos-tiny/manifest.json", "results/real/table6a.csv"]
    targets += ["results/real/scores/samples/cq-b-k16384-s10/manifest.json"] if protocol == "adm" else []
    done = snakemake(clone, *targets, "--config", "scale=real", "--show-failed-logs", TORCH_HOME=str(home))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-5000:]
    with (clone / "results" / "real" / "table6a.csv").open() as file:
        rows = list(csv.DictReader(file))
    values = [float(r[name]) for r in rows]
    assert all(v > 0 for v in values) and len(set(values)) == len(values)
