"""Seconds spent compiling, measured from JAX's own events."""

from __future__ import annotations

import time

import jax

_intervals: list[tuple[float, float]] = []
_listening = False


def _listen(event: str, duration_secs: float, **_: str | int) -> None:
    if event.startswith("/jax/core/compile/"):
        now = time.perf_counter()
        _intervals.append((now - duration_secs, now))


def compile_seconds() -> float:
    """Seconds that this process has spent tracing, lowering and compiling since the first call of this function.

    Nested events (a function traced inside another) are counted once: it is the length of the union of all intervals.
    """
    global _listening
    if not _listening:
        jax.monitoring.register_event_duration_secs_listener(_listen)
        _listening = True
    end = float("-inf")
    merged: list[tuple[float, float]] = []
    for start, stop in sorted(_intervals):
        if start > end:
            merged.append((start, stop))
        elif stop > end:
            merged[-1] = (merged[-1][0], stop)
        end = max(end, stop)
    _intervals[:] = merged
    return sum(stop - start for start, stop in merged)
