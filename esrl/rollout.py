"""Episodes of many lanes at once: the whole population, on the device or on the host (level 3).

`episodes` plays one episode in every lane and returns sums only: no array has a time axis. Lanes have the shape
[P, S, E] (pairs, signs, episodes) outside and are flat inside. A lane that is done is masked: its later steps count
neither as reward, nor as length, nor as observation.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from esrl import moments as moment
from esrl.env import HostEnv, horizon_of
from esrl.moments import Moments, Sums
from esrl.types import Array, Key, PyTree
from esrl.unroll import Unroll, narrow, spread, unroller

Act = Callable[[PyTree, PyTree, PyTree, Key], tuple[Array, PyTree]]
Transform = Callable[[Array], Array]


class Episodes(NamedTuple):
    """One episode of every lane.

    Attributes:
      returns: [P, S, E] sum of raw rewards.
      shaped: [P, S, E] sum of transformed rewards, the same array when there is no transform.
      lengths: [P, S, E] int32, live steps.
      sums: of live observations, or None when they are not summed.
      steps: int32, steps that every lane was stepped, live or not.
    """

    returns: Array
    shaped: Array
    lengths: Array
    sums: Sums | None
    steps: Array


class Runner(NamedTuple):
    """Plays episodes.

    Attributes:
      episodes: `episodes(act, context, keys [P, S, E], carry, moments) -> Episodes`. `act(context, observations,
        carries, keys) -> (actions, carries)` is for all lanes at once; `carry` is one lane's at the start; `moments`
        says which observations to sum, or is None. Lanes with equal keys see the same world and the same action noise.
      unroll: a fixed number of steps in lanes that live on, see `esrl.unroll`.
      jittable: whether they are pure JAX; else they step Python environments and must not be traced.
    """

    episodes: Callable[..., Episodes]
    unroll: Unroll
    jittable: bool


def runner(env: Any, transform: Transform | None = None) -> Runner:
    """The runner of an environment; `transform` maps rewards to what is trained on, and returns stay raw."""
    if isinstance(env, HostEnv):
        return Runner(_host(env, transform), unroller(env), False)
    return Runner(_device(env, transform), unroller(env), True)


def _tally(live: Array, reward: Array, totals: tuple[Array, ...], transform: Transform | None) -> tuple[Array, ...]:
    """Adds a step's rewards and lengths of the live lanes to (returns, shaped, lengths)."""
    returns, shaped, lengths = totals
    returns = returns + jnp.where(live, reward, 0.0)
    shaped = returns if transform is None else shaped + jnp.where(live, transform(reward), 0.0)
    return returns, shaped, lengths + live.astype(jnp.int32)


class _Lanes(NamedTuple):
    """What the loop carries: the time, and for every lane the world, the policy's carry, and sums."""

    time: Array
    state: PyTree
    observation: PyTree
    carry: PyTree
    live: Array
    totals: tuple[Array, ...]
    sums: Sums | None


def _device(env: Any, transform: Transform | None) -> Callable[..., Episodes]:
    horizon = horizon_of(env)

    def episodes(act: Act, context: PyTree, keys: Key, carry: PyTree, moments: Moments | None) -> Episodes:
        flat = keys.reshape(-1)
        lanes = flat.shape[0]
        start = jax.vmap(lambda key: jax.random.fold_in(key, 0))(flat)
        state, observation = jax.vmap(env.reset)(start)
        zeros = jnp.zeros(lanes, jnp.float32)

        def going(c: _Lanes) -> Array:
            return (c.time < horizon) & jnp.any(c.live)

        def step(c: _Lanes) -> _Lanes:
            both = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, c.time + 1)))(flat)
            sums = moment.accumulate(c.sums, moments, c.observation, c.live)
            actions, carry = act(context, c.observation, c.carry, both[:, 0])
            state, observation, reward, terminated = jax.vmap(env.step)(c.state, actions, both[:, 1])
            totals = _tally(c.live, reward.astype(jnp.float32), c.totals, transform)
            return _Lanes(c.time + 1, state, observation, carry, c.live & ~terminated, totals, sums)

        first = _Lanes(
            jnp.int32(0),
            state,
            observation,
            spread(carry, lanes),
            jnp.ones(lanes, bool),
            (zeros, zeros, jnp.zeros(lanes, jnp.int32)),
            moment.zero_sums(moments),
        )
        last = jax.lax.while_loop(going, step, first)
        returns, shaped, lengths = (x.reshape(keys.shape) for x in last.totals)
        return Episodes(returns, shaped, lengths, last.sums, last.time)

    return episodes


# ---- environments that Python steps ---------------------------------------------------------------------------------


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


def _host(env: HostEnv, transform: Transform | None) -> Callable[..., Episodes]:
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
        return Episodes(raw, trained, jnp.asarray(lengths.reshape(keys.shape)), sums, jnp.int32(time))

    return episodes
