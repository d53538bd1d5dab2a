"""What adapters of packages have in common: quiet imports, one sentence for what fails, types that stay as they are."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from esrl.core.types import Array, EsrlError, PyTree, nearest

T = TypeVar("T")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps off standard output and the warnings what packages say when they are imported."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def check_known(suite: str, name: str, known: Iterable[str]) -> None:
    """Raises an EsrlError that offers near names when a suite has no environment of this name (without the suite)."""
    known = list(known)
    if name not in known:
        raise EsrlError(f"{suite} has no environment {name!r}{nearest(name, known)}")


def check_horizon(name: str, horizon: int | None) -> None:
    """Raises an EsrlError when a horizon was given that is not a whole number of at least 1."""
    if horizon is not None and (isinstance(horizon, bool) or not isinstance(horizon, int) or horizon < 1):
        raise EsrlError(f"{name}: horizon is {horizon!r}, but must be a whole number of at least 1")


def construct(name: str, make: Callable[[], T]) -> T:
    """What `make` returns; an error in it (an argument that it does not take, data to be fetched) in one sentence."""
    try:
        with quiet():
            return make()
    except EsrlError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise EsrlError(f"{name} cannot be made: {type(error).__name__}: {reason}") from error


def as_before(tree: PyTree, like: PyTree) -> PyTree:
    """A tree with the dtypes and shapes of another: packages let Python numbers and promotions into their states."""

    def one(x: Any, like: Any) -> Array:
        if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
            return x
        return jnp.asarray(x, like.dtype).reshape(like.shape)

    return jax.tree.map(one, tree, like)


def fitted(observation: PyTree, space: spaces.Space) -> PyTree:
    """An observation with the dtypes and shapes that its space says; Dict and Tuple go by their entries."""
    if isinstance(space, spaces.Dict):
        return {name: fitted(observation[name], sub) for name, sub in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(fitted(part, sub) for part, sub in zip(observation, space.spaces, strict=True))
    return jnp.asarray(observation, jax.dtypes.canonicalize_dtype(space.dtype)).reshape(space.shape)


def gymnax_space(space: Any) -> spaces.Space:
    """A space as gymnax defines them (Craftax and Kinetix use its classes) as Gymnasium's."""
    kind = type(space).__name__
    if kind == "Discrete":
        return spaces.Discrete(int(space.n))
    if kind == "Dict":
        return spaces.Dict({name: gymnax_space(part) for name, part in space.spaces.items()})
    if kind == "Tuple":
        return spaces.Tuple([gymnax_space(part) for part in space.spaces])
    dtype = np.dtype(space.dtype)
    low, high = (np.broadcast_to(np.asarray(side, dtype), space.shape) for side in (space.low, space.high))
    return spaces.Box(low, high, space.shape, dtype)
