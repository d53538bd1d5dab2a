"""Windows of time, taken in turn by everything that is compared."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from esrl.core.compile_time import compile_seconds
from experiments.lab.store import Row

Call = Callable[[], tuple[float, ...]]


def first(call: Call) -> float:
    """Seconds of a function's first call, which is not counted."""
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def turns(
    calls: Mapping[str, Call], once: Mapping[str, float], repeats: int, least: float, limit: float
) -> dict[str, np.ndarray]:
    """Times functions in turn: a window of each, then a second of each, and so on.

    Args:
      calls: each does its work, waits for it, and returns what it has done, in numbers.
      once: about the seconds of a call of each, from `first`.
      repeats: windows of each; fewer, but at least one, where they would take longer than `limit` seconds.
      least: seconds of a window, at least; it ends with a whole call.

    Returns:
      For each function [windows, 1 + numbers]: seconds, and what was done in them.
    """
    number = {name: max(1, min(repeats, int(limit / max(once[name], least, 1e-9)))) for name in calls}
    found: dict[str, list[Any]] = {name: [] for name in calls}
    for turn in range(repeats):
        for name, call in calls.items():
            if turn < number[name]:
                found[name].append(_window(call, least))
    return {name: np.array(rows) for name, rows in found.items()}


def _window(call: Call, least: float) -> tuple[float, ...]:
    done: list[tuple[float, ...]] = []
    begun = time.perf_counter()
    while not done or time.perf_counter() - begun < least:
        done.append(call())
    return time.perf_counter() - begun, *np.sum(done, axis=0)


def compiled(function: Any, *arguments: Any) -> tuple[Any, float]:
    """A jitted function compiled for its arguments, and the seconds that tracing and compiling took."""
    begun = compile_seconds()
    program = function.lower(*arguments).compile()
    return program, compile_seconds() - begun


def spread(name: str, values: Any, digits: int = 6) -> Row:
    """Median, lowest and highest as columns, with so many significant digits."""
    found = {name: np.median(values), f"{name}_lowest": np.min(values), f"{name}_highest": np.max(values)}
    return {column: rounded(value, digits) for column, value in found.items()}


def rounded(value: Any, digits: int = 6) -> float:
    """A number with so many significant digits."""
    return float(f"{float(value):.{digits}g}")


def reason_of(error: Exception) -> str:
    """The first line of an error, cut to what fits a table."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__
