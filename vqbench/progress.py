"""Progress bars that read well in a log file as well as on a terminal: one line every few seconds, with rate and ETA."""

from __future__ import annotations

import sys
import time
from typing import Any

from vqbench.distributed import rank


class Progress:
    """Counts `unit`s up to `total`; prints a bar at most every `interval` seconds (default 5) and once at the end.

    Of several processes the first prints, and counts its own share.
    tqdm makes the bar's text; in a log file each update is a line of its own instead of a carriage return.
    """

    def __init__(self, total: int, title: str, unit: str, start: int = 0, interval: float = 5.0) -> None:
        self.total, self.title, self.unit, self.done = total, title, unit, start
        self._first, self._began, self._shown, self._interval = start, time.monotonic(), 0.0, interval

    def update(self, count: int = 1, **values: float) -> None:
        """Advance by `count`; `values` (losses, rates) are shown behind the bar."""
        self.done += count
        now = time.monotonic()
        if rank() == 0 and (now - self._shown >= self._interval or self.done >= self.total):
            self._shown = now
            self._print(now - self._began, values)

    def _print(self, elapsed: float, values: dict[str, float]) -> None:
        from tqdm import tqdm

        made = self.done - self._first
        bar: Any = tqdm.format_meter(
            self.done, self.total, elapsed, ncols=100, prefix=self.title, unit=self.unit,
            rate=made / elapsed if elapsed > 0 and made else None, initial=self._first,
            postfix=" ".join(f"{k}={v:.4g}" for k, v in values.items()),
        )  # fmt: skip
        print(bar, file=sys.stderr, flush=True)
