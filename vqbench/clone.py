"""Where things lie in a clone, and YAML read strictly. No torch, no pandas: the Snakefile reads this in every job."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from vqbench.closure import PACKAGE
from vqbench.errors import SpecError

CLONE = PACKAGE.parent
WORKFLOW = CLONE / "workflow"


def scales() -> list[str]:
    """Names of all scales. A file whose name cannot be a folder's is none: names reach paths and shell commands."""
    return sorted(p.stem for p in (WORKFLOW / "scales").glob("*.yaml") if re.fullmatch(r"[A-Za-z0-9][\w.-]*", p.stem))


def scale_root(scale: str) -> str:
    """``results`` for paper scale, ``results/<scale>`` for every other."""
    return "results" if scale == "paper" else f"results/{scale}"


def scale_of(path: str | Path) -> str:
    """The scale that a path under results/ belongs to: ``results/demo/table2.csv`` is demo."""
    parts = Path(path).parts
    return parts[1] if len(parts) > 2 and parts[0] == "results" and parts[1] in scales() else "paper"


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping.

    Raises:
        SpecError: missing file, broken YAML, no mapping at its top, or a key that is there twice.
    """
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError:
        raise SpecError(f"{path.name}: there is no such file in {path.parent.name}/") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise SpecError(f"{path.name}: not valid YAML: {error}") from None
    if not isinstance(data, dict):
        raise SpecError(f"{path.name}: expected a mapping at the top, found {type(data).__name__}")
    return data


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Safe YAML in which only true and false are booleans (YAML 1.1 would read the key ``on`` as True), and in which no
    key comes twice (the last one would win without a word)."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """A mapping of different keys."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        twice = [key for i, key in enumerate(keys) if key in keys[:i]]
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice[0]!r} is there twice", node.start_mark)
        return super().construct_mapping(node, deep=deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, rule) for tag, rule in rules if tag != "tag:yaml.org,2002:bool"]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(?:true|false)$"), list("tf"))
