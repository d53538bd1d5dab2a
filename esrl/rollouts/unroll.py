"""A fixed number of steps in every lane, and a record of every decision.

Episodes go on from one unroll to the next, and a lane whose episode has ended begins another, in a new random world.
Arrays of a trajectory are [L, T]: lanes, then steps. The final observation of an episode that was cut off by its time
limit is valued before the lane begins another episode: nothing else needs it, so it is not kept.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from esrl.core.lanes import reset_lanes, reset_worlds
from esrl.core.types import Array, Key, PyTree
from esrl.envs.base import max_episode_steps_of
from esrl.rollouts.types import (
    EpisodeStats,
    Lanes,
    RecordingAct,
    StartLanes,
    Trajectory,
    Unroll,
    Value,
    first_lanes,
)


def step_keys(key: Key, ids: Array, time: Array, number: int) -> Key:
    """Keys of a step, [number, L]: from lane and time alone, so that no split over devices changes them."""
    each = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(jax.random.fold_in(key, i), time), number))
    return jnp.moveaxis(each(ids), 1, 0)


def _lane_major(x: PyTree) -> PyTree:
    return jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1), x)


def unroller(env: Any) -> tuple[StartLanes, Unroll]:
    """`start` and `unroll` of a `Runner`, for an environment that JAX steps."""
    limit = max_episode_steps_of(env)

    def start(keys: Key, carry: PyTree) -> Lanes:
        state, observation = jax.vmap(env.reset)(keys)
        return first_lanes(jnp.arange(keys.shape[0], dtype=jnp.uint32), state, observation, carry)

    def run(
        act: RecordingAct, value: Value, context: PyTree, lanes: Lanes, key: Key, carry: PyTree, length: int
    ) -> tuple[Lanes, Trajectory, Array, EpisodeStats]:
        def step(now: tuple[Lanes, EpisodeStats], t: Array) -> tuple[tuple[Lanes, EpisodeStats], Trajectory]:
            lanes, stats = now
            keys = step_keys(key, lanes.ids, t, 3)
            actions, carries, record = act(context, lanes.observation, lanes.carry, keys[0])
            state, observation, reward, terminated = jax.vmap(env.step)(lanes.state, actions, keys[1])
            reward = reward.astype(jnp.float32)
            time, total = lanes.time + 1, lanes.total + jnp.where(jnp.isfinite(reward), reward, 0.0)
            truncated = (time >= limit) & ~terminated
            done = terminated | truncated
            no_value = jnp.zeros_like(reward)
            # The network runs for this value only in steps in which a lane is cut off.
            bootstrap = jax.lax.cond(
                jnp.any(truncated), lambda: value(context, observation, carries).astype(jnp.float32), lambda: no_value
            )
            happened = Trajectory(
                lanes.observation, record, reward, terminated, truncated, jnp.where(truncated, bootstrap, 0.0)
            )
            stats = _tally(stats, done, total, time)
            state, observation = reset_worlds(env, (state, observation), done, keys[2])
            time, total = jnp.where(done, 0, time), jnp.where(done, 0.0, total)
            carries = reset_lanes(carries, carry, done)
            return (Lanes(lanes.ids, state, observation, carries, time, total), stats), happened

        none = EpisodeStats(jnp.int32(0), jnp.float32(0), jnp.float32(0))
        (lanes, stats), trajectory = jax.lax.scan(step, (lanes, none), jnp.arange(length))
        return lanes, _lane_major(trajectory), value(context, lanes.observation, lanes.carry), stats

    return start, run


def _tally(stats: EpisodeStats, done: Array, total: Array, time: Array) -> EpisodeStats:
    return EpisodeStats(
        stats.episodes + jnp.sum(done.astype(jnp.int32)),
        stats.returns + jnp.sum(jnp.where(done, total, 0.0)),
        stats.lengths + jnp.sum(jnp.where(done, time, 0).astype(jnp.float32)),
    )
