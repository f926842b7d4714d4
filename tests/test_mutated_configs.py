"""Three hundred broken configurations: each resolves, or is refused in words; none ends in a traceback or writes a file."""

from __future__ import annotations

import contextlib
import copy
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import snakemake, vqbench
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vqbench.clone import WORKFLOW, read_yaml
from vqbench.closure import PACKAGE
from vqbench.cluster import ClusterSpec
from vqbench.errors import SpecError, UserError
from vqbench.eval.protocols import read_protocol
from vqbench.papers import Bench, score_keys
from vqbench.rooms import build
from vqbench.specs import GeneratorSpec, TokenizerSpec, parse
from vqbench.tokenizers.networks.discriminators import build_discriminator

VALUES = [None, 0, -1, True, "x", "", [], {}, [1], {"a": 1}, float("inf"), float("nan"), 10**30, 1.5, "../../x", "$(touch y)",
          "a b; touch z", "--scale", ["x", ["y"]], {"x": {"y": []}}]  # fmt: skip
NAMES = ["../../x", "a b;c", "$(touch z)", "--x", "", "all", "'\"", 7, "x"]
FILES = sorted(
    p.relative_to(WORKFLOW)
    for p in WORKFLOW.rglob("*.yaml")
    if p.parent.name in ("papers", "scales", "recipes") or p.name in ("datasets.yaml", "pretrained.yaml")
)
PROTOCOL, EXAMPLE = PACKAGE / "eval/protocols/adm.yaml", WORKFLOW / "profiles/slurm/cluster.example.yaml"
Choose = Callable[[Sequence[Any]], Any]


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all nodes below the top."""
    for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
        yield (*path, key)
        yield from places(node[key], (*path, key))


def mutate(data: dict[str, Any], choose: Choose, values: Sequence[Any], below: tuple[str, ...] = ()) -> None:
    """Replace, remove or rename one node of a YAML mapping, below a path."""
    *way, last = choose([p for p in places(data) if p[: len(below)] == below and len(p) > len(below)])
    node: Any = data
    for key in way:
        node = node[key]
    kind = choose(["set", "set", "remove", "rename"])
    if kind == "set":
        node[last] = copy.deepcopy(choose(values))  # a second mutation may reach into the first
    elif kind == "remove" or not isinstance(node, dict):
        del node[last]
    else:
        node[choose(NAMES)] = node.pop(last)


@st.composite
def mutations(draw: st.DrawFn, files: Sequence[Path]) -> tuple[Path, dict[str, Any]]:
    """A configuration file with one or two nodes replaced, removed or renamed."""
    name = draw(st.sampled_from(files))
    data = copy.deepcopy(read_yaml(WORKFLOW / name))
    for _ in range(draw(st.integers(1, 2))):
        if data:
            mutate(data, lambda some: draw(st.sampled_from(some)), VALUES)
    return name, data


@pytest.fixture(scope="module")
def workflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the workflow's files."""
    return Path(shutil.copytree(WORKFLOW, tmp_path_factory.mktemp("mutated") / "workflow"))


def drawn(count: int) -> Any:
    """The same `count` examples every time."""
    return settings(
        max_examples=count, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None
    )


@drawn(300)
@given(mutation=mutations(FILES))
def test_a_mutated_configuration_resolves_or_is_refused(workflow: Path, mutation: tuple[Path, dict[str, Any]]) -> None:
    name, data = mutation
    (workflow / name).write_text(yaml.safe_dump(data, sort_keys=False))
    try:
        found = resolve_all(name.stem if name.parent.name == "scales" else "demo", workflow)
        for room, specs in (("tokenizers", found.tokenizers), ("generators", found.generators)):
            for spec in specs.values():
                with contextlib.suppress(SpecError):  # what only the network itself can refuse
                    built(room, spec.model_dump_json())
    except UserError as error:
        assert str(error).strip()
    finally:
        shutil.copy(WORKFLOW / name, workflow / name)


@lru_cache(maxsize=4096)
def built(room: str, spec: str) -> None:
    """A model on the meta device, and its discriminator: no size that was accepted may end in a traceback."""
    with torch.device("meta"):
        if room == "generators":
            build("generators", GeneratorSpec.model_validate_json(spec))
            return
        tokenizer = TokenizerSpec.model_validate_json(spec)
        model = build("tokenizers", tokenizer)
        model.decode(model.encode(torch.empty(1, 3, tokenizer.resolution, tokenizer.resolution)))
        if tokenizer.training.discriminator:
            build_discriminator(tokenizer.training.discriminator, tokenizer.resolution)


def resolve_all(scale: str, workflow: Path) -> Bench:
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
    return found


@drawn(100)
@given(mutation=mutations([PROTOCOL, EXAMPLE]))
def test_a_mutated_protocol_or_cluster_is_read_or_refused(mutation: tuple[Path, dict[str, Any]]) -> None:
    path, data = mutation
    try:
        if path == PROTOCOL:
            read_protocol(data)
            return
        mine = parse(ClusterSpec, data, "cluster.yaml")
    except UserError as error:
        assert str(error).strip()
    else:  # these reach the command that submits a job
        assert not set(f"{mine.gpu_partition}{mine.cpu_partition}{mine.account}{mine.gpu_model}") & set(" ;$'\"()/")


SIZES = [1, 2, 3, 5, 6, 7, 12, 0, -1, 0.5, 1.5, True, None, [1, 2, 2], [2], 10**30]
SIZED = ((Path("scales/tiny.yaml"), ("tokenizers",)), (Path("pretrained.yaml"), ("tiny-classifier",)))


def test_mutated_sizes_train_or_are_refused(clone: Path) -> None:
    """The step itself, through the command line: five steps of the classifier, three of a tokenizer with its adversary."""
    rng, run = random.Random(4), ("--scale", "tiny")
    assert vqbench(clone, "check-dataset", "photos-tiny", *run).returncode == 0
    trained = 0
    for trial in range(4):
        name, below = SIZED[trial % 2]
        path = clone / "workflow" / name
        before = path.read_text()
        while True:  # one that resolves, and is not what was there
            data = read_yaml(path)
            mutate(data, rng.choice, SIZES, below)
            path.write_text(yaml.safe_dump(data, sort_keys=False))
            with contextlib.suppress(UserError):
                resolve_all("tiny", clone / "workflow")
                break
            path.write_text(before)
        for words in (("pretrained", "tiny-classifier"), ("train-tokenizer", "vqgan-k1024")):
            done = vqbench(clone, *words, *run)
            assert "Traceback" not in done.stderr, f"{yaml.safe_dump(data)}\n{done.stderr}"
            assert done.returncode in (0, 1, 2), done.stderr
        trained += done.returncode == 0
        path.write_text(before)
    assert trained


@pytest.mark.parametrize("text", ["scale: [1]\n", "scale: nowhere\n", "scal: demo\n", "{}\n"])
def test_a_wrong_workflow_config_is_said_without_a_traceback(clone: Path, text: str) -> None:
    (clone / "workflow" / "config.yaml").write_text(text)
    done = snakemake(clone, "-n", "results/tiny/table6b.csv")
    said = done.stdout + done.stderr
    assert done.returncode != 0 and "scale" in said and "Traceback" not in said, said


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
