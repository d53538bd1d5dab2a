"""Episodes of many lanes whose environments Python steps (level 3)."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from esrl.core.types import Array, Key, PyTree
from esrl.envs.base import HostEnv
from esrl.policies import running_statistics as moment
from esrl.policies.running_statistics import Moments
from esrl.rollouts.types import Act, Episodes, Transform
from esrl.rollouts.unroll import narrow, spread


@lru_cache(maxsize=16)
def _decide(act: Act) -> Callable[..., Any]:
    """One step's decision for all lanes, compiled once for each act: action, carry, sums of observations."""

    def decide(
        context: PyTree, obs: PyTree, carry: PyTree, keys: Key, time: Array, live: Array, moments: PyTree, sums: PyTree
    ) -> tuple[Array, PyTree, PyTree]:
        now = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, time + 1))[0])(keys)
        sums = moment.accumulate(sums, moments, obs, live)
        actions, carry = act(context, obs, carry, now)
        return actions, carry, sums

    return jax.jit(decide)


@jax.jit
def _draw_seeds(keys: Key) -> Array:
    return jax.vmap(lambda key: jax.random.bits(jax.random.fold_in(key, 0)))(keys)


def _seeds(keys: Key) -> np.ndarray:
    """A reset seed for every lane; lanes with equal keys get equal seeds."""
    return np.asarray(_draw_seeds(keys.reshape(-1))).reshape(keys.shape)


def player(env: HostEnv, transform: Transform | None) -> tuple[Callable[..., Episodes], Callable[..., Episodes]]:
    """`episodes` and `stream` of a `Runner`; Python steps all pairs at once, however many slots."""

    def episodes(act: Act, context: PyTree, keys: Key, carry: PyTree, moments: Moments | None) -> Episodes:
        seeds = _seeds(keys)
        lanes = env.make_vec(*keys.shape)
        flat = keys.reshape(-1)
        decide = _decide(act)
        observation = lanes.reset(seeds)
        live = np.ones(flat.shape[0], bool)
        returns = np.zeros(live.shape, np.float64)
        shaped = np.zeros(live.shape, np.float64)
        lengths = np.zeros(live.shape, np.int32)
        carries = spread(carry, flat.shape[0])
        sums = moment.zero_sums(moments)
        time = 0
        while time < env.horizon and live.any():
            observation = narrow(observation)
            actions, carries, sums = decide(context, observation, carries, flat, np.int32(time), live, moments, sums)
            observation, reward, ended = lanes.step(jax.device_get(actions))
            returns += np.where(live, reward, 0.0)
            if transform is not None:
                shaped += np.where(live, np.asarray(transform(jnp.asarray(reward, jnp.float32))), 0.0)
            lengths += live
            live = live & ~ended
            time += 1
        total = returns if transform is None else shaped
        arrays = (x.astype(np.float32).reshape(keys.shape) for x in (returns, total))
        raw, trained = (jnp.asarray(x) for x in arrays)
        steps = jnp.full(keys.shape[0], time, jnp.int32)
        return Episodes(raw, trained, jnp.asarray(lengths.reshape(keys.shape)), sums, steps)

    def stream(
        act: Act, shared: PyTree, draw: Any, ids: Array, slots: int, carry: PyTree, moments: Moments | None
    ) -> Episodes:
        drawn, keys = draw(ids)
        return episodes(act, (shared, drawn), keys, carry, moments)

    return episodes, stream
