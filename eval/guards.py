"""Warnings that go with the numbers: what makes them wrong or not comparable without any error. One sentence each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from vqbench.eval.decoding_images import shape
from vqbench.eval.protocols import Protocol
from vqbench.eval.sources import Source
from vqbench.eval.statistics_file import Reference

ENOUGH = 10_000  # images a side, below which the bias of FID is larger than most differences that papers report
BIASED = ("fid", "rfid", "sfid")  # metrics that fall with 1/N
JUDGED = (*BIASED, "kid", "fid_infinity", "is", "precision", "recall", "density", "coverage")
LOPSIDED = 2.0  # largest class to smallest


class Guards:
    """Watches a pass over the generated images; 8 bytes an image are kept.

    Args:
        names: the metrics asked for.
    """

    def __init__(self, protocol: Protocol, names: Sequence[str]) -> None:
        self.protocol, self.names = protocol, frozenset(names)
        self._hashes: list[np.ndarray] = []

    def see(self, indices: np.ndarray, images: np.ndarray) -> None:
        """Add generated images (B, H, W, 3) uint8."""
        assert len(indices) == len(images), "as many indices as images"
        # Python's hash of bytes: 64 bits, keyed anew by each process, fast beside a judge of 800 images/s.
        self._hashes.append(np.array([hash(image.tobytes()) for image in images], dtype=np.int64))

    @property
    def duplicates(self) -> int:
        """How many images seen are pixel for pixel equal to an earlier one."""
        hashes = np.concatenate([*self._hashes, np.zeros(0, np.int64)])
        return len(hashes) - len(np.unique(hashes))

    def warnings(self, source: Source, other: Source | Reference | None) -> list[str]:
        """What is to be said of the generated images `source` and the reference, after the pass."""
        few = self._few(source, other)
        found = [few or self._other_count(source), self._copies(source), self._sorted(source),
                 self._lopsided(source), _formats("generated", source), self._lossy("generated", source)]  # fmt: skip
        if isinstance(other, Source):
            found += [_formats("reference", other), self._lossy("reference", other)]
        found += [self._uncropped(source, other), _same(source, other), _unsigned(other)]
        return [warning for warning in found if warning]

    def _asked(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if name in self.names]

    def _few(self, source: Source, other: Source | Reference | None) -> str:
        names = self._asked(BIASED)
        count = None if other is None else _count(other)
        if not names or min(len(source), count or ENOUGH) >= ENOUGH:
            return ""
        side = "a reference of unknown size" if not count else f"{count:,} reference images"
        return (
            f"{_list(names)} of {len(source):,} generated images against {side}: below {ENOUGH:,} a side it is biased upwards "
            "by about 1/N, so compare it only with values of the same counts, or take fid_infinity or kid"
        )

    def _other_count(self, source: Source) -> str:
        count, names = self.protocol.sets.count, self._asked(BIASED)
        if not names or count is None or len(source) == count:
            return ""
        return (
            f"{_list(names)} of {len(source):,} generated images: published numbers of protocol '{self.protocol.name}' are of "
            f"{count:,}, and fewer images score higher"
        )

    def _copies(self, source: Source) -> str:
        copies = self.duplicates
        if not copies:
            return ""
        return (
            f"{copies:,} of {len(source):,} generated images are copies of another one, pixel for pixel: they count as images, "
            "and intervals are too narrow; look for a seed that is used twice"
        )

    def _sorted(self, source: Source) -> str:
        """The Inception Score of chunks needs every class in every chunk."""
        splits, labels = self.protocol.inception_score, source.labels
        if "is" not in self.names or splits is None or splits.shuffle or splits.splits < 2 or labels is None:
            return ""
        classes = len(np.unique(labels))
        if classes < 2 or (np.diff(labels) < 0).any():
            return ""
        return (
            f"generated images are sorted by class ({classes:,} classes) and protocol '{self.protocol.name}' takes the Inception "
            f"Score over {splits.splits} chunks in their order: each chunk holds few classes and the score is far too low; "
            "shuffle the images"
        )

    def _lopsided(self, source: Source) -> str:
        if source.labels is None or not self._asked(JUDGED):
            return ""
        counts = np.bincount(source.labels - source.labels.min())
        counts = counts[counts > 0]
        if len(counts) < 2 or counts.max() <= LOPSIDED * counts.min():
            return ""
        return (
            f"generated classes are uneven, from {counts.min():,} to {counts.max():,} images over {len(counts):,} classes: "
            "scores weigh large classes more, while references such as ImageNet's are even"
        )

    def _lossy(self, side: str, source: Source) -> str:
        """A reference that is cropped is resampled, which takes most of JPEG's blocks away."""
        jpeg = source.formats["jpeg"]
        cropped = sum(count for rule, count in source.converted.items() if rule.startswith("cropped"))
        if not jpeg or (side == "reference" and cropped >= jpeg):
            return ""
        return (
            f"{jpeg:,} of {len(source):,} {side} images are JPEG files taken at their own size: compression moves FID and PSNR, "
            "save images as PNG before scoring"
        )

    def _uncropped(self, source: Source, other: Source | Reference | None) -> str:
        sizes = _sizes(other) - {source.size}
        if not sizes:
            return ""
        other_sizes = (
            shape(min(sizes)) if len(sizes) == 1 else f"of {len(sizes):,} other sizes, e.g. {shape(min(sizes))}"
        )
        return (
            f"reference images are {other_sizes} where generated ones are {shape(source.size)}: they were not cropped alike "
            f"(rule '{self.protocol.images.crop}' of protocol '{self.protocol.name}'), and scores measure that, too"
        )


def _count(other: Source | Reference) -> int | None:
    count = other.count if isinstance(other, Reference) else len(other)
    return count or None


def _sizes(other: Source | Reference | None) -> set[tuple[int, int]]:
    """(H, W) of a reference's images, of saved statistics where they say it."""
    if not isinstance(other, Reference):
        return set() if other is None else {other.size, *other.sizes}
    size = other.meta.get("size") or other.meta.get("crop")
    return {(int(size[0]), int(size[1]))} if size else set()


def _formats(side: str, source: Source) -> str:
    if len(source.formats) < 2:
        return ""
    parts = [f"{count:,} {name}" for name, count in sorted(source.formats.items())]
    return f"{side} images are of mixed formats ({', '.join(parts)}): lossy and lossless ones do not score alike"


def _same(source: Source, other: Source | Reference | None) -> str:
    if other is None:
        return ""
    theirs = other.meta.get("source") if isinstance(other, Reference) else other.digest()
    if source.digest() != theirs:
        return ""
    return (
        f"the {len(source):,} generated images are the reference's own, pixel for pixel: distances are 0 by definition; "
        "check that --generated and --reference are what you mean"
    )


def _unsigned(other: Source | Reference | None) -> str:
    if not isinstance(other, Reference) or other.meta:
        return ""
    return (
        f"{other.name} does not say under which protocol, from which images or from how many it was made: "
        "that it fits this protocol is not checked"
    )


def _list(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
