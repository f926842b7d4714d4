"""What ``vqbench evaluate``, ``bridge`` and ``statistics`` are asked for: parsed and checked before anything is read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from vqbench.errors import SpecError, nearest
from vqbench.eval.extras import NEEDS
from vqbench.eval.judges import Judges, with_judge
from vqbench.eval.pair_metrics import PAIRED
from vqbench.eval.protocols import Protocol, load_protocol
from vqbench.eval.scoring import device_of, scoring_device
from vqbench.eval.set_metrics import BUILD
from vqbench.eval.sources import Source, open_source

Engine = Literal["vqbench", "reference"]
Images = str | Path | np.ndarray | torch.Tensor | torch.utils.data.Dataset[Any] | Source


@dataclass
class Request:
    """What is asked for, checked: nothing is read yet."""

    protocol: Protocol
    names: list[str]
    explicit: bool  # named by the user: what cannot be computed is then an error, not a warning
    pairs: bool
    device: torch.device
    judges: Judges
    value_range: tuple[float, float] | None = None
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def open(self, what: Images, like: Source | None = None, crop: tuple[int, int] | None = None) -> Source:
        """A source under the protocol's image rules: cropped to `crop` or to the size of `like`, or as the files are."""
        uncropped = self.protocol.images.crop == "none"
        if like is not None and not uncropped:
            crop = like.size
        any_size = uncropped and not self.pairs  # the network resizes each; pairs must fit each other
        enlarge = like is None or not self.pairs  # an original that is enlarged is none
        return open_source(what, self.protocol.images, crop, self.value_range, any_size, enlarge)


def make_request(
    protocol: str | Protocol,
    metrics: Sequence[str] | None,
    pairs: bool,
    judge: str | None,
    weights: Mapping[str, str | Path | nn.Module] | None,
    device: str | torch.device | None,
    referenced: bool,
    value_range: tuple[float, float] | None,
) -> Request:
    """Check what is asked for; arguments as :func:`vqbench.eval.evaluate.evaluate`'s.

    Args:
        referenced: whether there is a reference.

    Raises:
        SpecError: an unknown protocol, judge, device or metric, or one of pairs without pairs.
    """
    found = load_protocol(protocol) if isinstance(protocol, str) else protocol
    found = with_judge(found, judge) if judge else found
    where = scoring_device()  # and TF32 off, whichever device is taken
    where = device_of(device) if device else where
    known = [*BUILD, *PAIRED, *NEEDS]
    for name in metrics or ():
        if name not in known:
            raise SpecError(f"unknown metric '{name}'; {nearest(name, known)}")
        if name in PAIRED and not pairs:
            raise SpecError(f"'{name}' compares pairs; say --pairs and give the originals as --reference")
        if pairs and (why := needs_files(name, found)):
            raise SpecError(why)
    names = list(dict.fromkeys(metrics)) if metrics else _default_names(found, pairs, referenced)
    return Request(found, names, bool(metrics), pairs, where, Judges(found, where, weights), value_range)


def needs_files(name: str, protocol: Protocol) -> str:
    """Why a metric of sets is none of pairs under a protocol whose reference is files as they are; "" where it is one."""
    if not protocol.sets.uncropped or name not in BUILD or name == "is":
        return ""
    return (
        f"'{name}' of protocol '{protocol.name}' is against {protocol.sets.reference}, the originals of pairs are cropped; "
        f"leave --pairs out, give --metrics {name} and those files as --reference"
    )


def _default_names(protocol: Protocol, pairs: bool, referenced: bool) -> list[str]:
    if pairs:  # reconstructions: FID goes by its name there, IS and P/R are for generated sets
        return [
            *([] if needs_files("rfid", protocol) else ["rfid"]),
            *(name for name in protocol.metrics if name in PAIRED),
        ]
    if not referenced:
        return [name for name in protocol.metrics if name == "is"]
    return [name for name in protocol.metrics if name not in PAIRED]
