"""Observations and actions as the spaces describe them: types on both sides, as one vector, inside or outside."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from esrl.core.types import Array, EsrlError, PyTree

CATEGORIES = 64  # values of a whole number that may be a kind rather than an amount
MASK = "action_mask"  # the entry of a Dict observation that says which actions are allowed


def map_space(fn: Callable[..., Any], space: spaces.Space, *trees: PyTree) -> Any:
    """`fn(space, *leaves)` for each space that is no Dict or Tuple; the result is nested as the space is."""
    if isinstance(space, spaces.Dict):
        return {name: map_space(fn, sub, *(tree[name] for tree in trees)) for name, sub in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(map_space(fn, sub, *(tree[i] for tree in trees)) for i, sub in enumerate(space.spaces))
    return fn(space, *trees)


def subspaces(space: spaces.Space) -> dict[Any, spaces.Space]:
    """The parts of a Dict by their names, of a Tuple by their numbers, and none of another space."""
    if isinstance(space, spaces.Dict):
        return dict(space.spaces)
    return dict(enumerate(space.spaces)) if isinstance(space, spaces.Tuple) else {}


_ARRAYS = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)  # spaces whose values are arrays


def visible(space: spaces.Space) -> tuple[spaces.Space, dict[str, str]]:
    """A space without those entries of its Dicts that no network can take, and these: kind by path."""
    hidden: dict[str, str] = {}

    def kept(space: spaces.Space, path: str) -> spaces.Space | None:
        if isinstance(space, spaces.Dict):
            parts = {name: kept(part, f"{path}/{name}" if path else name) for name, part in space.spaces.items()}
            left = {name: part for name, part in parts.items() if part is not None}
            return spaces.Dict(left) if left or not parts else None
        if isinstance(space, (*_ARRAYS, spaces.Tuple)):  # not Text, Graph, Sequence, or a package's own kind
            return space
        hidden[path] = type(space).__name__
        return None

    made = kept(space, "") if isinstance(space, spaces.Dict) else None
    return (made, hidden) if made is not None and hidden else (space, {})


def seen(space: spaces.Space, observation: PyTree) -> PyTree:
    """An observation without the entries of dicts that its space does not have."""
    if not isinstance(space, spaces.Dict) or not isinstance(observation, dict):
        return observation
    return {name: seen(space[name], part) for name, part in observation.items() if name in space.spaces}


# ---- types on the device, and in the environment --------------------------------------------------------------------


def device_dtype(space: spaces.Space) -> np.dtype:
    """The type that stands for a space's own on the device, which has 32 bits unless JAX was told otherwise.

    A Box of 64-bit integers whose bounds do not fit 32 bits becomes float32: a number that is rounded is near the
    truth, one that wraps round is not.

    Raises:
      EsrlError: Discrete or MultiDiscrete with choices beyond 32 bits, or a space whose values are not arrays.
    """
    if not isinstance(space, _ARRAYS):
        raise EsrlError(
            f"space {space} cannot be used; use Box, Discrete, MultiDiscrete, MultiBinary, or Dict and Tuple of them"
        )
    own = np.dtype(space.dtype)
    here = np.dtype(jax.dtypes.canonicalize_dtype(own))
    if here == own or not np.issubdtype(own, np.integer) or isinstance(space, spaces.MultiBinary):
        return here
    if isinstance(space, spaces.Box):
        low, high = space.low, space.high
    else:  # as Python numbers: start + n may not fit the space's own type either
        many = np.asarray(space.nvec if isinstance(space, spaces.MultiDiscrete) else space.n, object)
        low = np.asarray(space.start, object)
        high = low + many - 1
    fits = low.size == 0 or (np.min(low) >= np.iinfo(here).min and np.max(high) <= np.iinfo(here).max)
    if not fits and not isinstance(space, spaces.Box):
        raise EsrlError(f"space {space} has choices beyond 32 bits; number them from 0 (start), or use a Box")
    return here if fits else np.dtype(np.float32)


def to_device(space: spaces.Space, value: PyTree) -> PyTree:
    """What an environment gave, one or many rows, as NumPy arrays of the types that the device has for the space.

    Finite numbers stay finite: those beyond float32's range become its largest.
    """

    def one(space: spaces.Space, x: Any) -> np.ndarray:
        x, dtype = np.asarray(x), device_dtype(space)
        if x.dtype == np.float64 and dtype == np.float32:
            most = np.finfo(np.float32).max
            x = np.where(np.isfinite(x), np.clip(x, -most, most), x)
        return x.astype(dtype, copy=False)

    return map_space(one, space, value)


def to_environment(space: spaces.Space, action: PyTree) -> PyTree:
    """Actions of the device, one or many rows, as NumPy arrays of the space's own types."""

    def one(space: spaces.Space, x: Any) -> np.ndarray:
        x = np.asarray(x, space.dtype)
        # float32's rounding may have left the bounds by its last digit.
        return np.asarray(np.clip(x, space.low, space.high)) if isinstance(space, spaces.Box) else x

    return map_space(one, space, action)


def row(space: spaces.Space, actions: PyTree, i: int) -> PyTree:
    """Action i of many (arrays [L, ...], nested as the space is), so that the space contains it."""

    def one(space: spaces.Space, x: np.ndarray) -> Any:
        # Gymnasium wants a number for Discrete, and an array for all else, though its shape be ().
        return x[i] if isinstance(space, spaces.Discrete) else x[i, ...]

    return map_space(one, space, actions)


def rows_of(space: spaces.Space, actions: PyTree, ids: list[int]) -> list[PyTree]:
    """`row` of many, faster where an action is one array or number."""
    if isinstance(space, spaces.Discrete):
        return [actions[i] for i in ids]
    if isinstance(space, _ARRAYS):
        return [actions[i, ...] for i in ids]
    return [row(space, actions, i) for i in ids]


def observation_zeros(space: spaces.Space) -> PyTree:
    """One observation of zeros, as arrays on the device; Dict gives a dict, Tuple a tuple.

    Raises:
      EsrlError: a space whose observations are not arrays (Text, Graph, Sequence), or cannot be had in 32 bits.
    """

    def zeros(space: spaces.Space, path: str) -> PyTree:
        parts = subspaces(space)
        if parts or isinstance(space, (spaces.Dict, spaces.Tuple)):
            made = {name: zeros(part, f"{path}/{name}" if path else str(name)) for name, part in parts.items()}
            return made if isinstance(space, spaces.Dict) else tuple(made.values())
        try:
            return jnp.zeros(space.shape, device_dtype(space))
        except EsrlError as error:
            raise EsrlError(f"observation {f'entry {path}: ' if path else ''}{error}") from error

    return zeros(space, "")


# ---- observations as vectors ----------------------------------------------------------------------------------------


def normalizable_leaves(space: spaces.Space, flat: bool, one_hot: bool = False) -> PyTree:
    """For each observation leaf, whether it may be normalized: a float Box of at most two dimensions, but no mask.

    Args:
      flat: the network makes one vector of all numbers, as `mlp` and `gru` do. Then every Box may be: bytes and whole
        numbers such as the codes of a grid world, and three dimensions, which other networks may take for a picture.
      one_hot: the network codes categories one-hot (`features`); then these may not be.
    """
    if isinstance(space, spaces.Dict):
        return {
            name: map_space(lambda _: False, sub) if name == MASK else normalizable_leaves(sub, flat, one_hot)
            for name, sub in space.spaces.items()
        }
    if isinstance(space, spaces.Tuple):
        return tuple(normalizable_leaves(sub, flat, one_hot) for sub in space.spaces)
    if not isinstance(space, spaces.Box) or (one_hot and categorical(space)):
        return False
    return flat or (jnp.issubdtype(device_dtype(space), jnp.floating) and len(space.shape) < 3)


def categorical(space: spaces.Box) -> bool:
    """Whether a Box's numbers may be kinds rather than amounts: whole, and 3 to CATEGORIES of them in every entry."""
    if not np.issubdtype(space.dtype, np.integer) or not math.prod(space.shape):
        return False
    width = space.high.astype(np.float64) - space.low.astype(np.float64)  # which may not fit its own type
    return bool(np.all(width < CATEGORIES) and np.max(width) > 1)


def features(space: spaces.Space, observation: PyTree, one_hot: bool = False) -> Array:
    """An observation as one float32 vector: boxes raveled, discrete values one-hot, Dict and Tuple concatenated.

    Args:
      one_hot: code the numbers of `categorical` boxes one-hot as well: a wall is not 2, and not half of a door.
    """
    if isinstance(space, spaces.Dict):
        return _joined([features(sub, observation[name], one_hot) for name, sub in space.spaces.items()])
    if isinstance(space, spaces.Tuple):
        return _joined([features(sub, part, one_hot) for sub, part in zip(space.spaces, observation, strict=True)])
    if isinstance(space, spaces.Discrete):
        return jax.nn.one_hot(observation - int(space.start), int(space.n))
    if isinstance(space, spaces.MultiDiscrete) or (one_hot and isinstance(space, spaces.Box) and categorical(space)):
        return one_hot_of(space, observation).astype(jnp.float32)
    return jnp.ravel(observation).astype(jnp.float32)


def one_hot_of(space: spaces.Space, observation: Array) -> Array:
    """A Discrete, MultiDiscrete or `categorical` Box observation as bool, one-hot, entry after entry."""
    if isinstance(space, spaces.Discrete):
        return _one_hot(observation, np.asarray(space.start), np.asarray(space.n))
    if isinstance(space, spaces.MultiDiscrete):
        return _one_hot(observation, space.start, space.nvec)
    assert isinstance(space, spaces.Box)
    return _one_hot(observation, space.low, space.high.astype(np.int64) - space.low + 1)


def _one_hot(values: Array, start: np.ndarray, sizes: np.ndarray) -> Array:
    """Whole numbers one after another, each as one 1 among as many zeros as it has other values; outside all zeros."""
    low, many = np.asarray(start).ravel(), np.asarray(sizes).ravel()
    entry = np.repeat(np.arange(many.size), many)
    value = np.concatenate([first + np.arange(n) for first, n in zip(low, many, strict=True)])
    # In one comparison: a grid has hundreds of entries.
    return jnp.ravel(values)[entry] == jnp.asarray(value, values.dtype)


def _joined(parts: list[Array]) -> Array:
    return jnp.concatenate(parts) if parts else jnp.zeros(0)


def pictures_and_rest(space: spaces.Space, observation: PyTree) -> tuple[list[Array], Array]:
    """The pictures of an observation (float32 [H, W, C]; uint8 ones over 255), and the rest as one vector.

    A picture is a Box of three dimensions. Its channels come last, or first when that side is the shortest (a stack of
    Atari frames, [4, 84, 84]).
    """
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        found = [pictures_and_rest(sub, observation[key]) for key, sub in subspaces(space).items()]
        return [p for pictures, _ in found for p in pictures], _joined([rest for _, rest in found])
    if isinstance(space, spaces.Box) and len(space.shape) == 3:
        scale = 1 / 255 if space.dtype == np.uint8 else 1.0
        channels_first = space.shape[0] < min(space.shape[1:])
        picture = jnp.moveaxis(observation, 0, -1) if channels_first else observation
        return [picture.astype(jnp.float32) * scale], jnp.zeros(0)
    return [], features(space, observation)


def outside(space: spaces.Space, observation: Any, strict: bool = True) -> str:
    """What is wrong with an observation of a space, as the end of a sentence; empty when nothing is.

    Args:
      strict: whether a Box's bounds and numbers that are not finite count, beside shapes and types.
    """
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        kind, keys = (dict, set(space.spaces)) if isinstance(space, spaces.Dict) else (tuple, len(space.spaces))
        if not isinstance(observation, kind) or (set(observation) if kind is dict else len(observation)) != keys:
            return f"is not a {kind.__name__} with the entries of its space {space}"
        return next(filter(None, (outside(sub, observation[key], strict) for key, sub in subspaces(space).items())), "")
    try:
        value = np.asarray(observation)
    except ValueError:
        return "is not an array"
    if value.shape != space.shape:
        return f"has shape {value.shape}, but its space {space} needs {space.shape}"
    if not np.issubdtype(value.dtype, np.number) and value.dtype != np.bool_:
        return f"is of type {value.dtype}, but its space {space} needs numbers"
    if strict and np.issubdtype(value.dtype, np.floating) and not np.all(np.isfinite(value)):
        return "has an entry that is not finite"
    if isinstance(space, spaces.Box) and not strict:
        return ""
    if isinstance(space, spaces.Box):
        slack = 1e-4 * (1 + np.abs(value.astype(np.float64)))
        inside = bool(np.all((value >= space.low - slack) & (value <= space.high + slack)))
    else:
        inside = space.contains(value.astype(space.dtype))
    return "" if inside else f"lies outside its space {space}"
