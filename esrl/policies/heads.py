"""From a network's output to an action, for every Gymnasium action space.

A head says how many numbers the network must give (`size`) and what distribution they describe. A draw from it is a raw
action (an index, a vector of indices, bits, or a real vector before it is fitted to its bounds), which `action` turns
into what the environment takes. Densities are of raw actions: fitting to bounds cancels from every ratio of densities.
All functions are for one lane, pure, and traceable.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from esrl.core.types import Array, EsrlError, Key


class Head(NamedTuple):
    """How an output becomes an action. `log_std` [size] is used by Box spaces only, and is None elsewhere.

    Attributes:
      size: numbers that the network must give for one observation.
      raw_mode: `raw_mode(output [size]) -> raw_action`, the most likely one.
      raw_sample: `raw_sample(output [size], log_std, key) -> raw_action`, a random one.
      action: `action(raw_action) -> action`, as the environment takes it.
      log_prob: `log_prob(output, log_std, raw_action) -> []`, log density (or log probability) of a raw action.
      entropy: `entropy(output, log_std) -> []`, in nats.
      gaussian: whether `log_std` is needed to draw.
    """

    size: int
    raw_mode: Callable[[Array], Array]
    raw_sample: Callable[[Array, Array | None, Key], Array]
    action: Callable[[Array], Array]
    log_prob: Callable[[Array, Array | None, Array], Array]
    entropy: Callable[[Array, Array | None], Array]
    gaussian: bool = False

    def mode(self, output: Array) -> Array:
        """The most likely action."""
        return self.action(self.raw_mode(output))

    def sample(self, output: Array, log_std: Array | None, key: Key) -> Array:
        """A random action."""
        return self.action(self.raw_sample(output, log_std, key))


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
    one = _multi_discrete(np.array([n]), np.array([start]), dtype)
    return one._replace(action=lambda raw_action: one.action(raw_action)[0])


def _multi_discrete(nvec: np.ndarray, start: np.ndarray, dtype: np.dtype) -> Head:
    """Independent categorical distributions, one for each entry; a raw action is their indices [entries]."""
    sizes = [int(n) for n in nvec.ravel()]
    kind = _integer(dtype)
    cuts = np.cumsum(sizes)[:-1].tolist()
    first = np.asarray(start.reshape(nvec.shape), kind)

    def each(fn: Callable[..., Array], out: Array, *more: Any) -> Array:
        return jnp.stack([fn(i, part, *more) for i, part in enumerate(jnp.split(out, cuts))])

    def entropy(_: int, part: Array) -> Array:
        logs = jax.nn.log_softmax(part)
        # A masked choice has log probability -inf, and 0 * -inf would be NaN; its share of the entropy is 0.
        return -jnp.sum(jnp.exp(logs) * jnp.where(jnp.isfinite(logs), logs, 0.0))

    return Head(
        size=sum(sizes),
        raw_mode=lambda out: each(lambda i, part: jnp.argmax(part), out),
        raw_sample=lambda out, _, key: each(
            lambda i, part: jax.random.categorical(jax.random.fold_in(key, i), part), out
        ),
        action=lambda raw_action: raw_action.reshape(nvec.shape).astype(kind) + first,
        log_prob=lambda out, _, raw_action: jnp.sum(each(lambda i, part: jax.nn.log_softmax(part)[raw_action[i]], out)),
        entropy=lambda out, _: jnp.sum(each(entropy, out)),
    )


def _multi_binary(shape: tuple[int, ...], dtype: np.dtype) -> Head:
    """Independent bits; an output is the log odds of a one."""

    def log_prob(out: Array, _: Array | None, raw_action: Array) -> Array:
        return jnp.sum(jax.nn.log_sigmoid(jnp.where(raw_action, out, -out)))

    def entropy(out: Array, _: Array | None) -> Array:
        p = jax.nn.sigmoid(out)
        return -jnp.sum(p * jax.nn.log_sigmoid(out) + (1 - p) * jax.nn.log_sigmoid(-out))

    return Head(
        size=math.prod(shape),
        raw_mode=lambda out: out > 0,
        raw_sample=lambda out, _, key: jax.random.bernoulli(key, jax.nn.sigmoid(out)),
        action=lambda raw_action: raw_action.astype(dtype).reshape(shape),
        log_prob=log_prob,
        entropy=entropy,
    )


def _box(space: spaces.Box, squash: str) -> Head:
    """A Gaussian with independent entries; a raw action is its draw, before it is fitted to the bounds."""
    if squash not in ("tanh", "clip"):
        raise EsrlError(f'squash is {squash!r}, but must be "tanh" or "clip"')
    if not np.issubdtype(space.dtype, np.floating):
        raise EsrlError(
            f"action space {space} is a Box of {space.dtype}; use a float Box, or MultiDiscrete for integers"
        )
    # In float64: the width of float32's largest bounds would overflow.
    wide = np.asarray(space.low, np.float64), np.asarray(space.high, np.float64)
    bounded = np.isfinite(wide[0]) & np.isfinite(wide[1])
    with np.errstate(invalid="ignore"):
        middle = np.where(bounded, (wide[0] + wide[1]) / 2, 0).astype(np.float32)
        half = np.where(bounded, (wide[1] - wide[0]) / 2, 1).astype(np.float32)
    low, high = (side.astype(np.float32) for side in wide)

    def fit(raw_action: Array) -> Array:
        x = raw_action.reshape(space.shape).astype(jnp.float32)
        cut = jnp.clip(x, low, high)
        action = cut if squash == "clip" else jnp.where(bounded, middle + half * jnp.tanh(x), cut)
        return action.astype(jnp.float32)

    def spread(out: Array, log_std: Array | None) -> Array:
        return jnp.zeros_like(out) if log_std is None else log_std

    def log_prob(out: Array, log_std: Array | None, raw_action: Array) -> Array:
        log_std = spread(out, log_std)
        # Of the raw action: the bounds are applied behind it, and their Jacobian cancels from every ratio.
        return -jnp.sum(0.5 * ((raw_action - out) * jnp.exp(-log_std)) ** 2 + log_std + 0.5 * math.log(2 * math.pi))

    return Head(
        size=math.prod(space.shape),
        raw_mode=lambda out: out,
        raw_sample=lambda out, log_std, key: (
            out + jnp.exp(spread(out, log_std)) * jax.random.normal(key, out.shape, out.dtype)
        ),
        action=fit,
        log_prob=log_prob,
        entropy=lambda out, log_std: jnp.sum(spread(out, log_std) + 0.5 * math.log(2 * math.pi * math.e)),
        gaussian=True,
    )
