"""The fastest of several ways to compute the same: measured once for each kind of arrays in a process."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import numpy as np

from esrl.core.types import Array

Name = TypeVar("Name", bound=Hashable)

_ROUNDS, _CALLS = 5, 10
_known: dict[Hashable, Any] = {}


def fastest(ways: Mapping[Name, Callable[..., Array]], like: Sequence[Any], kind: Hashable) -> Name:
    """The name of the fastest way on the default device; the first one is taken unless another is clearly faster.

    What was found for a kind and these shapes is remembered, so that a process measures each once.

    Args:
      ways: functions of the same arrays. One that fails, as for too little memory on the chip, is out of the question.
      like: arrays (or tracers, or shapes) as those that they will be given. kind: what else tells such choices apart.

    Example:
      >>> from esrl.perturbation.fastest import fastest
      >>> fastest({"only": lambda x: x + 1}, [jnp.ones(3)], "increment")
      'only'
    """
    shapes = [(tuple(x.shape), np.dtype(x.dtype)) for x in like]
    key = (kind, tuple(ways), tuple(shapes), jax.devices()[0].device_kind)
    if key not in _known:
        # A thread of its own: this is asked for while a program is traced, and there every operation would be traced.
        with ThreadPoolExecutor(1) as alone:
            _known[key] = alone.submit(_measure, ways, shapes).result()
    return _known[key]


def _measure(ways: Mapping[Name, Callable[..., Array]], shapes: Sequence[tuple[tuple[int, ...], Any]]) -> Name:
    random = np.random.default_rng(0)
    given = [jax.device_put(random.normal(size=shape).astype(dtype)) for shape, dtype in shapes]
    compiled: dict[Name, Callable[..., Array]] = {}
    failed: Exception | None = None
    for name, way in ways.items():
        try:
            run: Callable[..., Array] = jax.jit(way)
            jax.block_until_ready(run(*given))
        except Exception as error:  # another way may fit where this does not
            failed = error
            continue
        compiled[name] = run
    if not compiled and failed is not None:
        raise failed
    best = dict.fromkeys(compiled, np.inf)
    for _ in range(_ROUNDS):  # in turn, so that what else runs on the machine meets all of them
        for name, run in compiled.items():
            best[name] = min(best[name], seconds(run, given))
    first, *others = compiled
    winner = min(others, key=lambda name: best[name], default=first)
    return winner if best[winner] < 0.97 * best[first] else first


def seconds(run: Callable[..., Array], given: Sequence[Array]) -> float:
    """Seconds of a call, from several in a row."""
    begun = time.perf_counter()
    for _ in range(_CALLS):
        out = run(*given)
    jax.block_until_ready(out)
    return (time.perf_counter() - begun) / _CALLS
