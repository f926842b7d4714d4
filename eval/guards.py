"""Warnings that go with the numbers: what makes them wrong or not comparable without any error. One sentence each.

``vqbench evaluate`` puts them into its JSON, the DAG's scoring steps into their ``scores.json``, from where they reach the tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from vqbench.eval.base import shape
from vqbench.eval.protocols import JUDGED, Protocol
from vqbench.eval.seen import ClassSizes, Seen
from vqbench.eval.statistics_file import Reference

ENOUGH = 10_000  # images a side, below which the bias of FID is larger than most differences that papers report
BIASED = ("fid", "rfid", "sfid")  # metrics that fall with 1/N
LOPSIDED = 2.0  # largest class to smallest
# By how much more often than in a shuffled set the judge sees one class twice in a row, where a set is sorted.
RUNS = 0.2


class Guards:
    """What a protocol and the metrics asked for make worth a warning.

    Args:
        names: the metrics asked for.
        pairs: the reference holds the originals, which may have been given larger than the tokenizer's input was.
        made: what to call the images that are scored: "generated", or "reconstructed".
    """

    def __init__(self, protocol: Protocol, names: Sequence[str], pairs: bool = False, made: str = "generated") -> None:
        self.protocol, self.names, self.pairs, self.made = protocol, frozenset(names), pairs, made

    def warnings(self, source: Seen, other: Seen | Reference | None, predicted: np.ndarray | None = None) -> list[str]:
        """What is to be said of the scored images `source` and the reference, after the passes over them.

        Args:
            predicted: (n,) int64, the class that the judge sees in each of them, where it was asked for.
        """
        few = self._few(source, other)
        found = [
            few or self._other_count(source),
            self._sorted(source, predicted),
            self._last_part(source),
            *self._of_a_side(self.made, source),
        ]
        if other is not None:
            found += self._of_a_side("reference", other)
        found += [
            self._kept(other),
            self._uncropped(source, other),
            self._cropped(other),
            _enlarged(other),
            self._same(source, other),
            _unsigned(other),
        ]
        return [warning for warning in found if warning]

    def _of_a_side(self, side: str, source: Seen | Reference) -> list[str]:
        uneven = self._lopsided(side, source.class_sizes())
        return [_copies(side, source), uneven, _formats(side, source), self._lossy(side, source)]

    def _asked(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if name in self.names]

    def _few(self, source: Seen, other: Seen | Reference | None) -> str:
        names = self._asked(BIASED)
        count = None if other is None else _total(other)
        if not names or min(len(source), count or ENOUGH) >= ENOUGH:
            return ""
        side = "a reference of unknown size" if not count else f"{count:,} reference images"
        return (
            f"{_list(names)} of {len(source):,} {self.made} images against {side}: below {ENOUGH:,} a side it is biased upwards "
            "by about 1/N, so compare it only with values of the same counts, or take fid_infinity or kid"
        )

    def _other_count(self, source: Seen) -> str:
        count, names = self.protocol.sets.count, self._asked(BIASED)
        if not names or count is None or len(source) == count:
            return ""
        return (
            f"{_list(names)} of {len(source):,} {self.made} images: published numbers of protocol '{self.protocol.name}' are of "
            f"{count:,}, and fewer images score higher"
        )

    def _sorted(self, source: Seen, predicted: np.ndarray | None) -> str:
        """The Inception Score of chunks needs every class in every chunk."""
        splits, labels = self.protocol.inception_score, source.labels
        if "is" not in self.names or splits is None or splits.shuffle or len(splits.cuts(len(source))) < 3:
            return ""
        if labels is not None:
            classes, seen = len(np.unique(labels)), "are sorted by class"
            if classes < 2 or (np.diff(labels) < 0).any():
                return ""
        elif predicted is not None and in_runs(predicted):
            classes, seen = len(np.unique(predicted)), "seem to be sorted by class, as the judge sees them"
        else:
            return ""
        return (
            f"{self.made} images {seen} ({classes:,} classes) and protocol '{self.protocol.name}' takes the Inception "
            f"Score over {len(splits.cuts(len(source))) - 1} chunks in their order: each chunk holds few classes and the "
            "score is far too low; shuffle the images"
        )

    def _last_part(self, source: Seen) -> str:
        """Of few images p(y|x) and p(y) are alike, and every part counts as much in the mean."""
        splits = self.protocol.inception_score
        if "is" not in self.names or splits is None or not (rest := splits.rest(len(source))):
            return ""
        return f"is: the last part of {rest:,} images pulls the score towards 1; give a multiple of {splits.split_size:,} images"

    def _lopsided(self, side: str, found: ClassSizes | None) -> str:
        if found is None or not self._asked(JUDGED) or found.largest <= LOPSIDED * found.smallest:
            return ""
        return (
            f"{side} classes are uneven, from {found.smallest:,} to {found.largest:,} images over {found.classes:,} classes: "
            "scores weigh large classes more, and a set of even classes differs from it by that alone"
        )

    def _lossy(self, side: str, source: Seen | Reference) -> str:
        """A reference that is cropped or enlarged is resampled, which takes most of JPEG's blocks away."""
        jpeg, resampled = source.formats["jpeg"], _by_rule(source, "cropped", "enlarged")
        if not jpeg or (side == "reference" and resampled >= jpeg):
            return ""
        return (
            f"{jpeg:,} of {_total(source):,} {side} images are JPEG files taken at their own size: compression moves FID and PSNR, "
            "save images as PNG before scoring"
        )

    def _kept(self, other: Seen | Reference | None) -> str:
        """KID draws from all images of a folder, of saved statistics from those whose features they keep."""
        if "kid" not in self.names or not isinstance(other, Reference) or not other.has_rows("pooled"):
            return ""
        kept = len(other.matrix("pooled"))
        if kept >= other.count:
            return ""
        return f"kid draws from the {kept:,} of {other.count:,} reference images whose features {other.name} keeps"

    def _uncropped(self, source: Seen, other: Seen | Reference | None) -> str:
        sizes = set() if other is None else other.image_sizes() - {source.size}
        if not sizes:
            return ""
        other_sizes = (
            shape(min(sizes)) if len(sizes) == 1 else f"of {len(sizes):,} other sizes, e.g. {shape(min(sizes))}"
        )
        return (
            f"reference images are {other_sizes} where {self.made} ones are {shape(source.size)}: they were not cropped alike "
            f"(rule '{self.protocol.images.crop}' of protocol '{self.protocol.name}'), and scores measure that, too"
        )

    def _cropped(self, other: Seen | Reference | None) -> str:
        """Pairs are of what is scored: whoever gives larger originals may not mean so."""
        if not self.pairs or not isinstance(other, Seen) or not other.cropped:
            return ""
        sizes = [shape(size) for size in sorted(other.cropped)]
        some = sizes[0] if len(sizes) == 1 else f"{len(sizes):,} sizes, e.g. {sizes[0]},"
        return (
            f"{other.cropped.total():,} originals were cropped from {some} to {shape(other.size)} "
            f"({self.protocol.images.crop}): check that the tokenizer's input was cropped so"
        )

    def _same(self, source: Seen, other: Seen | Reference | None) -> str:
        if other is None:
            return ""
        theirs = other.meta.get("source") if isinstance(other, Reference) else other.digest()
        if source.digest() != theirs:
            return ""
        return (
            f"the {len(source):,} {self.made} images are the reference's own, pixel for pixel: distances are 0 by definition; "
            "check that both are the sets that you mean"
        )


def _enlarged(other: Seen | Reference | None) -> str:
    if other is None:
        return ""
    count = _by_rule(other, "enlarged")
    if not count:
        return ""
    return (
        f"{count:,} reference images are smaller than those scored and were enlarged: scores then measure blur, too; "
        "give larger ones"
    )


def in_runs(predicted: np.ndarray) -> bool:
    """Whether neighbours share a class far more often than in a shuffled set of the same classes; (n,) int64."""
    shares = np.unique(predicted, return_counts=True)[1] / len(predicted)
    alike = float((predicted[1:] == predicted[:-1]).mean()) if len(predicted) > 1 else 0.0
    return len(shares) > 1 and alike > float(np.square(shares).sum()) + RUNS


def _total(source: Seen | Reference) -> int:
    """Images of a set; 0 where saved statistics do not say."""
    return source.count if isinstance(source, Reference) else len(source)


def _by_rule(source: Seen | Reference, *starts: str) -> int:
    """Of how many images a rule that starts so was used."""
    return sum(count for rule, count in source.converted.items() if rule.startswith(starts))


def _copies(side: str, source: Seen | Reference) -> str:
    copies = source.copies()
    if not copies:
        return ""
    mend = "; look for a seed that is used twice" if side == "generated" else ""
    return (
        f"{copies:,} of {_total(source):,} {side} images are copies of another one, pixel for pixel: they count as images, and "
        f"intervals are too narrow{mend}"
    )


def _formats(side: str, source: Seen | Reference) -> str:
    if len(source.formats) < 2:
        return ""
    parts = [f"{count:,} {name}" for name, count in sorted(source.formats.items())]
    return f"{side} images are of mixed formats ({', '.join(parts)}): lossy and lossless ones do not score alike"


def _unsigned(other: Seen | Reference | None) -> str:
    if not isinstance(other, Reference) or other.meta:
        return ""
    return (
        f"{other.name} does not say under which protocol, from which images or from how many it was made: "
        "that it fits this protocol is not checked"
    )


def _list(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
