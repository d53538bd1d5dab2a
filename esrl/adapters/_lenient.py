"""Runs third-party JAX code under the promotion rules that it was written for."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import jax

P = ParamSpec("P")
T = TypeVar("T")


def lenient(fn: Callable[P, T]) -> Callable[P, T]:
    """`fn` with standard dtype promotion and rank promotion, whatever the caller's flags are."""

    @wraps(fn)
    def relaxed(*args: P.args, **kwargs: P.kwargs) -> T:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return fn(*args, **kwargs)

    return relaxed
