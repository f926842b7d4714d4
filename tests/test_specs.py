"""Mistakes in YAML: each is named with its place and its mend, before anything runs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import ROOT

from vqbench.errors import SpecError
from vqbench.papers import Bench

Edit = Callable[[dict[str, Any]], None]


@pytest.fixture
def workflow(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "workflow", tmp_path / "workflow")
    return tmp_path / "workflow"


def edited(workflow: Path, edit: Edit, scale: str = "demo", file: str = "papers/cq.yaml") -> Bench:
    path = workflow / file
    data = yaml.safe_load(path.read_text())
    edit(data)
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return Bench(scale, workflow)


def tokenizer(**entry: Any) -> Edit:
    return lambda data: data["tokenizers"].update(mine={"family": "channel", "dataset": "imagenet256", **entry})


def generator(**entry: Any) -> Edit:
    return lambda data: data["generators"].update(mine={"family": "maskgit", "tokenizer": "cq-k1024", **entry})


def samples(**entry: Any) -> Edit:
    return lambda data: data["samples"].update(mine={"generator": "cq-b-k16384", **entry})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (tokenizer(num_code=4), r"tokenizer 'mine': unknown key 'num_code'; did you mean 'num_codes'"),
        (tokenizer(family="chanel"), r"unknown family 'chanel' in tokenizers/; did you mean 'channel'"),
        (tokenizer(num_codes=0), r"'num_codes' is 0: input should be greater than 0"),
        (tokenizer(num_codes=2.5), r"'num_codes' is 2.5: expected int"),
        (tokenizer(num_codes="many"), r"'num_codes' is 'many': expected int"),
        (tokenizer(dataset="imagenet"), r"unknown data set 'imagenet'; did you mean 'imagenet\d+'"),
        (tokenizer(recipe="chanel"), r"unknown recipe 'chanel/paper'; did you mean 'channel/paper'"),
        (tokenizer(downsample=5), r"downsample 5 does not divide the resolution 32"),
        (tokenizer(training={"batch_sise": 4}), r"unknown key 'training.batch_sise'; did you mean 'batch_size'"),
        (tokenizer(training=3), r"'training' is 3: expected a mapping"),
        (
            tokenizer(training={"weights": {"adversarail": 1.0}}),
            r"unknown term 'adversarail'; did you mean 'adversarial'",
        ),
        (tokenizer(dataset="coco-val2017"), r"data set 'photos-ood' has no split 'train'"),
        (
            lambda d: d["tokenizers"].update(mine="channel"),
            r"'tokenizers.mine' is 'channel': input should be a valid dict",
        ),
        (
            tokenizer(training={"optimizer": {"beta": 1}}),
            r"unknown key 'training.optimizer.beta'; did you mean 'betas'",
        ),
        (generator(tokenizer="cq-k1025"), r"unknown tokenizer 'cq-k1025'; did you mean 'cq-k1024'"),
        (generator(depth=3), r"generator 'mine': unknown key 'depth'"),
        (samples(steps=0), r"samples 'mine': 'steps' is 0: input should be greater than 0"),
        (samples(stepps=3), r"unknown key 'stepps'; did you mean 'steps'"),
        (samples(generator="nobody"), r"unknown generator 'nobody'"),
        (lambda d: d.update(tabels={}), r"cq.yaml: unknown key 'tabels'; did you mean 'tables'"),
        (
            lambda d: d["figures"]["fig4"].update(run={}),
            r"cq.yaml: figure 'fig4': unknown key 'run'; did you mean 'runs'",
        ),
        (
            lambda d: d["tables"]["6b"]["columns"].update({"Usage": {"metrik": "usage"}}),
            r"table '6b', column 'Usage': unknown key 'metrik'; did you mean 'metric'",
        ),
    ],
)
def test_a_mistake_is_named_with_its_mend(workflow: Path, edit: Edit, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        edited(workflow, edit)


@pytest.mark.parametrize("count", [0, -3])
def test_steps_of_zero(workflow: Path, count: int) -> None:
    with pytest.raises(SpecError, match=rf"'steps' is {count}: input should be greater than 0"):
        edited(workflow, tokenizer(training={"steps": count}), scale="paper")


def test_null_takes_a_part_of_a_recipe_away(workflow: Path) -> None:
    edit = tokenizer(training={"discriminator": None, "weights": {"adversarial": None}})
    training = edited(workflow, edit).tokenizers["mine"].training
    assert training.discriminator is None and "adversarial" not in training.weights


def test_an_epoch_that_is_no_number(workflow: Path) -> None:
    with pytest.raises(SpecError, match="'warmup_epochs' is 'x': input should be a number"):
        edited(workflow, tokenizer(training={"schedule": {"warmup_epochs": "x"}}), scale="paper")


def test_an_entry_s_way_of_saying_it_replaces_the_recipe_s(workflow: Path) -> None:
    """VQGAN's recipe prints a start step; an entry may give an epoch instead."""
    edit = tokenizer(family="vq", recipe="vqgan", training={"discriminator": {"start_epoch": 1}, "steps": 10**6})
    training = edited(workflow, edit, scale="paper").tokenizers["mine"].training
    assert training.steps == 10**6 and training.discriminator
    assert training.discriminator.start_step == round(1_281_167 / training.batch_size)


def test_a_table_row_that_names_no_run(workflow: Path) -> None:
    def edit(data: dict[str, Any]) -> None:
        data["tables"]["6b"]["rows"]["Ours/codebook=1024"] = {"tokenizer": "cq-k1O24"}

    with pytest.raises(SpecError, match=r"table '6b'.*'cq-k1O24'; did you mean 'cq-k1024'"):
        _ = edited(workflow, edit).tables


def test_a_paper_scale_cell_wants_50000_images(workflow: Path) -> None:
    with pytest.raises(SpecError, match=r"samples 'mine': count is 10000: a paper-scale generation cell needs 50,000"):
        edited(workflow, samples(count=10_000), scale="paper")


def test_guidance_needs_a_generator_that_has_seen_no_class(workflow: Path) -> None:
    def edit(data: dict[str, Any]) -> None:
        generator(training={"class_drop": 0.0})(data)
        data["samples"]["guided"] = {"generator": "mine", **wanted}

    wanted: dict[str, Any] = {}
    with pytest.raises(
        SpecError, match=r"samples 'guided': guidance is 1.5, and 'mine' was never trained without a class"
    ):
        edited(workflow, edit)  # the scale's guidance is what would run
    with pytest.raises(SpecError, match=r"guidance is 3.0, and 'mine' .*class_drop 0.*set guidance: 1.0, or train it"):
        edited(workflow, edit, scale="paper")
    wanted["guidance"] = 1.0
    assert edited(workflow, edit, scale="paper").samples["guided"].sampler["guidance"] == 1.0


def test_guidance_needs_more_than_one_class(workflow: Path) -> None:
    def edit(data: dict[str, Any]) -> None:
        data["samples"]["ldm-ffhq-fc-k16384-s"] = {"generator": "ldm-ffhq-fc-k16384", "guidance": 1.4}

    message = r"guidance is 1.4, and 'ldm-ffhq-fc-k16384' has learned one class alone \(data set 'ffhq256'\)"
    with pytest.raises(SpecError, match=message):
        edited(workflow, edit, scale="paper", file="papers/vqgan_lc.yaml")


def test_an_impossible_pair_is_refused_with_its_reason(
    workflow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A family of two slots, found by its file alone; maskgit declares that it takes one."""
    from vqbench import rooms

    package = tmp_path / "package"
    (package / "tokenizers").mkdir(parents=True)
    shutil.copytree(ROOT / "generators", package / "generators")
    for name in ("vq", "channel"):
        shutil.copy(ROOT / "tokenizers" / f"{name}.py", package / "tokenizers")
    (package / "tokenizers" / "pairs.py").write_text('NUM_SLOTS = 2\nOPTIONS = {"num_codes": 8, "code_dim": 4}\n')
    monkeypatch.setattr(rooms, "PACKAGE", package)

    def edit(data: dict[str, Any]) -> None:
        data["tokenizers"]["two"] = {"family": "pairs", "dataset": "imagenet256", "recipe": "vqgan"}
        generator(tokenizer="two")(data)

    with pytest.raises(
        SpecError, match=r"family 'maskgit' cannot take tokenizer 'two': its num_slots is 2, accepted: \[1\]; \w+"
    ):
        edited(workflow, edit)


def test_ids_are_unique_across_papers(workflow: Path) -> None:
    (workflow / "papers" / "other.yaml").write_text("tokenizers: {cq-k1024: {family: channel, dataset: imagenet256}}\n")
    with pytest.raises(SpecError, match=r"the id is taken by cq.yaml"):
        Bench("demo", workflow)


def test_broken_yaml_and_unknown_scale(workflow: Path) -> None:
    with pytest.raises(SpecError, match="unknown scale 'demmo'; did you mean 'demo'"):
        Bench("demmo", workflow)
    (workflow / "papers" / "cq.yaml").write_text("a: [1\n")
    with pytest.raises(SpecError, match=r"cq.yaml: not valid YAML"):
        Bench("demo", workflow)


def test_recipes_in_a_circle(workflow: Path) -> None:
    path = workflow / "recipes" / "channel.yaml"
    path.write_text(path.read_text() + "a: {base: channel/b}\nb: {base: channel/a}\n")
    with pytest.raises(SpecError, match="includes itself"):
        edited(workflow, tokenizer(recipe="channel/a"))
