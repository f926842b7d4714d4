"""``vqbench doctor --profile slurm`` on clusters that no machine here has: Slurm's commands are scripts on PATH."""

from __future__ import annotations

import getpass
import os
from pathlib import Path

import pytest
import yaml
from helpers import copy_clone, vqbench

TABLE = "results/tiny/table6b.csv"
SINFO = "echo 'cpu*|infinite|(null)'; echo 'short|5:00|gpu:a100:4'"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone whose scores take 2 minutes and images 4, on a GPU; all else takes 1."""
    clone = copy_clone(tmp_path_factory.mktemp("doctor") / "clone")
    path = clone / "workflow" / "scales" / "tiny.yaml"
    scale = yaml.safe_load(path.read_text())
    minutes = {"tokenizer-scores": 2, "reconstruction": 4}
    scale["resources"] = {
        kind: {"gpu": int(kind in minutes), "mem_mb": 1000, "runtime": minutes.get(kind, 1)}
        for kind in scale["resources"]
    }
    path.write_text(yaml.safe_dump(scale, sort_keys=False))
    return clone


def examined(place: Path, mine: dict[str, object], sacctmgr: str = "exit 1") -> tuple[int, str]:
    """Exit status and report of doctor, with that cluster.yaml and that sacctmgr."""
    fakes = place / "fakes"
    fakes.mkdir(exist_ok=True)
    for name, script in (("sinfo", SINFO), ("sbatch", "exit 0"), ("sacctmgr", sacctmgr)):
        (fakes / name).write_text(f"#!/bin/sh\n{script}\n")
        (fakes / name).chmod(0o755)
    (place / "cluster.yaml").write_text(yaml.safe_dump({"gpu_partition": "short", **mine}))
    done = vqbench(place, "doctor", TABLE, "--profile", "slurm", PATH=f"{fakes}:{os.environ['PATH']}")
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout


def test_a_group_asks_for_the_sum_of_its_minutes(place: Path) -> None:
    """Each step alone fits the partition; Slurm would keep the two as one job pending for ever."""
    status, said = examined(place, {})
    assert status == 1 and "partition short ends jobs after 5 minutes, one asks for 6: set longest to 5" in said, said
    status, said = examined(place, {"longest": 5})
    assert status == 0 and "LACK" not in said and "4 minutes" in said, said


def test_what_cannot_be_cut_has_to_fit_longest(place: Path) -> None:
    status, said = examined(place, {"longest": 3})
    assert status == 1 and said.count("LACK") == 1, said
    assert "longest: reconstruction takes 4 minutes and cannot be cut into slices, longest is 3" in said
    assert "set longest to 4 in cluster.yaml" in said and "workflow/scales/tiny.yaml" in said


@pytest.mark.parametrize(
    ("account", "sacctmgr", "finding"),
    [
        ("p124", "echo p123; echo other", "LACK  account: {user} has no account 'p124'; did you mean 'p123'?: set account"),
        ("p123", "echo p123; echo other", "ok    account p123: {user} has other, p123"),
        ("", "echo p123", "ok    account by default: {user} has p123"),
        ("p123", "echo 'Connection refused' >&2; exit 1", "ok    account p123: not checked, this cluster keeps no accounts "
         "(Connection refused)"),
    ],
)  # fmt: skip
def test_the_account_is_one_of_the_users(place: Path, account: str, sacctmgr: str, finding: str) -> None:
    status, said = examined(
        place, {"account": account, "longest": 5}, f'[ "$5" = user={getpass.getuser()} ] || exit 2\n{sacctmgr}'
    )
    assert finding.format(user=getpass.getuser()) in said, said
    assert status == finding.startswith("LACK"), said
