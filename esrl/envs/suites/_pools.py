"""Host environments of packages that step many worlds in C++ (EnvPool, ale-py)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import gymnasium
import jax
import numpy as np
from gymnasium import spaces

from esrl.core.types import PyTree
from esrl.envs.base import HostEnv
from esrl.envs.host_lanes import HostLanes, Pool, lanes_maker


class OneLane(gymnasium.Env):
    """A pool of one lane as a `gymnasium.Env`, for checks and for rendering."""

    def __init__(self, pool: Any, env: HostEnv, render_mode: str | None = None) -> None:
        self.observation_space, self.action_space = env.observation_space, env.action_space
        self.render_mode = render_mode
        self._pool = pool
        self._lanes = HostLanes(env.name, pool, 1, env.max_episode_steps)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[PyTree, dict]:
        super().reset(seed=seed)
        chosen = self.np_random.integers(2**32) if seed is None else seed
        return _first(self._lanes.begin(np.ones(1, bool), np.array([chosen], np.uint32))), {}

    def step(self, action: Any) -> tuple[PyTree, float, bool, bool, dict]:
        batch = jax.tree.map(lambda x: np.asarray(x)[None], action)
        after, reward, terminated, truncated = self._lanes.step(batch, np.ones(1, bool))
        return _first(after), float(reward[0]), bool(terminated[0]), bool(truncated[0]), {}

    def render(self) -> Any:
        return None if self.render_mode is None else self._pool.draw()


def pool_env(
    name: str,
    observation_space: spaces.Space,
    action_space: spaces.Space,
    max_episode_steps: int,
    make_pool: Callable[..., Pool],
) -> HostEnv:
    """The host environment of a package's pools.

    Args:
      name: what `esrl.make` calls it.
      observation_space, action_space: of one lane.
      max_episode_steps: steps of an episode.
      make_pool: `make_pool(lanes, **kwargs)`; the keyword arguments are those of `make_one`. With `render_mode` the
        pool has a method `draw() -> rgb array` for its first lane.
    """

    def one(**kwargs: Any) -> gymnasium.Env:
        # `env` is bound below, before anybody can call this.
        return OneLane(make_pool(1, **kwargs), env, kwargs.get("render_mode"))

    make_lanes = lanes_maker(name, lambda shape, together: make_pool(math.prod(shape)), max_episode_steps)
    env = HostEnv(name, observation_space, action_space, max_episode_steps, make_lanes, one)
    return env


def _first(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x[0], tree)
