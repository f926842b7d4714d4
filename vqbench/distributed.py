"""One step in several processes: torchrun starts them, torch.distributed joins them, and they only regroup what one does.

Each process takes a contiguous share of the micro-batches, blocks or images; sums are added over all of them, what is not a
sum is gathered in the order of the processes. With one process every function gives back what it was given, and no
process group is made. Process 0 alone writes what a step publishes.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from vqbench.errors import PeerLost, UserError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
PR_SET_PDEATHSIG = 1  # linux/prctl.h
BUCKET = 1 << 24  # numbers that are added over the processes at once: 64 MiB of float32


def launched() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def world() -> int:
    """How many processes do this step together."""
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


def rank() -> int:
    """Which of them this is; 0 writes."""
    return int(os.environ["RANK"]) if world() > 1 else 0


def join() -> None:
    """Meet the other processes: over NCCL with a GPU each, else over gloo."""
    if world() == 1:
        return
    import torch
    from torch import distributed

    if distributed.is_initialized():
        return
    _end_with_parent()
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if gpu else "gloo")


def _end_with_parent() -> None:
    """torchrun starts processes in sessions of their own: if it is killed, Linux tells them to save and stop."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def leave() -> None:
    """Part from the others; whoever leaves in error lets torchrun end them."""
    if world() == 1:
        return
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


def share(items: Sequence[T], of: int | None = None, among: int | None = None) -> Sequence[T]:
    """The contiguous part of `items` that is this process' (or process `of` `among` so many), even to one item."""
    number, count = rank() if of is None else of, world() if among is None else among
    return items[len(items) * number // count : len(items) * (number + 1) // count]


def add_up(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over all processes; all give the same shapes in the same order."""
    if world() == 1:
        return
    import torch
    from torch import distributed

    for bucket in _buckets(tensors):
        flat = torch.cat([t.detach().reshape(-1) for t in bucket])
        with _meeting():
            distributed.all_reduce(flat)
        for tensor, total in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
            tensor.detach().copy_(total.view_as(tensor))


def _buckets(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Neighbours of one type, together at most BUCKET numbers unless one alone is larger."""
    found: list[list[Tensor]] = []
    room = 0
    for tensor in tensors:
        if not found or tensor.dtype != found[-1][0].dtype or tensor.numel() > room:
            found.append([])
            room = BUCKET
        found[-1].append(tensor)
        room -= tensor.numel()
    return found


def gathered(value: T) -> list[T]:
    """What every process holds, in their order."""
    if world() == 1:
        return [value]
    from torch import distributed

    found: list[T | None] = [None] * world()
    with _meeting():
        distributed.all_gather_object(found, value)
    return found  # type: ignore[return-value]


def sent_to_first(value: T) -> Iterator[T]:
    """In process 0, what each of the others holds, in their order and one after the other; the others give, and get nothing.

    Where :func:`gathered` has every process hold all, here the first one holds its own and one other's at a time. All
    processes go through the whole of it, and none leaves before the first one has everything.
    """
    if world() == 1:
        return
    from torch import distributed

    if rank():
        with _meeting():
            distributed.send_object_list([value], dst=0)
    else:
        for number in range(1, world()):
            found: list[T] = [value]  # its place is taken by the other's
            with _meeting():
                distributed.recv_object_list(found, src=number)
            yield found.pop()  # not kept here while the next one comes
    gathered(None)


@contextmanager
def erring_together() -> Iterator[None]:
    """A user's error in one process is raised in all: none waits for one that left. All processes pass through here."""
    mine: UserError | None = None
    try:
        yield
    except UserError as error:
        mine = error
    for theirs in gathered(mine):
        if theirs is not None:
            raise theirs


def from_first(tensors: Sequence[Tensor]) -> None:
    """Make each tensor process 0's."""
    if world() > 1:
        from torch import distributed

        with _meeting():
            for tensor in tensors:
                distributed.broadcast(tensor.detach(), src=0)


def agreed(value: T) -> T:
    """What process 0 holds."""
    if world() == 1:
        return value
    from torch import distributed

    found = [value]
    with _meeting():
        distributed.broadcast_object_list(found, src=0)
    return found[0]


@contextmanager
def _meeting() -> Iterator[None]:
    """What torch raises where another process is gone becomes a line; that one has said what went wrong."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise PeerLost(f"process {rank()} stops, another one of this step is gone ({reason})") from None
