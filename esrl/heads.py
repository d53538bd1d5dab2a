"""From a network's output to an action, for every Gymnasium action space (level 2).

A head says how many numbers the network must give (`size`), and turns them into an action: the best one (`mode`) or a
random one (`sample`). Both are for one lane, pure, and traceable.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from esrl.types import Array, EsrlError, Key


class Head(NamedTuple):
    """How an output becomes an action.

    Attributes:
      size: numbers that the network must give for one observation.
      mode: `mode(output [size]) -> action`, the most likely one.
      sample: `sample(output [size], log_std, key) -> action`; `log_std` [size] is used by Box spaces only.
      gaussian: whether `log_std` is needed to sample.
    """

    size: int
    mode: Callable[[Array], Array]
    sample: Callable[[Array, Array | None, Key], Array]
    gaussian: bool = False


def head(space: spaces.Space, squash: str = "tanh") -> Head:
    """The head of an action space: Discrete, MultiDiscrete, MultiBinary or Box.

    Args:
      space: the environment's action space.
      squash: for bounded Box spaces: "tanh" maps the real line onto the bounds, "clip" cuts off at them. An unbounded
        side is left as it is.

    Raises:
      EsrlError: another space, or an unknown squash.
    """
    if isinstance(space, spaces.Discrete):
        return _discrete(int(space.n), int(space.start), np.dtype(space.dtype))
    if isinstance(space, spaces.MultiDiscrete):
        return _multi_discrete(np.asarray(space.nvec), np.asarray(space.start), np.dtype(space.dtype))
    if isinstance(space, spaces.MultiBinary):
        return _multi_binary(tuple(space.shape), np.dtype(space.dtype))
    if isinstance(space, spaces.Box):
        return _box(space, squash)
    raise EsrlError(f"action space {space} has no head; use Discrete, MultiDiscrete, MultiBinary or Box")


def _integer(dtype: np.dtype) -> np.dtype:
    """The 32-bit type that stands for a space's integer type on the device."""
    return np.dtype(np.int32) if dtype.itemsize > 4 else dtype


def _discrete(n: int, start: int, dtype: np.dtype) -> Head:
    kind = _integer(dtype)

    def shifted(index: Array) -> Array:
        return (index + start).astype(kind)

    return Head(
        n,
        lambda out: shifted(jnp.argmax(out, axis=-1)),
        lambda out, _, key: shifted(jax.random.categorical(key, out)),
    )


def _multi_discrete(nvec: np.ndarray, start: np.ndarray, dtype: np.dtype) -> Head:
    sizes = [int(n) for n in nvec.ravel()]
    kind = _integer(dtype)
    cuts = np.cumsum(sizes)[:-1].tolist()

    def choose(out: Array, pick: Callable[[int, Array], Array]) -> Array:
        parts = jnp.split(out, cuts)
        chosen = jnp.stack([pick(i, part) for i, part in enumerate(parts)]).reshape(nvec.shape)
        return chosen.astype(kind) + jnp.asarray(start.reshape(nvec.shape), kind)

    def sample(out: Array, _: Array | None, key: Key) -> Array:
        return choose(out, lambda i, part: jax.random.categorical(jax.random.fold_in(key, i), part))

    return Head(sum(sizes), lambda out: choose(out, lambda i, part: jnp.argmax(part)), sample)


def _multi_binary(shape: tuple[int, ...], dtype: np.dtype) -> Head:
    def sample(out: Array, _: Array | None, key: Key) -> Array:
        return jax.random.bernoulli(key, jax.nn.sigmoid(out)).astype(dtype).reshape(shape)

    return Head(math.prod(shape), lambda out: (out > 0).astype(dtype).reshape(shape), sample)


def _box(space: spaces.Box, squash: str) -> Head:
    if squash not in ("tanh", "clip"):
        raise EsrlError(f'squash is {squash!r}, but must be "tanh" or "clip"')
    if not np.issubdtype(space.dtype, np.floating):
        raise EsrlError(
            f"action space {space} is a Box of {space.dtype}; use a float Box, or MultiDiscrete for integers"
        )
    wide = np.asarray(space.low, np.float64), np.asarray(space.high, np.float64)
    bounded = np.isfinite(wide[0]) & np.isfinite(wide[1])
    with np.errstate(invalid="ignore"):
        middle = np.where(bounded, (wide[0] + wide[1]) / 2, 0).astype(np.float32)
        half = np.where(bounded, (wide[1] - wide[0]) / 2, 1).astype(np.float32)
    low, high = (side.astype(np.float32) for side in wide)

    def fit(out: Array) -> Array:
        x = out.reshape(space.shape).astype(jnp.float32)
        cut = jnp.clip(x, low, high)
        action = cut if squash == "clip" else jnp.where(bounded, middle + half * jnp.tanh(x), cut)
        return action.astype(jnp.float32)

    def sample(out: Array, log_std: Array | None, key: Key) -> Array:
        std = jnp.ones_like(out) if log_std is None else jnp.exp(log_std)
        return fit(out + std * jax.random.normal(key, out.shape, out.dtype))

    return Head(math.prod(space.shape), fit, sample, gaussian=True)
