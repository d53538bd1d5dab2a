"""EnvPool: environments that C++ threads step, all live lanes of the population in one call."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from esrl.core.runtime import cores
from esrl.core.types import EsrlError, PyTree
from esrl.envs.base import MAX_EPISODE_STEPS, HostEnv, check_positive
from esrl.envs.host_lanes import Outcome
from esrl.envs.suites._common import check_reserved, checked_name, construct, given, package, quiet
from esrl.envs.suites._pools import pool_env

# Families in which EnvPool's own limit does nothing but end the episode. There the pool's limit lies one step behind
# esrl's, so that an episode that ends by itself on its last step is not called cut off, as EnvPool would say.
_ONLY_CUTS = ("envpool.atari", "envpool.box2d", "envpool.classic_control", "envpool.mujoco", "envpool.toy_text")
_NO_LIMIT = 2**31 - 1  # steps; what EnvPool says of an environment without a limit
_RESERVED = ("num_envs", "batch_size", "seed", "env_seed", "base_path", "gym_reset_return_info")


class EnvPoolPool:
    """Lanes in one EnvPool pool.

    EnvPool takes seeds at construction only, one for each lane. So a begin of every lane (a generation's) makes a new
    pool with the new seeds, and a begin of some lanes goes on with those lanes' own random numbers.
    """

    def __init__(self, name: str, arguments: dict[str, Any], lanes: int) -> None:
        self._name, self._arguments, self._lanes = name, arguments, lanes
        self.pool: Any = None

    def begin(self, ids: np.ndarray, seeds: np.ndarray) -> PyTree:
        if len(ids) == self._lanes:
            self.pool = None  # its threads end before the next pool's begin
            given = seeds.astype(np.uint32).view(np.int32)  # EnvPool takes seeds of 32 bits with a sign
            self.pool = _pool(self._name, num_envs=self._lanes, seed=given, **self._arguments)
            return self.pool.reset()[0]
        return self.pool.reset(ids.astype(np.int32))[0]

    def step(self, ids: np.ndarray, actions: PyTree) -> Outcome:
        observation, reward, terminated, truncated, _ = self.pool.step(np.asarray(actions)[ids], ids.astype(np.int32))
        return observation, reward, terminated, truncated

    def close(self) -> None:
        self.pool = None  # which ends its threads

    def draw(self) -> np.ndarray:
        """A frame [H, W, 3] of the first lane."""
        return np.asarray(self.pool.render()[0])


def _pool(name: str, **arguments: Any) -> Any:
    with quiet():  # spaces with bounds of another precision, made when they are first asked for
        pool = package("envpool").make_gymnasium(name, **arguments)
        _ = pool.observation_space, pool.action_space
    return pool


def names() -> list[str]:
    """Names that `make` takes, with the suite in front."""
    return sorted(f"envpool/{name}" for name in package("envpool").list_all_envs())


def make(name: str, max_episode_steps: int | None = None, num_threads: int | None = None, **options: Any) -> HostEnv:
    """An EnvPool environment, stepped on the host by C++ threads.

    Args:
      name: without the suite, as `CartPole-v1`.
      max_episode_steps: steps of an episode; EnvPool's own limit when left out.
      num_threads: threads that step the lanes; as many as there are cores when left out.
      **options: arguments of `envpool.make` (`repeat_action_probability`).

    Raises:
      EsrlError: unknown environment, a time limit or a number of threads below 1, options that the environment does not
        take, an environment of several players, or one whose files or libraries are missing.
    """
    full = checked_name(
        "envpool", name, package("envpool").list_all_envs(), given(num_threads=num_threads) | options, max_episode_steps
    )
    if num_threads is not None:
        check_positive(f"{full}: num_threads", num_threads)
    check_reserved(full, options, _RESERVED)
    spec = construct(full, lambda: package("envpool").make_spec(name, **options))
    if spec.config.max_num_players > 1:
        raise EsrlError(f"{full} is for several players; esrl trains one policy in one lane")
    own = int(spec.config.max_episode_steps)
    steps = max_episode_steps or (own if 0 < own < _NO_LIMIT else MAX_EPISODE_STEPS)
    module = package("envpool").registration.registry.specs[name][0]
    arguments = {**options, "num_threads": num_threads or cores()}
    if max_episode_steps or own > 0:  # else the world has a limit of its own
        arguments["max_episode_steps"] = steps + 1 if module.startswith(_ONLY_CUTS) else steps

    def pool(lanes: int, **kwargs: Any) -> EnvPoolPool:
        return EnvPoolPool(name, {**arguments, **kwargs}, lanes)

    with quiet():
        observations, actions = _widened(spec.observation_space), _widened(spec.action_space)
    return pool_env(full, observations, actions, steps, pool)


def _widened(space: spaces.Space) -> spaces.Space:
    """A space whose Boxes have no bounds where EnvPool says none: there its lowest is the least positive number."""
    if isinstance(space, spaces.Dict):  # EnvPool has no Tuples
        return spaces.Dict({name: _widened(part) for name, part in space.spaces.items()})
    if not isinstance(space, spaces.Box) or not np.issubdtype(space.dtype, np.floating):
        return space
    unsaid = space.low == np.finfo(space.dtype).tiny
    low, high = np.where(unsaid, -np.inf, space.low), np.where(unsaid, np.inf, space.high)
    return spaces.Box(low.astype(space.dtype), high.astype(space.dtype), space.shape, space.dtype)
