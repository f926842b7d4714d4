"""Three hundred broken configurations: each resolves, or is refused in words; none ends in a traceback or writes a file."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import snakemake, vqbench
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vqbench.clone import WORKFLOW, read_yaml
from vqbench.errors import UserError
from vqbench.papers import Bench, score_keys

VALUES = [None, 0, -1, True, "x", "", [], {}, [1], {"a": 1}, float("inf"), float("nan"), 10**30, 1.5, "../../x", "$(touch y)",
          "a b; touch z", "--scale", ["x", ["y"]], {"x": {"y": []}}]  # fmt: skip
NAMES = ["../../x", "a b;c", "$(touch z)", "--x", "", "all", "'\"", 7, "x"]
FILES = sorted(
    p.relative_to(WORKFLOW)
    for p in WORKFLOW.rglob("*.yaml")
    if p.parent.name in ("papers", "scales", "recipes") or p.name in ("datasets.yaml", "pretrained.yaml")
)


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all nodes below the top."""
    for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
        yield (*path, key)
        yield from places(node[key], (*path, key))


@st.composite
def mutations(draw: st.DrawFn) -> tuple[Path, dict[str, Any]]:
    """A configuration file with one or two nodes replaced, removed or renamed."""
    name = draw(st.sampled_from(FILES))
    data = copy.deepcopy(read_yaml(WORKFLOW / name))
    for _ in range(draw(st.integers(1, 2))):
        *way, last = draw(st.sampled_from(list(places(data))))
        node: Any = data
        for key in way:
            node = node[key]
        kind = draw(st.sampled_from(["set", "set", "remove", "rename"]))
        if kind == "set":
            node[last] = copy.deepcopy(draw(st.sampled_from(VALUES)))  # a second mutation may reach into the first
        elif kind == "remove" or not isinstance(node, dict):
            del node[last]
        else:
            node[draw(st.sampled_from(NAMES))] = node.pop(last)
        if not data:
            break
    return name, data


@pytest.fixture(scope="module")
def workflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the workflow's files."""
    return Path(shutil.copytree(WORKFLOW, tmp_path_factory.mktemp("mutated") / "workflow"))


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
@given(mutation=mutations())
@pytest.mark.timeout(550)
def test_a_mutated_configuration_resolves_or_is_refused(workflow: Path, mutation: tuple[Path, dict[str, Any]]) -> None:
    name, data = mutation
    (workflow / name).write_text(yaml.safe_dump(data, sort_keys=False))
    try:
        resolve_all(name.stem if name.parent.name == "scales" else "demo", workflow)
    except UserError as error:
        assert str(error).strip()
    finally:
        shutil.copy(WORKFLOW / name, workflow / name)


def resolve_all(scale: str, workflow: Path) -> None:
    """Everything that reading the Snakefile and planning a DAG asks for; every path stays below results/."""
    found = Bench(scale, workflow)
    for table in found.tables.values():
        found.table_keys(table)
        found.table_digest(table)
        assert ".." not in found.table_path(table)
    for name, figure in found.figures.items():
        found.figure_digest(name)
        assert ".." not in found.figure_path(figure)
    for key in found.with_upstream(score_keys(found)):
        found.digest(key)
        path = found.manifest(key)
        assert path.startswith("results/") and ".." not in path and not set(path) & set(" ;$'\"()")


@pytest.mark.parametrize("name", ["a b", "x;touch pwned", "$(touch pwned)", "'q'", '"q"', "..", "--scale"])
def test_a_name_with_a_shell_s_characters_is_refused_before_any_job(clone: Path, name: str) -> None:
    path = clone / "workflow" / "papers" / "cq.yaml"
    data = read_yaml(path)
    data["tokenizers"][name] = {"family": "vq", "dataset": "imagenet256", "recipe": "vqgan", "num_codes": 1024}
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    for done in (vqbench(clone, "list", "--scale", "tiny"), snakemake(clone, "-n", "results/tiny/table6b.csv")):
        assert done.returncode != 0 and "is not a name" in done.stderr and "Traceback" not in done.stderr
    assert not list(clone.rglob("pwned"))


def test_a_scale_whose_name_is_a_command_is_none(clone: Path) -> None:
    scale = clone / "workflow" / "scales" / "tiny.yaml"
    shutil.copy(scale, scale.with_name("tiny;touch pwned;x.yaml"))
    done = snakemake(clone, "-n", "results/tiny;touch pwned;x/table6b.csv")
    assert done.returncode != 0 and "Traceback" not in done.stderr
    done = vqbench(clone, "list", "--scale", "tiny;touch pwned;x")
    assert done.returncode == 2 and "unknown scale" in done.stderr
    assert not list(clone.rglob("pwned"))


def test_a_key_that_comes_twice_is_refused(clone: Path) -> None:
    path = clone / "workflow" / "datasets.yaml"
    path.write_text(path.read_text() + path.read_text())
    done = vqbench(clone, "list", "--scale", "tiny")
    assert done.returncode == 2 and "is there twice" in done.stderr and "Traceback" not in done.stderr
