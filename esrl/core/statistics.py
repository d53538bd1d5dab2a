"""Statistics over the seeds of a comparison: the interquartile mean, and its bootstrap interval."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

_EVERY = 6  # values up to which every resample is taken
_RESAMPLES = 10_000


def interquartile_mean(values: Any, axis: int = -1) -> Any:
    """Mean without the lowest and the highest quarter, whole values each: of 5 seeds the middle 3, of 3 all.

    Args:
      values: numbers. axis: over which they are averaged.

    Example:
      >>> float(interquartile_mean([0.0, 1.0, 2.0, 3.0, 100.0]))
      2.0
    """
    ordered = np.sort(np.asarray(values, float), axis=axis)
    number = ordered.shape[axis]
    cut = number // 4
    return np.take(ordered, np.arange(cut, number - cut), axis=axis).mean(axis=axis)


def interval(values: Any) -> tuple[Any, Any]:
    """95 % percentile bootstrap interval of the interquartile mean over the last axis; NaN for fewer than two values.

    Of every resample for up to six values, of 10,000 random ones for more. The same values give the same interval.

    Args:
      values: [..., n].

    Returns:
      Its two ends, each [...]; numbers for values [n].

    Example:
      >>> interval([1.0, 1.0, 1.0])
      (1.0, 1.0)
    """
    values = np.sort(np.asarray(values, float), axis=-1)
    number = values.shape[-1]
    if number < 2:
        nothing = np.full(values.shape[:-1], np.nan)
        return (nothing, nothing) if nothing.shape else (math.nan, math.nan)
    every = np.indices((number,) * number).reshape(number, -1).T if number <= _EVERY else None
    chosen = np.random.default_rng(0).integers(number, size=(_RESAMPLES, number)) if every is None else every
    parts = values.reshape(-1, number)
    # One set of values at a time: all resamples of all of them would take gigabytes.
    ends = np.array([np.quantile(interquartile_mean(part[chosen]), (0.025, 0.975)) for part in parts])
    low, high = ends.reshape(*values.shape[:-1], 2)[..., 0], ends.reshape(*values.shape[:-1], 2)[..., 1]
    return (low, high) if low.shape else (float(low), float(high))
