"""Errors that reach a user: what was wrong, where, and the mend. The command line prints them without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A mistake that its reader can mend. The message says what, where and how."""


class SpecError(UserError):
    """A YAML entry that cannot be run: unknown key, unknown family, impossible pair, value out of range."""


class Impossible(SpecError):
    """A tokenizer and a generator that cannot work together, whatever their options; `reason` says why."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.reason = reason


class DataError(UserError):
    """A data set that is missing, empty, or holds an unreadable image."""


class MissingWeights(UserError):
    """Pretrained weights that are not on this machine, or are not what their name says."""


class ArtifactError(UserError):
    """A file that does not match the digest in its manifest, or could not be written whole."""


class StaleSpec(UserError):
    """A job whose own spec or code changed since it was submitted, or a run finished under another spec."""


class Diverged(UserError):
    """A loss that became NaN or infinite; names the term and the last good checkpoint."""


class WorkerLost(UserError):
    """A process that reads images for a step was killed."""


class PeerLost(UserError):
    """Another process of the same step ended, and has said why."""


class Interrupted(UserError):
    """A signal asked the step to stop; its state is saved. No failure: the same command goes on from there."""


class OutOfMemory(UserError):
    """The machine or the GPU had too little memory for a step."""


def nearest(name: str, known: Iterable[str]) -> str:
    """``did you mean 'x'?`` for the closest known name, else the list of all of them."""
    options = sorted(str(k) for k in known)
    close = difflib.get_close_matches(str(name), options, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(options) or 'none'}"


@contextmanager
def naming(run: str) -> Iterator[None]:
    """Whoever refuses a spec deep in a step does not know its run: the message starts with it."""
    try:
        yield
    except SpecError as error:
        if run in str(error):
            raise
        raise SpecError(f"{run}: {error}") from error


def is_out_of_memory(error: Exception) -> bool:
    """Python's, CUDA's, or torch's on the CPU, which has no class of its own."""
    named = isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__
    return named or "allocate memory" in str(error)
