"""From a network's output to an action, for every Gymnasium action space.

A head says how many numbers the network must give (`size`) and what distribution they describe. A draw from it is a raw
action (an index, a vector of indices, bits, a real vector before it is fitted to its bounds, or a tuple of these for a
Dict or Tuple), which `action` turns into what the environment takes. Densities are of raw actions: fitting to bounds
cancels from every ratio of densities. All functions are for one lane, pure, and traceable.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from esrl.core.integers import OUTPUT_BITS
from esrl.core.types import Array, EsrlError, Key, PyTree
from esrl.policies.spaces import device_dtype

WIDE = 1e6  # half the width of a Box from which on its bounds say no scale: a draw is of the order of 1
MOST = 1024  # whole numbers that an entry of a Box may choose from: each takes an output of the network
_LARGEST = float(np.finfo(np.float32).max)


Score = tuple[Array, Array]  # derivatives by an output [size] and by its log_std [gaussians]
NO_STD = np.zeros(0, np.float32)  # the latter where nothing is drawn from a Gaussian


class Head(NamedTuple):
    """How an output becomes an action. `log_std` [gaussians] is of Box parts only, and None where there are none.

    Attributes:
      size: numbers that the network must give for one observation.
      raw_mode: `raw_mode(output [size]) -> raw_action`, the most likely one.
      raw_sample: `raw_sample(output [size], log_std, key) -> raw_action`, a random one.
      action: `action(raw_action) -> action`, as the environment takes it.
      log_prob: `log_prob(output, log_std, raw_action) -> []`, log density (or log probability) of a raw action.
      entropy: `entropy(output, log_std) -> []`, in nats.
      score: `score(output, log_std, raw_action) -> ([size], [gaussians])`, the derivative of `log_prob` by output and
        `log_std`, in closed form.
      entropy_score: `entropy_score(output, log_std) -> ([size], [gaussians])`, the derivative of `entropy`.
      gaussians: how many numbers of an action are drawn from a Gaussian, and have an entry in `log_std`.
    """

    size: int
    raw_mode: Callable[[Array], PyTree]
    raw_sample: Callable[[Array, Array | None, Key], PyTree]
    action: Callable[[PyTree], PyTree]
    log_prob: Callable[[Array, Array | None, PyTree], Array]
    entropy: Callable[[Array, Array | None], Array]
    score: Callable[[Array, Array | None, PyTree], Score]
    entropy_score: Callable[[Array, Array | None], Score]
    gaussians: int = 0

    def mode(self, output: Array) -> PyTree:
        """The most likely action."""
        return self.action(self.raw_mode(output))

    def sample(self, output: Array, log_std: Array | None, key: Key) -> PyTree:
        """A random action."""
        return self.action(self.raw_sample(output, log_std, key))


def head(space: spaces.Space, squash: str = "tanh") -> Head:
    """The head of an action space: Discrete, MultiDiscrete, MultiBinary, Box, or a Dict or Tuple of them.

    A Box of whole numbers is a choice among them for each entry, as MultiDiscrete is.

    Args:
      space: the environment's action space.
      squash: for Box spaces of floats. Where both bounds are finite, a raw action x becomes middle + half * clip(x, -1,
        1) ("clip") or middle + half * tanh(x) ("tanh"), where half is half the width. Elsewhere, and where half is more
        than `WIDE`, since such bounds say no scale, x itself is cut off at the bounds.

    Raises:
      EsrlError: another space, one that leaves nothing to choose, or an unknown squash.
    """
    if squash not in ("tanh", "clip"):
        raise EsrlError(f'squash is {squash!r}, but must be "tanh" or "clip"')
    try:
        made = _head(space, squash)
    except EsrlError as error:
        raise EsrlError(f"action {error}") from error
    if made.size == 0:
        raise EsrlError(f"action space {space} leaves nothing to choose; give it at least one entry")
    return made


def _head(space: spaces.Space, squash: str) -> Head:
    if isinstance(space, spaces.Dict):
        names = list(space.spaces)
        parts = [_head(sub, squash) for sub in space.spaces.values()]
        return _joint(parts, lambda actions: dict(zip(names, actions, strict=True)))
    if isinstance(space, spaces.Tuple):
        return _joint([_head(sub, squash) for sub in space.spaces], tuple)
    kind = device_dtype(space)
    if isinstance(space, spaces.Discrete):
        one = _multi_discrete(np.array([int(space.n)]), np.array([int(space.start)]), kind)
        return one._replace(action=lambda raw_action: one.action(raw_action)[0])
    if isinstance(space, spaces.MultiDiscrete):
        return _multi_discrete(np.asarray(space.nvec), np.asarray(space.start), kind)
    if isinstance(space, spaces.MultiBinary):
        return _multi_binary(tuple(space.shape), kind)
    assert isinstance(space, spaces.Box)  # device_dtype knows no other
    if np.issubdtype(space.dtype, np.floating):
        return _box(space, squash, kind)
    many = np.asarray(space.high.astype(object) - space.low.astype(object) + 1)  # Python's integers do not overflow
    if many.size and np.max(many) > MOST:
        raise EsrlError(
            f"space {space} has an entry of {np.max(many)} whole numbers to choose from, more than {MOST};"
            " use a Box of floats and round them in step"
        )
    return _multi_discrete(many.astype(np.int64), space.low, kind)


def _joint(parts: list[Head], nest: Callable[[list[PyTree]], PyTree]) -> Head:
    """Independent parts: outputs and `log_std` lie side by side, a raw action is the tuple of the parts'."""
    outs = np.cumsum([0, *(part.size for part in parts)]).tolist()
    stds = np.cumsum([0, *(part.gaussians for part in parts)]).tolist()

    def each(name: str, out: Array, log_std: Array | None = None, *more: Any) -> list[Any]:
        def one(i: int, part: Head) -> Any:
            std = None if log_std is None or not part.gaussians else log_std[stds[i] : stds[i + 1]]
            return getattr(part, name)(out[outs[i] : outs[i + 1]], std, *(x(i) for x in more))

        return [one(i, part) for i, part in enumerate(parts)]

    def raw_mode(out: Array) -> PyTree:
        return tuple(part.raw_mode(out[outs[i] : outs[i + 1]]) for i, part in enumerate(parts))

    def joined(scores: list[Score]) -> Score:
        return jnp.concatenate([out for out, _ in scores]), jnp.concatenate([std for _, std in scores])

    return Head(
        size=outs[-1],
        raw_mode=raw_mode,
        raw_sample=lambda out, log_std, key: tuple(
            each("raw_sample", out, log_std, lambda i: jax.random.fold_in(key, i))
        ),
        action=lambda raw_action: nest([part.action(raw) for part, raw in zip(parts, raw_action, strict=True)]),
        log_prob=lambda out, log_std, raw_action: sum(
            each("log_prob", out, log_std, lambda i: raw_action[i]), jnp.zeros(())
        ),
        entropy=lambda out, log_std: sum(each("entropy", out, log_std), jnp.zeros(())),
        score=lambda out, log_std, raw_action: joined(each("score", out, log_std, lambda i: raw_action[i])),
        entropy_score=lambda out, log_std: joined(each("entropy_score", out, log_std)),
        gaussians=stds[-1],
    )


def _multi_discrete(nvec: np.ndarray, start: np.ndarray, kind: np.dtype) -> Head:
    """Independent categorical distributions, one for each entry; a raw action is their indices [entries]."""
    sizes = [int(n) for n in nvec.ravel()]
    cuts = np.cumsum(sizes)[:-1].tolist()
    first = np.asarray(start.reshape(nvec.shape), kind)

    def each(fn: Callable[..., Array], out: Array, *more: Any) -> Array:
        if not sizes:  # a part with no entry
            return jnp.zeros(0, jnp.int32)
        return jnp.stack([fn(i, part, *more) for i, part in enumerate(jnp.split(out, cuts))])

    def entropy(_: int, part: Array) -> Array:
        logs = jax.nn.log_softmax(part)
        # A masked choice has log probability -inf, and 0 * -inf would be NaN; its share of the entropy is 0.
        return -jnp.sum(jnp.exp(logs) * jnp.where(jnp.isfinite(logs), logs, 0.0))

    def beside(fn: Callable[[int, Array], Array], out: Array) -> Array:
        return jnp.concatenate([fn(i, part) for i, part in enumerate(jnp.split(out, cuts))]) if sizes else out

    def entropy_score(_: int, part: Array) -> Array:  # -p (log p + H)
        logs = jax.nn.log_softmax(part)
        logs = jnp.where(jnp.isfinite(logs), logs, 0.0)  # as in `entropy`
        return -jnp.exp(logs) * (logs - jnp.sum(jnp.exp(logs) * logs))

    return Head(
        size=sum(sizes),
        raw_mode=lambda out: each(lambda i, part: jnp.argmax(part), out),
        raw_sample=lambda out, _, key: each(
            lambda i, part: jax.random.categorical(jax.random.fold_in(key, i), part), out
        ),
        action=lambda raw_action: raw_action.reshape(nvec.shape).astype(kind) + first,
        log_prob=lambda out, _, raw_action: jnp.sum(each(lambda i, part: jax.nn.log_softmax(part)[raw_action[i]], out)),
        entropy=lambda out, _: jnp.sum(each(entropy, out)),
        score=lambda out, _, raw_action: (
            beside(lambda i, part: jax.nn.one_hot(raw_action[i], sizes[i]) - jax.nn.softmax(part), out),
            jnp.asarray(NO_STD),
        ),
        entropy_score=lambda out, _: (beside(entropy_score, out), jnp.asarray(NO_STD)),
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
        score=lambda out, _, raw_action: (raw_action.astype(out.dtype) - jax.nn.sigmoid(out), jnp.asarray(NO_STD)),
        entropy_score=lambda out, _: (-out * jax.nn.sigmoid(out) * jax.nn.sigmoid(-out), jnp.asarray(NO_STD)),
    )


def _box(space: spaces.Box, squash: str, kind: np.dtype) -> Head:
    """A Gaussian with independent entries; a raw action is its draw, before it is fitted to the bounds."""
    # In float64: the width of float32's largest bounds would overflow.
    low, high = np.asarray(space.low, np.float64), np.asarray(space.high, np.float64)
    with np.errstate(invalid="ignore"):  # inf - inf
        half, middle = (high - low) / 2, (low + high) / 2
    bounded = np.isfinite(half) & (half <= WIDE)
    scale, center = (np.where(bounded, x, 0).astype(np.float32) for x in (half, middle))
    # Rounded inwards: the nearest float32 of a float64 bound may lie beyond it.
    least, most = (np.clip(side, -_LARGEST, _LARGEST).astype(np.float32) for side in (low, high))
    least = np.where(least < low, np.nextafter(least, np.float32(np.inf)), least)
    most = np.where(most > high, np.nextafter(most, np.float32(-np.inf)), most)

    def fit(raw_action: Array) -> Array:
        x = raw_action.reshape(space.shape).astype(jnp.float32)
        if jnp.issubdtype(raw_action.dtype, jnp.integer):  # here an integer policy meets the environment's floats
            x = x * jnp.float32(2.0**-OUTPUT_BITS)
        unit = jnp.tanh(x) if squash == "tanh" else jnp.clip(x, -1.0, 1.0)
        return jnp.where(bounded, center + scale * unit, jnp.clip(x, least, most)).astype(kind)

    def spread(out: Array, log_std: Array | None) -> Array:
        return jnp.zeros_like(out) if log_std is None else log_std

    def log_prob(out: Array, log_std: Array | None, raw_action: Array) -> Array:
        log_std = spread(out, log_std)
        # Of the raw action: the bounds are applied behind it, and their Jacobian cancels from every ratio.
        return -jnp.sum(0.5 * ((raw_action - out) * jnp.exp(-log_std)) ** 2 + log_std + 0.5 * math.log(2 * math.pi))

    def score(out: Array, log_std: Array | None, raw_action: Array) -> Score:
        log_std = spread(out, log_std)
        away = (raw_action - out) * jnp.exp(-log_std)
        return away * jnp.exp(-log_std), away**2 - 1

    return Head(
        size=math.prod(space.shape),
        raw_mode=lambda out: out,
        raw_sample=lambda out, log_std, key: (
            out + jnp.exp(spread(out, log_std)) * jax.random.normal(key, out.shape, out.dtype)
        ),
        action=fit,
        log_prob=log_prob,
        entropy=lambda out, log_std: jnp.sum(spread(out, log_std) + 0.5 * math.log(2 * math.pi * math.e)),
        score=score,
        entropy_score=lambda out, _: (jnp.zeros_like(out), jnp.ones_like(out)),
        gaussians=math.prod(space.shape),
    )
