"""Episodes and unrolls of many lanes that Python steps: Gymnasium's environments, and those that C++ steps.

Decisions of all lanes are one compiled call a step; what is random is drawn as on the device, from keys.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from esrl.core.lanes import broadcast_lanes, reset_lanes
from esrl.core.types import Array, EsrlError, Key, PyTree
from esrl.envs.base import HostEnv
from esrl.policies import running_statistics
from esrl.policies.running_statistics import AnyMoments
from esrl.policies.spaces import observation_zeros, to_device, to_environment
from esrl.rollouts.types import (
    Act,
    Draw,
    Episodes,
    EpisodeStats,
    Lanes,
    PlayEpisodes,
    RecordingAct,
    StartLanes,
    StreamEpisodes,
    Trajectory,
    Transform,
    Unroll,
    Value,
    first_lanes,
)
from esrl.rollouts.unroll import step_keys

_INT32 = np.uint32(0x7FFFFFFF)  # many a simulator takes its seed as an int32

# ---- whole episodes -------------------------------------------------------------------------------------------------


@lru_cache(maxsize=16)
def _decide(act: Act) -> Callable[..., Any]:
    """One step's decision for all lanes, compiled once for each act: action, carry, sums of observations, and whether
    an observation is finite."""

    def decide(
        context: PyTree, obs: PyTree, carry: PyTree, keys: Key, time: Array, live: Array, moments: PyTree, sums: PyTree
    ) -> tuple[PyTree, PyTree, PyTree, Array]:
        now = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, time + 1))[0])(keys)
        sums = running_statistics.accumulate(sums, moments, obs, live)
        actions, carry = act(context, obs, carry, now)
        return actions, carry, sums, running_statistics.finite_rows(obs)

    return jax.jit(decide)


@jax.jit
def _seeds(keys: Key) -> Array:
    """A reset seed for every lane [L]; lanes with equal keys get equal seeds."""
    return jax.vmap(lambda key: jax.random.bits(jax.random.fold_in(key, 0)))(keys) & _INT32


def players(env: HostEnv, transform: Transform | None) -> tuple[PlayEpisodes, StreamEpisodes]:
    """`episodes` and `stream` of a `Runner`, for an environment that Python steps.

    Python steps all pairs at once, however many slots there are.
    """

    def episodes(
        act: Act, context: PyTree, keys: Key, carry: PyTree, moments: AnyMoments | None, most: Array | None = None
    ) -> Episodes:
        limit = env.max_episode_steps if most is None else min(env.max_episode_steps, int(most))
        flat = keys.reshape(-1)
        seeds = np.asarray(_seeds(flat))
        lanes = env.make_lanes(keys.shape, together=True)
        decide = _decide(act)
        number = flat.shape[0]
        returns = np.zeros(number, np.float64)
        shaped = np.zeros(number, np.float64)
        lengths = np.zeros(number, np.int32)
        nonfinite = np.zeros(number, bool)
        sums = running_statistics.zero_sums(moments)
        longest = 0
        # All lanes at once, or as many as there may be environments. The others stand still meanwhile.
        each = min(number, env.instances or number)
        for first in range(0, number, each):
            live = np.zeros(number, bool)
            live[first : first + each] = True
            observation = lanes.begin(live, seeds)
            carries = broadcast_lanes(carry, number)
            time = 0
            while time < limit and live.any():
                observation = to_device(env.observation_space, observation)
                decided = decide(context, observation, carries, flat, np.int32(time), live, moments, sums)
                actions, carries, sums, sound = decided
                actions, sound = jax.device_get((actions, sound))
                observation, reward, terminated, truncated = lanes.step(to_environment(env.action_space, actions), live)
                nonfinite |= live & ~(sound & np.isfinite(reward))
                returns += reward  # 0 in lanes that do not live
                if transform is not None:
                    trained = transform(jnp.asarray(_float32(reward)), jnp.asarray(lengths))
                    shaped += np.where(live, np.asarray(trained), 0.0)
                lengths += live
                live = live & ~(terminated | truncated)
                time += 1
            longest = max(longest, time)
        total = returns if transform is None else shaped
        arrays = (_float32(returns), _float32(total), lengths, nonfinite)
        raw, trained, live_steps, bad = (jnp.asarray(x.reshape(keys.shape)) for x in arrays)
        return Episodes(raw, trained, live_steps, bad, sums, jnp.full(keys.shape[0], longest, jnp.int32))

    def stream(
        act: Act,
        shared: PyTree,
        draw: Draw,
        ids: Array,
        slots: int,
        carry: PyTree,
        moments: AnyMoments | None,
        most: Array | None = None,
    ) -> Episodes:
        drawn, keys = draw(ids)
        return episodes(act, (shared, drawn), keys, carry, moments, most)

    return episodes, stream


def _float32(rewards: np.ndarray) -> Any:
    """Rewards or returns as float32; one beyond its range is infinite there, which is counted as not finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        return rewards.astype(np.float32)


# ---- lanes that live on ---------------------------------------------------------------------------------------------


def unroller(env: HostEnv) -> tuple[StartLanes, Unroll]:
    """`start` and `unroll` of a `Runner`.

    Python's worlds are not part of a state: `Lanes.state` is a mark that says whether they are still where it left
    them. When they are not (a resumed run, an older state), every lane begins a new episode. Lanes that are unrolled
    in blocks (`esrl.cluster`) have a mark and worlds for each block.
    """
    blocks: dict[int, dict[str, Any]] = {}  # by the number of their first lane
    compiled: dict[Any, Any] = {}

    def start(keys: Key, carry: PyTree) -> Lanes:
        lanes = keys.shape[0]
        blank = broadcast_lanes(observation_zeros(env.observation_space), lanes)
        return first_lanes(jnp.arange(lanes, dtype=jnp.uint32), jnp.zeros(2, jnp.uint32), blank, carry)

    def run(
        act: RecordingAct, value: Value, context: PyTree, lanes: Lanes, key: Key, carry: PyTree, length: int
    ) -> tuple[Lanes, Trajectory, Array, EpisodeStats]:
        if (act, value) not in compiled:
            compiled[act, value] = _decisions(act, value, carry)
        decide, evaluate, draw = compiled[act, value]
        number = lanes.ids.shape[0]
        if env.instances is not None and number > env.instances:
            raise EsrlError(
                f"{env.name} has at most {env.instances} instances, but {number} are to be stepped side by side; give"
                f" num_envs={env.instances}"
            )
        seeds = np.asarray(draw(key, lanes.ids, jnp.arange(length + 1)))
        held = blocks.setdefault(int(lanes.ids[0]), {"mark": None, "worlds": None, "number": 0})
        if held["number"] != number or held["worlds"].failed:
            held.update(worlds=env.make_lanes((number,)), number=number, mark=None)
        worlds, all_lanes = held["worlds"], np.ones(number, bool)
        observation, carries = jax.device_get(lanes.observation), lanes.carry
        time, total = np.array(lanes.time), np.array(lanes.total)
        done = np.zeros(number, bool)
        # Cleared first: a call that is interrupted leaves worlds that belong to no state.
        mark, held["mark"] = held["mark"], None
        if mark is None or worlds.taken or tuple(np.asarray(lanes.state)) != mark:
            observation = to_device(env.observation_space, worlds.begin(all_lanes, seeds[length]))
            time, total, done = np.zeros_like(time), np.zeros_like(total), all_lanes
            mark = (np.uint32(random.SystemRandom().getrandbits(32)), np.uint32(0))
        steps, stats = [], [0, 0.0, 0.0]
        for t in range(length):
            actions, carries, record = decide(context, observation, carries, done, key, lanes.ids, np.int32(t))
            actions, record = jax.device_get((actions, record))
            actions = to_environment(env.action_space, actions)
            after, reward, terminated, truncated = worlds.step(actions, all_lanes)
            after, reward = to_device(env.observation_space, after), _float32(reward)
            time, total = time + 1, total + np.where(np.isfinite(reward), reward, np.float32(0))
            done = terminated | truncated
            bootstrap = np.zeros_like(reward)
            if truncated.any():
                bootstrap = np.where(truncated, np.asarray(evaluate(context, after, carries), np.float32), bootstrap)
            steps.append(Trajectory(observation, record, reward, terminated, truncated, bootstrap))
            if done.any():
                stats = [a + b for a, b in zip(stats, (done.sum(), total[done].sum(), time[done].sum()), strict=True)]
                after = to_device(env.observation_space, worlds.begin(done, seeds[t]))
                time, total = np.where(done, 0, time), np.where(done, 0, total)
            observation = after
        held["mark"] = (mark[0], mark[1] + np.uint32(1))
        carries = reset_lanes(carries, carry, jnp.asarray(done))
        numbers = (jnp.asarray(np.asarray(x, kind)) for x, kind in zip(stats, "iff", strict=True))
        last = evaluate(context, observation, carries)
        trajectory = jax.tree.map(lambda *xs: jnp.asarray(np.stack(xs, axis=1)), *steps)
        observation = jax.tree.map(jnp.asarray, observation)
        mark = jnp.asarray(np.array(held["mark"]))
        after_all = Lanes(lanes.ids, mark, observation, carries, jnp.asarray(time), jnp.asarray(total))
        return after_all, trajectory, last, EpisodeStats(*numbers)

    return start, run


def _decisions(act: RecordingAct, value: Value, carry: PyTree) -> tuple[Callable[..., Any], ...]:
    """Compiles, for worlds that Python steps, a decision, a value, and the seeds of new episodes [T + 1, L]."""

    def decide(
        context: PyTree, observation: PyTree, carries: PyTree, is_first: Array, key: Key, ids: Array, t: Array
    ) -> tuple[PyTree, PyTree, PyTree]:
        return act(context, observation, reset_lanes(carries, carry, is_first), step_keys(key, ids, t, 3)[0])

    def seeds(key: Key, ids: Array, times: Array) -> Array:
        return jax.vmap(lambda t: jax.vmap(jax.random.bits)(step_keys(key, ids, t, 3)[2]))(times) & _INT32

    return jax.jit(decide), jax.jit(value), jax.jit(seeds)
