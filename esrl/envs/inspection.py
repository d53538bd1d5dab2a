"""Inspect an environment: its spaces, how many weights a policy has, and how fast it steps here."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from esrl.core.lanes import to_32_bit
from esrl.core.types import Array, Key, PyTree, seed_key
from esrl.envs.base import HostEnv, max_episode_steps_of, name_of, on_device
from esrl.policies.policy import action_mask, bind
from esrl.policies.random_policy import random_policy

_SECONDS = 3.0  # for the steps of one measurement; slower environments take fewer steps


class Inspection(NamedTuple):
    """An environment, and what was measured on it.

    Attributes:
      name: what `esrl.make` calls it.
      observation_space, action_space: Gymnasium's spaces as text.
      max_episode_steps: steps after which an episode is cut off.
      action_mask: whether observations say which actions are allowed.
      stepped_by: "device" or "python".
      parameters: weights of `esrl.mlp()`, 3 x 256, as its policy.
      seconds_compile: of what was measured; less when it was compiled before.
      steps_per_second: of a random policy, all lanes together, the median of three measurements.
      lanes, steps: of a measurement.
    """

    name: str
    observation_space: str
    action_space: str
    max_episode_steps: int
    action_mask: bool
    stepped_by: str
    parameters: int
    seconds_compile: float
    steps_per_second: float
    lanes: int
    steps: int


def inspect_env(env: Any, lanes: int | None = None, steps: int = 100) -> Inspection:
    """Looks at an environment, compiles it, and steps it by a random policy.

    Args:
      env: from `esrl.make`.
      lanes: episodes side by side; 256 on the device and 16 by Python unless given.
      steps: of each lane in a measurement; fewer where they would take more than three seconds.

    Raises:
      EsrlError: spaces that no policy can be made for, or an environment whose step fails.

    Example:
      >>> import esrl
      >>> found = inspect_env(esrl.make("gymnasium/phys2d/CartPole-v1"), lanes=2, steps=5)
      >>> found.action_space, found.max_episode_steps, found.stepped_by
      ('Discrete(2)', 500, 'device')
    """
    host = not on_device(env)
    lanes = lanes or (16 if host else 256)
    policy = bind(None, env.observation_space, env.action_space)
    shapes = jax.eval_shape(policy.init, jax.eval_shape(lambda: seed_key(0)))
    measure = _measure_host if host else _measure_device
    seconds, speed, counted = measure(env, lanes, min(steps, max_episode_steps_of(env)))
    return Inspection(
        name=name_of(env),
        observation_space=_space_text(env.observation_space),
        action_space=_space_text(env.action_space),
        max_episode_steps=max_episode_steps_of(env),
        action_mask=action_mask(env.observation_space, env.action_space) is not None,
        stepped_by="python" if host else "device",
        parameters=sum(math.prod(x.shape) for x in jax.tree.leaves(shapes)),
        seconds_compile=seconds,
        steps_per_second=speed,
        lanes=lanes,
        steps=counted,
    )


def _space_text(space: spaces.Space) -> str:
    """A space on one line; of a Box with many different bounds, shape and type."""
    if isinstance(space, spaces.Dict):
        return "Dict(" + ", ".join(f"{name}: {_space_text(sub)}" for name, sub in space.spaces.items()) + ")"
    text = " ".join(str(space).split())
    return f"{type(space).__name__}(..., {space.shape}, {space.dtype})" if len(text) > 200 else text


def _measure_device(env: Any, lanes: int, steps: int) -> tuple[float, float, int]:
    """Seconds of compiling, steps a second, and steps of a lane. Lanes whose episode has ended are stepped on."""
    act = random_policy(env)

    def begin(key: Key) -> PyTree:
        return jax.vmap(env.reset)(jax.random.split(key, lanes))

    def play(world: PyTree, key: Key, number: Array) -> tuple[PyTree, Array]:
        def step(t: Array, now: tuple[PyTree, Array]) -> tuple[PyTree, Array]:
            (state, observation), total = now
            keys = jax.random.split(jax.random.fold_in(key, t), (2, lanes))
            actions = jax.vmap(act)(observation, keys[0])
            state, observation, reward, _ = jax.vmap(env.step)(state, actions, keys[1])
            return (state, observation), total + reward.astype(jnp.float32)

        return jax.lax.fori_loop(0, number, step, (world, jnp.zeros(lanes)))

    key = seed_key(0)
    begun = time.perf_counter()
    # Compiled ahead, so that its seconds are not among those of the steps.
    reset = jax.jit(begin).lower(key).compile()
    run = jax.jit(play).lower(jax.eval_shape(begin, key), key, jnp.int32(1)).compile()
    seconds = time.perf_counter() - begun
    world = jax.block_until_ready(reset(key))

    def measured(number: int) -> float:
        begun = time.perf_counter()
        jax.block_until_ready(run(world, key, jnp.int32(number)))
        return time.perf_counter() - begun

    measured(1)  # the first call of a program costs more than the others
    return seconds, *_speed(measured, lanes, steps)


def _measure_host(env: HostEnv, lanes: int, steps: int) -> tuple[float, float, int]:
    """As `_measure_device`; lanes whose episode has ended begin another, which counts as time."""
    act = random_policy(env)
    choose = jax.jit(lambda observation, key: jax.vmap(act)(observation, jax.random.split(key, lanes)))
    worlds = env.make_lanes((lanes,))
    all_lanes, seeds = np.ones(lanes, bool), np.arange(lanes, dtype=np.uint32)
    seen = to_32_bit(worlds.begin(all_lanes, seeds))
    key, begun = seed_key(0), time.perf_counter()
    jax.block_until_ready(choose(seen, key))
    seconds = time.perf_counter() - begun

    def measured(number: int) -> float:
        observation = to_32_bit(worlds.begin(all_lanes, seeds))
        begun = time.perf_counter()
        for t in range(number):
            actions = jax.device_get(choose(observation, jax.random.fold_in(key, t)))
            after, _, terminated, truncated = worlds.step(actions, all_lanes)
            done = terminated | truncated
            observation = to_32_bit(worlds.begin(done, seeds + np.uint32(t + 1)) if done.any() else after)
        return time.perf_counter() - begun

    measured(1)
    return seconds, *_speed(measured, lanes, steps)


def _speed(measured: Callable[[int], float], lanes: int, steps: int) -> tuple[float, int]:
    """Lane steps a second, the median of three measurements, and the steps of each lane in one."""
    steps = max(1, min(steps, int(_SECONDS / max(measured(1), 1e-9))))
    return lanes * steps / statistics.median(measured(steps) for _ in range(3)), steps
