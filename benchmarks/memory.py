"""Resident memory of this process, as Linux counts it."""

from __future__ import annotations

from pathlib import Path


def resident_mb() -> float:
    """Now, MiB."""
    return _status("VmRSS")


def peak_mb() -> float:
    """The largest since the process began, or since :func:`forget_peak`, MiB."""
    return _status("VmHWM")


def forget_peak() -> None:
    """Begin to look for the peak anew: what imports took for a moment does not hide what comes after."""
    Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) / 1024
