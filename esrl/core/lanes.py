"""Arrays of many lanes [L, ...]: one value for all of them, other values in some of them, new worlds in some."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from esrl.core.types import Array, Key, PyTree


def broadcast_lanes(carry: PyTree, lanes: int) -> PyTree:
    """One lane's values for all lanes, [L, ...]."""
    return jax.tree.map(lambda x: jnp.broadcast_to(jnp.asarray(x), (lanes, *jnp.shape(x))), carry)


def reset_lanes(values: PyTree, fresh: PyTree, is_first: Array) -> PyTree:
    """Values of all lanes [L, ...], with those of `fresh` in the lanes of `is_first` [L] bool.

    `fresh` holds one lane's values, or all lanes'.
    """

    def one(x: Array, start: Array) -> Array:
        return jnp.where(is_first.reshape(is_first.shape + (1,) * (x.ndim - 1)), jnp.broadcast_to(start, x.shape), x)

    return jax.tree.map(one, values, jax.tree.map(jnp.asarray, fresh))


def reset_worlds(env: Any, world: PyTree, done: Array, keys: Key) -> PyTree:
    """State and observation of all lanes [L, ...], with a new world in the lanes of `done` [L] from their keys [L].

    Making a world may cost more than many steps in it (Craftax), and few lanes need one at a time: worlds are made a
    few at a time, until every lane that needs one has its own.
    """
    lanes = done.shape[0]
    few = max(1, lanes // 16)

    def some(now: tuple[PyTree, Array]) -> tuple[PyTree, Array]:
        world, waiting = now
        # Index L is padding where fewer lanes wait: it is clipped on read and dropped on write.
        chosen = jnp.nonzero(waiting, size=few, fill_value=lanes)[0]
        fresh = jax.vmap(env.reset)(jnp.take(keys, chosen, axis=0, mode="clip"))
        world = jax.tree.map(lambda x, new: x.at[chosen].set(new, mode="drop"), world, fresh)
        return world, waiting.at[chosen].set(False, mode="drop")

    return jax.lax.while_loop(lambda now: jnp.any(now[1]), some, (world, done))[0]
