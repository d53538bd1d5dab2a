"""Runs third-party JAX code under the promotion rules that it was written for."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import jax

P = ParamSpec("P")
T = TypeVar("T")

_ITS_OWN = (
    "scatter inputs have incompatible types",
    "Explicitly requested dtype",
)  # a package's business, not a user's


def lenient(fn: Callable[P, T]) -> Callable[P, T]:
    """`fn` with standard dtype promotion and rank promotion, whatever the caller's flags are, and without the warnings
    that JAX has for those who mix types."""

    @wraps(fn)
    def relaxed(*args: P.args, **kwargs: P.kwargs) -> T:
        with (
            jax.numpy_dtype_promotion("standard"),
            jax.numpy_rank_promotion("allow"),
            warnings.catch_warnings(),
        ):
            for words in _ITS_OWN:
                warnings.filterwarnings("ignore", message=words)
            return fn(*args, **kwargs)

    return relaxed
