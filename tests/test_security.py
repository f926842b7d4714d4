"""Nothing that is read can run: weights, archives and YAML are data, and no configured value is a word of a shell's."""

from __future__ import annotations

import ast
import io
import os
import re
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ROOT, run_in, snakemake, vqbench
from random_weights import write_inception

from vqbench.clip import open_clip_network
from vqbench.errors import ArtifactError, DataError, MissingWeights, UserError
from vqbench.eval.archive import Archive, map_array, members, read_array
from vqbench.eval.judge_network import Weights
from vqbench.eval.library_clean_fid import clean_network, quiet
from vqbench.eval.library_torch_fidelity import fidelity_call
from vqbench.eval.protocols import load_protocol
from vqbench.eval.sources import open_source
from vqbench.pretrained import open_lpips

CPU = torch.device("cpu")
RULES = load_protocol("adm").images
SHIPPED = [p for room in ("vqbench", "tokenizers", "generators", "eval", "benchmarks") for p in (ROOT / room).rglob("*.py")
           if not any((ROOT / room / part).is_symlink() for part in p.relative_to(ROOT / room).parts[:1])]  # fmt: skip
# Calls by their full name: run text, unpickle, unpack, or fetch. `eval` alone is the builtin, not a module's method.
FORBIDDEN = {
    *("eval", "exec", "compile", "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"),
    *("pickle.load", "pickle.loads", "yaml.unsafe_load", "yaml.full_load", "joblib.load"),
    *("tarfile.open", "shutil.unpack_archive", "urllib.request.urlopen", "torch.hub.load"),
}


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Every call of a file with its dotted name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def keywords(call: ast.Call) -> dict[str, str]:
    return {k.arg or "**": ast.unparse(k.value) for k in call.keywords}


def test_shipped_code_neither_unpickles_nor_unpacks_nor_runs_text() -> None:
    assert len(SHIPPED) > 100
    seen = set()
    for path in SHIPPED:
        for name, call in calls(path):
            where, given = f"{path.relative_to(ROOT)}:{call.lineno}", keywords(call)
            seen.add(name)
            assert name not in FORBIDDEN, f"{where} calls {name}"
            assert not name.endswith((".extractall", "archive.extract")), f"{where} unpacks an archive"
            assert given.get("shell", "False") == "False", f"{where} starts a shell"
            assert given.get("allow_pickle", "False") == "False", f"{where} reads arrays of objects"
            assert name != "torch.load" or given.get("weights_only") == "True", f"{where} unpickles"
            assert name != "yaml.load" or given.get("Loader") == "_Loader", f"{where} reads YAML that may run"
    assert {"torch.load", "yaml.load", "np.load", "subprocess.run"} <= seen, "the walk sees calls"


def test_what_a_rule_puts_in_its_shell_is_quoted_or_cannot_hold_a_shell_s_characters() -> None:
    """Digests, counts, a scale, and wildcards that the constraints keep to names of this clone."""
    plain = {"params.digest", "params.scale", "resources.gpu", "wildcards.split", "wildcards.protocol", "wildcards.table",
             "wildcards.paper", "wildcards.figure"}  # fmt: skip
    commands = [text for path in (ROOT / "workflow" / "rules").glob("*.smk")
                for text in re.findall(r'shell:\s+"(.*?)"\n', path.read_text())]  # fmt: skip
    assert len(commands) > 10
    for command in commands:
        assert {f for f in re.findall(r"{(.*?)}", command) if not f.endswith(":q")} <= plain, command


def test_a_name_s_dot_is_no_pattern(clone: Path) -> None:
    """``x.y`` as a paper must not let ``x;y`` through to a shell."""
    papers = clone / "workflow" / "papers"
    (papers / "x.y.yaml").write_text("title: Dotted\n")
    done = snakemake(clone, "-n", "results/x;y/table1.csv", "--config", "scale=tiny")
    assert done.returncode != 0 and "MissingRuleException" in done.stdout + done.stderr, done.stderr


@pytest.mark.parametrize("key", ["gpu_partition", "cpu_partition", "account", "gpu_model"])
@pytest.mark.parametrize("value", ["a;touch pwned", "$(touch pwned)", "a b", "--wrap", "'a'"])
def test_cluster_yaml_holds_words(key: str, value: str) -> None:
    from vqbench.cluster import FILE, ClusterSpec
    from vqbench.specs import parse

    with pytest.raises(UserError, match=key):
        parse(ClusterSpec, {key: value}, FILE)
    assert getattr(parse(ClusterSpec, {key: "gpu,a100-80gb@site.x"}, FILE), key) == "gpu,a100-80gb@site.x"


# ---- files that would run something ---------------------------------------------------------------------------------


class Bomb:
    """Unpickled, it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def bomb(tmp_path: Path) -> Iterator[Path]:
    """A weights file that makes ``ran`` when it is unpickled; at the end it must not have."""
    torch.save({"conv.weight": torch.zeros(1), "x": Bomb(tmp_path / "ran")}, tmp_path / "bomb.pth")
    yield tmp_path / "bomb.pth"
    assert not (tmp_path / "ran").exists(), "a file that was only to be read ran"


def test_the_bomb_works(bomb: Path) -> None:
    torch.load(bomb, weights_only=False)
    (bomb.parent / "ran").rmdir()


def test_weights_that_would_run_something_are_refused_by_every_reader(bomb: Path) -> None:
    images = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    readers = [
        lambda: Weights(bomb, "inception-v3"),
        lambda: open_lpips("lpips-vgg16", bomb),
        lambda: open_clip_network(bomb, "ViT-B-32", "clip-vitb32"),
        lambda: fidelity_call(["fid"], load_protocol("torch-fidelity"), images, images, bomb, CPU),
        lambda: clean_network("clean", bomb, CPU),
        lambda: clean_network("legacy_tensorflow", bomb, CPU),
        lambda: clean_network("legacy_pytorch", bomb, CPU),
    ]
    for read in readers:
        with quiet(), pytest.raises(MissingWeights, match=r"bomb\.pth"):
            read()


def test_the_library_still_reads_weights(tmp_path: Path) -> None:
    assert clean_network("clean", write_inception(tmp_path / "inception.pth"), CPU) is not None


def archive(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, content in entries.items():
            file.writestr(name, content)
    return path


def npy(array: np.ndarray) -> bytes:
    np.save(file := io.BytesIO(), array, allow_pickle=True)
    return file.getvalue()


def test_arrays_of_objects_are_refused_by_every_reader(tmp_path: Path) -> None:
    objects = npy(np.array([Bomb(tmp_path / "ran")] * 4, dtype=object))
    path = archive(tmp_path / "objects.npz", {"arr_0.npy": objects})
    for read in (read_array, map_array, lambda p, n: list(Archive(p, n).batches(2))):
        with pytest.raises(ArtifactError, match="arr_0"):
            read(path, "arr_0")
    (tmp_path / "objects.npy").write_bytes(objects)
    for source in (path, tmp_path / "objects.npy"):
        with pytest.raises((ArtifactError, DataError)):
            open_source(source, RULES)
    assert not (tmp_path / "ran").exists()


def test_an_archive_s_entries_stay_in_it(tmp_path: Path) -> None:
    """Names that climb, absolute ones, links and devices are names in a list: nothing is ever unpacked."""
    inner = tmp_path / "inner"
    inner.mkdir()
    content = npy(np.zeros((4, 8, 8, 3), np.uint8))
    link = zipfile.ZipInfo("link.npy")
    link.external_attr = 0o120777 << 16
    path = archive(
        inner / "slip.npz", {"arr_0.npy": content, "../../escaped.npy": content, "/tmp/escaped.npy": content}
    )
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(link, "/etc/passwd")
    before = sorted(tmp_path.rglob("*"))
    assert "arr_0" in members(path) and read_array(path, "arr_0").shape == (4, 8, 8, 3)
    assert len(open_source(path, RULES)) == 4
    with pytest.raises(ArtifactError, match="link"):
        read_array(path, "link")
    assert sorted(tmp_path.rglob("*")) == before and not Path("/tmp/escaped.npy").exists()


def test_a_header_that_promises_a_petabyte_is_refused(tmp_path: Path) -> None:
    header = npy(np.zeros((4, 8, 8, 3), np.uint8)).replace(b"(4, 8, 8, 3)", b"(4, 8, 8, 3" + b"0" * 12 + b")")
    path = archive(tmp_path / "huge.npz", {"arr_0.npy": header})
    for read in (read_array, map_array):
        with pytest.raises(ArtifactError):
            read(path, "arr_0")


def test_yaml_that_would_run_something_is_not_valid(clone: Path) -> None:
    path = clone / "workflow" / "datasets.yaml"
    path.write_text(path.read_text() + "\nx: !!python/object/apply:os.mkdir [ran]\n")
    done = vqbench(clone, "list", "--scale", "tiny")
    assert done.returncode == 2 and "not valid YAML" in done.stderr and "Traceback" not in done.stderr
    assert not list(clone.rglob("ran"))


def test_evaluate_refuses_such_files_in_a_line(bomb: Path, clone: Path) -> None:
    np.save(bomb.parent / "a.npy", np.zeros((4, 32, 32, 3), np.uint8))
    objects = npy(np.array([Bomb(bomb.parent / "ran")] * 4, dtype=object))
    (bomb.parent / "objects.npy").write_bytes(objects)
    common = [
        "evaluate",
        "--generated",
        f"{bomb.parent}/a.npy",
        "--reference",
        f"{bomb.parent}/a.npy",
        "--out",
        "x.json",
    ]
    for more in (["--weights", f"inception-v3={bomb}"], ["--weights", f"inception-v3={bomb}", "--engine", "reference"],
                 ["--ids", f"{bomb.parent}/objects.npy", "--num-codes", "4"]):  # fmt: skip
        done: subprocess.CompletedProcess[str] = vqbench(clone, *common, "--protocol", "pytorch-fid", *more)
        assert done.returncode in (1, 2) and "Traceback" not in done.stderr, done.stderr
    assert run_in(clone, "test", "-e", "x.json").returncode == 1
