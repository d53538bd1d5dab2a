"""A fixed number of steps in every lane, with whatever was decided on the way recorded (level 3).

Episodes go on from one unroll to the next, and a lane whose episode has ended begins another, in a new random world.
Arrays of a trajectory are [L, T]: lanes, then steps. The final observation of an episode that was cut off by its time
limit is valued before the lane begins anew; that is all that anyone needs of it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from esrl.core.types import Array, Key, PyTree
from esrl.envs.base import HostEnv, horizon_of
from esrl.policies.spaces import observation_zeros

Act = Callable[[PyTree, PyTree, PyTree, Key], tuple[Array, PyTree, PyTree]]
Value = Callable[[PyTree, PyTree, PyTree], Array]


class Lanes(NamedTuple):
    """Where every lane is: `ids` [L] uint32, `state` and `observation` of its world, the policy's `carry`, steps into
    the episode (`time` [L] int32), and the episode's return so far (`total` [L])."""

    ids: Array
    state: PyTree
    observation: PyTree
    carry: PyTree
    time: Array
    total: Array


class Trajectory(NamedTuple):
    """What happened, [L, T, ...].

    Attributes:
      observations: before each step.
      record: whatever `act` returned beside the action.
      rewards: float32. terminated, truncated: bool; at most one of them is true.
      final: value of the observation after the step where it was truncated, 0 elsewhere.
    """

    observations: PyTree
    record: PyTree
    rewards: Array
    terminated: Array
    truncated: Array
    final: Array


class Ended(NamedTuple):
    """Episodes that ended in an unroll: how many (`episodes`), and the sums of their `returns` and `lengths`."""

    episodes: Array
    returns: Array
    lengths: Array


class Unroll(NamedTuple):
    """How an environment is unrolled.

    Attributes:
      start: `start(keys [L], carry) -> Lanes`, every lane at the beginning of an episode.
      run: `run(act, value, context, lanes, key, carry, T) -> (lanes, trajectory, last [L], ended)`.
        `act(context, observations, carries, keys) -> (actions, carries, record)` and
        `value(context, observations, carries) -> [L]` are for all lanes at once; `carry` is one lane's at the start of
        an episode; `last` is the value of the observation after the last step.
    """

    start: Callable[[Key, PyTree], Lanes]
    run: Callable[..., tuple[Lanes, Trajectory, Array, Ended]]


def unroller(env: Any) -> Unroll:
    """How an environment is unrolled, on the device or by Python."""
    return _host(env) if isinstance(env, HostEnv) else _device(env)


def restart(carry: PyTree, fresh: PyTree, anew: Array) -> PyTree:
    """Values of all lanes [L, ...], with those of `fresh` (one lane's, or all lanes') in the lanes of `anew` [L]."""

    def one(x: Array, start: Array) -> Array:
        return jnp.where(anew.reshape(anew.shape + (1,) * (x.ndim - 1)), jnp.broadcast_to(start, x.shape), x)

    return jax.tree.map(one, carry, jax.tree.map(jnp.asarray, fresh))


def _keys(key: Key, ids: Array, time: Array, number: int) -> Key:
    """Keys of a step, [number, L]: from lane and time alone, so that no split over devices changes them."""
    each = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(jax.random.fold_in(key, i), time), number))
    return jnp.moveaxis(each(ids), 1, 0)


def spread(carry: PyTree, lanes: int) -> PyTree:
    """One lane's values for all lanes, [L, ...]."""
    return jax.tree.map(lambda x: jnp.broadcast_to(jnp.asarray(x), (lanes, *jnp.shape(x))), carry)


def _first(ids: Array, state: PyTree, observation: PyTree, carry: PyTree) -> Lanes:
    lanes = ids.shape[0]
    return Lanes(ids, state, observation, spread(carry, lanes), jnp.zeros(lanes, jnp.int32), jnp.zeros(lanes))


def _lane_major(x: PyTree) -> PyTree:
    return jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1), x)


# ---- on the device --------------------------------------------------------------------------------------------------


def _device(env: Any) -> Unroll:
    horizon = horizon_of(env)

    def start(keys: Key, carry: PyTree) -> Lanes:
        state, observation = jax.vmap(env.reset)(keys)
        return _first(jnp.arange(keys.shape[0], dtype=jnp.uint32), state, observation, carry)

    def run(
        act: Act, value: Value, context: PyTree, lanes: Lanes, key: Key, carry: PyTree, length: int
    ) -> tuple[Lanes, Trajectory, Array, Ended]:
        def step(now: tuple[Lanes, Ended], t: Array) -> tuple[tuple[Lanes, Ended], Trajectory]:
            lanes, ended = now
            keys = _keys(key, lanes.ids, t, 3)
            actions, carries, record = act(context, lanes.observation, lanes.carry, keys[0])
            state, observation, reward, terminated = jax.vmap(env.step)(lanes.state, actions, keys[1])
            reward = reward.astype(jnp.float32)
            time, total = lanes.time + 1, lanes.total + reward
            truncated = (time >= horizon) & ~terminated
            over = terminated | truncated
            no_value = jnp.zeros_like(reward)
            final = jax.lax.cond(
                jnp.any(truncated), lambda: value(context, observation, carries).astype(jnp.float32), lambda: no_value
            )
            happened = Trajectory(
                lanes.observation, record, reward, terminated, truncated, jnp.where(truncated, final, 0.0)
            )
            ended = _tally(ended, over, total, time)
            state, observation = begin(env, (state, observation), over, keys[2])
            time, total = jnp.where(over, 0, time), jnp.where(over, 0.0, total)
            return (Lanes(lanes.ids, state, observation, restart(carries, carry, over), time, total), ended), happened

        none = Ended(jnp.int32(0), jnp.float32(0), jnp.float32(0))
        (lanes, ended), trajectory = jax.lax.scan(step, (lanes, none), jnp.arange(length))
        return lanes, _lane_major(trajectory), value(context, lanes.observation, lanes.carry), ended

    return Unroll(start, run)


def begin(env: Any, world: PyTree, over: Array, keys: Key) -> PyTree:
    """State and observation of all lanes [L, ...], with a new world in the lanes of `over` [L] from their keys [L].

    Making a world may cost more than many steps in it (Craftax), and few lanes need one at a time: worlds are made a
    few at a time, until every lane that needs one has its own.
    """
    lanes = over.shape[0]
    few = max(1, lanes // 16)

    def some(now: tuple[PyTree, Array]) -> tuple[PyTree, Array]:
        world, waiting = now
        chosen = jnp.nonzero(waiting, size=few, fill_value=lanes)[0]  # `lanes` is nobody: reads the last, writes none
        fresh = jax.vmap(env.reset)(jnp.take(keys, chosen, axis=0, mode="clip"))
        world = jax.tree.map(lambda x, new: x.at[chosen].set(new, mode="drop"), world, fresh)
        return world, waiting.at[chosen].set(False, mode="drop")

    return jax.lax.while_loop(lambda now: jnp.any(now[1]), some, (world, over))[0]


def _tally(ended: Ended, over: Array, total: Array, time: Array) -> Ended:
    return Ended(
        ended.episodes + jnp.sum(over.astype(jnp.int32)),
        ended.returns + jnp.sum(jnp.where(over, total, 0.0)),
        ended.lengths + jnp.sum(jnp.where(over, time, 0).astype(jnp.float32)),
    )


# ---- environments that Python steps ---------------------------------------------------------------------------------


def _host(env: HostEnv) -> Unroll:
    """Python's worlds are not part of a state: `Lanes.state` is a mark that says whether they are still where it left
    them. When they are not (a resumed run, an older state), every lane begins a new episode."""
    held: dict[str, Any] = {"mark": None, "worlds": None}
    compiled: dict[Any, Any] = {}

    def start(keys: Key, carry: PyTree) -> Lanes:
        lanes = keys.shape[0]
        blank = spread(observation_zeros(env.observation_space), lanes)
        return _first(jnp.arange(lanes, dtype=jnp.uint32), jnp.zeros(2, jnp.uint32), blank, carry)

    def run(
        act: Act, value: Value, context: PyTree, lanes: Lanes, key: Key, carry: PyTree, length: int
    ) -> tuple[Lanes, Trajectory, Array, Ended]:
        if (act, value) not in compiled:
            compiled[act, value] = _decisions(act, value, carry)
        decide, judge, draw = compiled[act, value]
        number = lanes.ids.shape[0]
        seeds = np.asarray(draw(key, lanes.ids, jnp.arange(length + 1)))
        if held["worlds"] is None or held["worlds"].lanes != number or held["worlds"].failed:
            held.update(worlds=env.make_stream(number), mark=None)
        worlds = held["worlds"]
        observation, carries = jax.device_get(lanes.observation), lanes.carry
        time, total = np.array(lanes.time), np.array(lanes.total)
        over = np.zeros(number, bool)
        mark, held["mark"] = held["mark"], None  # whoever breaks this off leaves worlds that nobody knows
        if mark is None or tuple(np.asarray(lanes.state)) != mark:
            observation = narrow(worlds.begin(np.ones(number, bool), seeds[length]))
            time, total, over = np.zeros_like(time), np.zeros_like(total), np.ones(number, bool)
            mark = (np.uint32(random.SystemRandom().getrandbits(32)), np.uint32(0))
        steps, ended = [], [0, 0.0, 0.0]
        for t in range(length):
            actions, carries, record = decide(context, observation, carries, over, key, lanes.ids, np.int32(t))
            actions, record = jax.device_get((actions, record))
            after, reward, terminated, truncated = worlds.step(actions)
            after, reward, truncated = narrow(after), reward.astype(np.float32), truncated & ~terminated
            time, total = time + 1, total + reward
            over = terminated | truncated
            final = np.zeros_like(reward)
            if truncated.any():
                final = np.where(truncated, np.asarray(judge(context, after, carries), np.float32), final)
            steps.append(Trajectory(observation, record, reward, terminated, truncated, final))
            if over.any():
                ended = [a + b for a, b in zip(ended, (over.sum(), total[over].sum(), time[over].sum()), strict=True)]
                after = narrow(worlds.begin(over, seeds[t]))
                time, total = np.where(over, 0, time), np.where(over, 0, total)
            observation = after
        held["mark"] = (mark[0], mark[1] + np.uint32(1))
        carries = restart(carries, carry, jnp.asarray(over))
        numbers = (jnp.asarray(np.asarray(x, kind)) for x, kind in zip(ended, "iff", strict=True))
        last = judge(context, observation, carries)
        trajectory = jax.tree.map(lambda *xs: jnp.asarray(np.stack(xs, axis=1)), *steps)
        observation = jax.tree.map(jnp.asarray, observation)
        mark = jnp.asarray(np.array(held["mark"]))
        after_all = Lanes(lanes.ids, mark, observation, carries, jnp.asarray(time), jnp.asarray(total))
        return after_all, trajectory, last, Ended(*numbers)

    return Unroll(start, run)


def _decisions(act: Act, value: Value, carry: PyTree) -> tuple[Callable[..., Any], ...]:
    """What is compiled for worlds that Python steps: a decision, a value, and the seeds of new episodes [T + 1, L]."""

    def decide(
        context: PyTree, observation: PyTree, carries: PyTree, anew: Array, key: Key, ids: Array, t: Array
    ) -> tuple[Array, PyTree, PyTree]:
        return act(context, observation, restart(carries, carry, anew), _keys(key, ids, t, 3)[0])

    def seeds(key: Key, ids: Array, times: Array) -> Array:
        return jax.vmap(lambda t: jax.vmap(jax.random.bits)(_keys(key, ids, t, 3)[2]))(times)

    return jax.jit(decide), jax.jit(value), jax.jit(seeds)


def narrow(tree: PyTree) -> PyTree:
    """NumPy's 64-bit arrays as JAX's 32-bit ones."""

    def one(x: Any) -> np.ndarray:
        x = np.asarray(x)
        return x.astype(jax.dtypes.canonicalize_dtype(x.dtype)) if x.dtype.itemsize == 8 else x

    return jax.tree.map(one, tree)
