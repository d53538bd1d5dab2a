"""Observations as the spaces describe them: blank, as one vector, and whether one lies in its space."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from esrl.core.types import Array, EsrlError, PyTree

MASK = "action_mask"  # the entry of a Dict observation that says which actions are allowed


def observation_zeros(space: spaces.Space) -> PyTree:
    """One observation of zeros, as arrays on the device; Dict gives a dict, Tuple a tuple.

    Raises:
      EsrlError: a space whose observations are not arrays (Text, Graph, Sequence).
    """
    if isinstance(space, spaces.Dict):
        return {name: observation_zeros(sub) for name, sub in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(observation_zeros(sub) for sub in space.spaces)
    if isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
        return jnp.zeros(space.shape, jax.dtypes.canonicalize_dtype(space.dtype))
    raise EsrlError(
        f"observation space {space} cannot be used; use Box, Discrete, MultiDiscrete, MultiBinary, Dict, Tuple"
    )


def normalizable_leaves(space: spaces.Space, flat: bool) -> PyTree:
    """For each observation leaf, whether it may be normalized: a float Box of at most two dimensions, but no mask.

    Args:
      flat: the network makes one vector of all numbers, as `mlp` and `gru` do. Then every Box may be: bytes and whole
        numbers such as the codes of a grid world, and three dimensions, which other networks may take for a picture.
    """
    if isinstance(space, spaces.Dict):
        return {name: name != MASK and normalizable_leaves(sub, flat) for name, sub in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(normalizable_leaves(sub, flat) for sub in space.spaces)
    if not isinstance(space, spaces.Box):
        return False
    return flat or (np.issubdtype(space.dtype, np.floating) and len(space.shape) < 3)


def features(space: spaces.Space, observation: PyTree) -> Array:
    """An observation as one float32 vector: boxes raveled, discrete values one-hot, Dict and Tuple concatenated."""
    if isinstance(space, spaces.Dict):
        return jnp.concatenate([features(sub, observation[name]) for name, sub in space.spaces.items()])
    if isinstance(space, spaces.Tuple):
        return jnp.concatenate([features(sub, part) for sub, part in zip(space.spaces, observation, strict=True)])
    if isinstance(space, spaces.Discrete):
        return jax.nn.one_hot(observation - int(space.start), int(space.n))
    if isinstance(space, spaces.MultiDiscrete):
        start = np.asarray(space.start).ravel()
        sizes = np.asarray(space.nvec).ravel()
        flat = observation.ravel()
        return jnp.concatenate([jax.nn.one_hot(flat[i] - int(start[i]), int(n)) for i, n in enumerate(sizes)])
    return jnp.ravel(observation).astype(jnp.float32)


def pictures_and_rest(space: spaces.Space, observation: PyTree) -> tuple[list[Array], Array]:
    """The pictures of an observation (float32 [H, W, C]; uint8 ones over 255), and the rest as one vector.

    A picture is a Box of three dimensions. Its channels come last, or first when that side is the shortest (a stack of
    Atari frames, [4, 84, 84]).
    """
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        parts: Any = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        found = [pictures_and_rest(sub, observation[key]) for key, sub in parts]
        return [p for pictures, _ in found for p in pictures], jnp.concatenate([rest for _, rest in found])
    if isinstance(space, spaces.Box) and len(space.shape) == 3:
        scale = 1 / 255 if space.dtype == np.uint8 else 1.0
        channels_first = space.shape[0] < min(space.shape[1:])
        picture = jnp.moveaxis(observation, 0, -1) if channels_first else observation
        return [picture.astype(jnp.float32) * scale], jnp.zeros(0)
    return [], features(space, observation)


def outside(space: spaces.Space, observation: Any) -> str:
    """What is wrong with an observation of a space, as the end of a sentence; empty when nothing is."""
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        parts: Any = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        kind, keys = (dict, set(space.spaces)) if isinstance(space, spaces.Dict) else (tuple, len(space.spaces))
        if not isinstance(observation, kind) or (set(observation) if kind is dict else len(observation)) != keys:
            return f"is not a {kind.__name__} with the entries of its space {space}"
        return next(filter(None, (outside(sub, observation[key]) for key, sub in parts)), "")
    try:
        value = np.asarray(observation)
    except ValueError:
        return "is not an array"
    if value.shape != space.shape:
        return f"has shape {value.shape}, but its space {space} needs {space.shape}"
    if not np.issubdtype(value.dtype, np.number) and value.dtype != np.bool_:
        return f"is of type {value.dtype}, but its space {space} needs numbers"
    if np.issubdtype(value.dtype, np.floating) and not np.all(np.isfinite(value)):
        return "has an entry that is not finite"
    if isinstance(space, spaces.Box):
        slack = 1e-4 * (1 + np.abs(value.astype(np.float64)))
        inside = bool(np.all((value >= space.low - slack) & (value <= space.high + slack)))
    else:
        inside = space.contains(value.astype(space.dtype))
    return "" if inside else f"lies outside its space {space}"
