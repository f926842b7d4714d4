"""One throw-away cluster for the whole suite, and one clone in which a table was made on it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from clones import SLURM, TABLE, clone_for
from cluster import Cluster
from helpers import snakemake


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    one = Cluster(tmp_path_factory.mktemp("slurm")).up()
    yield one
    one.down()


@pytest.fixture(scope="session")
def ran(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A clone in which Table 6b was made through sbatch, and what Snakemake said."""
    clone = clone_for(tmp_path_factory.mktemp("ran") / "clone")
    done = snakemake(clone, *SLURM, TABLE, **cluster.env)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return clone, done
