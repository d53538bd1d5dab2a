"""Export environments to Gymnasium, for every library that steps its environments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from esrl.core.lanes import reset_lanes, reset_worlds
from esrl.core.types import Array, EsrlError, Key, PyTree, seed_key
from esrl.envs.base import check_positive, max_episode_steps_of, name_of, on_device
from esrl.envs.registry import make
from esrl.envs.suites._common import lenient
from esrl.policies.spaces import device_dtype, map_space, row


class World(NamedTuple):
    """All lanes: `state` and `observation` [L, ...], random `keys` [L], and steps into the episode, `time` [L]."""

    state: PyTree
    observation: PyTree
    keys: Key
    time: Array


class VectorEnv(gymnasium.vector.VectorEnv):
    """A JAX environment as a `gymnasium.vector.VectorEnv`; see `as_vector_env`.

    Attributes:
      done: lanes [L] whose episode ended with the last step and has not begun again.
    """

    def __init__(self, env: Any, num_envs: int, autoreset_mode: AutoresetMode) -> None:
        self.env = env
        self.num_envs = num_envs
        self.single_observation_space = env.observation_space
        self.single_action_space = env.action_space
        self.observation_space = batch_space(env.observation_space, num_envs)
        self.action_space = batch_space(env.action_space, num_envs)
        modes = ["rgb_array"] if hasattr(env, "render") else []
        self.metadata = {"autoreset_mode": autoreset_mode, "render_modes": modes, "render_fps": 50}
        self.render_mode = "rgb_array" if modes else None
        self._mode = autoreset_mode
        self._start, self._some, self._step = (jax.jit(lenient(f)) for f in _functions(env, autoreset_mode))
        self._world: World | None = None
        self.done = np.zeros(num_envs, bool)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begins episodes: in all lanes, or in those of `options["reset_mask"]` [num_envs] bool.

        Args:
          seed: an int (lane i gets seed + i), one for each lane, or None where a lane goes on from its random numbers.

        Raises:
          EsrlError: seeds or a mask of another length.
        """
        mask = np.asarray((options or {}).get("reset_mask", np.ones(self.num_envs, bool)))
        if mask.shape != (self.num_envs,) or mask.dtype != np.bool_:
            raise EsrlError(f"reset_mask is {mask.dtype}{list(mask.shape)}, but must be bool[{self.num_envs}]")
        keys = self._keys(seed)
        if self._world is None:
            self._world = self._start(keys)
        else:
            self._world = self._some(self._world, keys, jnp.asarray(mask))
        self.done = self.done & ~mask
        return self._seen(self._world.observation), {}

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One step of every lane: observations [L, ...], rewards, terminated, truncated [L] and infos.

        Raises:
          EsrlError: before the first reset; in DISABLED mode, a lane whose episode has ended and was not reset.
        """
        if self._world is None:
            raise EsrlError(f"{name_of(self.env)}: call reset before step")
        if self._mode == AutoresetMode.DISABLED and self.done.any():
            lanes = np.flatnonzero(self.done).tolist()
            raise EsrlError(
                f"{name_of(self.env)}: lanes {lanes} have ended; reset them by options={{'reset_mask': ...}}"
            )
        given = map_space(self._actions, self.env.action_space, actions)
        self._world, final, reward, terminated, truncated = self._step(self._world, given, jnp.asarray(self.done))
        reward, terminated, truncated = (np.array(x) for x in (reward, terminated, truncated))
        self.done = terminated | truncated
        infos: dict[str, Any] = {}
        if self._mode == AutoresetMode.SAME_STEP:
            if self.done.any():
                infos = {"final_obs": self._seen(final), "_final_obs": self.done.copy()}
            self.done = np.zeros(self.num_envs, bool)
        return self._seen(self._world.observation), reward.astype(np.float64), terminated, truncated, infos

    def _actions(self, space: spaces.Space, actions: Any) -> Array:
        """The actions [L, ...] of a space that is no Dict or Tuple, as the device takes them."""
        needed = (self.num_envs, *(space.shape or ()))
        if np.shape(actions) != needed:
            words = f"shape {needed} for {self.num_envs} lanes of {space}"
            raise EsrlError(f"{name_of(self.env)}: actions have shape {np.shape(actions)}, but need {words}")
        return jnp.asarray(np.asarray(actions), device_dtype(space))

    def render(self) -> tuple[np.ndarray, ...] | None:
        """A frame [H, W, 3] for each lane, where the environment draws itself."""
        if self.render_mode is None or self._world is None:
            return None
        lanes = (jax.tree.map(lambda x, i=i: x[i], self._world.state) for i in range(self.num_envs))
        return tuple(np.asarray(self.env.render(state)) for state in lanes)

    def _keys(self, seed: int | Sequence[int | None] | None) -> Key:
        """A key for each lane [L]: its seed's, or where that is None the lane's own."""
        if seed is None:
            seeds: list[int | None] = [None] * self.num_envs
        elif isinstance(seed, (int, np.integer)):
            seeds = [int(seed) + i for i in range(self.num_envs)]
        else:
            seeds = list(seed)
        if len(seeds) != self.num_envs:
            raise EsrlError(f"{len(seeds)} seeds were given, but there are {self.num_envs} lanes")
        numbers = [int(self.np_random.integers(2**32)) if s is None else int(s) % 2**32 for s in seeds]
        keys = jax.vmap(lambda i: jax.random.fold_in(seed_key(0), i))(np.asarray(numbers, np.uint32))
        if self._world is None:  # no lane has random numbers of its own yet
            return keys
        return reset_lanes(self._world.keys, keys, jnp.asarray([s is not None for s in seeds]))

    def _seen(self, observation: PyTree) -> Any:
        """Device arrays as NumPy ones (copies that may be written to), in the dtypes of their space."""
        return map_space(lambda sub, x: np.array(x, dtype=sub.dtype), self.single_observation_space, observation)


def _functions(env: Any, mode: AutoresetMode) -> tuple[Callable[..., Any], ...]:
    """`start(keys)`, `some(world, keys, mask)` and `step(world, actions, done)`, for all lanes."""
    limit = max_episode_steps_of(env)

    def start(keys: Key) -> World:
        keys, first = _next(keys, 2)
        state, observation = jax.vmap(env.reset)(first)
        return World(state, observation, keys, jnp.zeros(keys.shape[0], jnp.int32))

    def some(world: World, keys: Key, mask: Array) -> World:
        keys, first = _next(keys, 2)
        state, observation = reset_worlds(env, (world.state, world.observation), mask, first)
        return World(state, observation, reset_lanes(world.keys, keys, mask), jnp.where(mask, 0, world.time))

    def step(world: World, actions: PyTree, done: Array) -> tuple[World, PyTree, Array, Array, Array]:
        keys, noise, first = _next(world.keys, 3)
        state, observation, reward, terminated = jax.vmap(env.step)(world.state, actions, noise)
        time = world.time + 1
        truncated = (time >= limit) & ~terminated
        final = observation  # where an episode ends, a reset replaces the observation below
        is_first = jnp.zeros_like(done)
        if mode == AutoresetMode.SAME_STEP:
            is_first = terminated | truncated
        elif mode == AutoresetMode.NEXT_STEP:
            # In lanes that were done this step only begins the next episode: its action and its reward do not count.
            is_first = done
            reward, terminated, truncated = (
                jnp.where(done, jnp.zeros_like(x), x) for x in (reward, terminated, truncated)
            )
        if mode != AutoresetMode.DISABLED:
            state, observation = reset_worlds(env, (state, observation), is_first, first)
        return World(state, observation, keys, jnp.where(is_first, 0, time)), final, reward, terminated, truncated

    return start, some, step


def _next(keys: Key, number: int) -> tuple[Key, ...]:
    """`number` new keys of every lane, each [L]."""
    split = jax.vmap(lambda key: jax.random.split(key, number))(keys)
    return tuple(split[:, i] for i in range(number))


class SingleEnv(gymnasium.Env):
    """A JAX environment as a `gymnasium.Env`; see `as_gymnasium`."""

    def __init__(self, env: Any) -> None:
        self._lanes = VectorEnv(env, 1, AutoresetMode.DISABLED)
        self.env = env
        self.observation_space = env.observation_space
        self.action_space = env.action_space
        self.render_mode = self._lanes.render_mode
        self.metadata = {k: v for k, v in self._lanes.metadata.items() if k != "autoreset_mode"}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begins an episode; the same seed begins the same one."""
        super().reset(seed=seed)
        number = int(self.np_random.integers(2**31))  # without a seed Gymnasium's generator goes on
        observation, info = self._lanes.reset(seed=number)
        return row(self.observation_space, observation, 0), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One step; after an episode's end a reset must follow.

        Raises:
          EsrlError: before the first reset, after an episode's end, or an action of another shape.
        """
        if self._lanes.done.any():
            raise EsrlError(f"{name_of(self.env)}: the episode has ended; call reset before the next step")
        observation, reward, terminated, truncated, info = self._lanes.step(
            map_space(lambda _, x: np.asarray(x)[None], self.action_space, action)
        )
        seen = row(self.observation_space, observation, 0)
        return seen, float(reward[0]), bool(terminated[0]), bool(truncated[0]), info

    def render(self) -> np.ndarray | None:
        """A frame [H, W, 3], where the environment draws itself."""
        frames = self._lanes.render()
        return None if frames is None else frames[0]


def as_vector_env(env: Any, num_envs: int, autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP) -> VectorEnv:
    """Any JAX environment of esrl as a `gymnasium.vector.VectorEnv`: all lanes in one compiled step.

    The environment's time limit truncates. Observations and rewards are NumPy arrays, in the dtypes of the spaces.

    Args:
      env: a name or object, as `esrl.make` takes it.
      num_envs: lanes.
      autoreset_mode: Gymnasium's: NEXT_STEP (the step after an end begins the next episode), SAME_STEP (an end's own
        step does, with the last observation in `infos["final_obs"]`), or DISABLED (`reset` with a `reset_mask` does).

    Raises:
      EsrlError: an environment that Python steps (Gymnasium has it already), fewer than one lane, or another mode.

    Example:
      >>> import esrl
      >>> lanes = esrl.as_vector_env("gymnasium/phys2d/CartPole-v1", 4)
      >>> observations, _ = lanes.reset(seed=0)
      >>> observations, rewards, terminated, truncated, _ = lanes.step([0, 1, 0, 1])
      >>> observations.shape, rewards.tolist()
      ((4, 4), [1.0, 1.0, 1.0, 1.0])
    """
    check_positive("num_envs", num_envs)
    try:
        mode = AutoresetMode(autoreset_mode)
    except ValueError as error:
        known = ", ".join(repr(m.value) for m in AutoresetMode)
        raise EsrlError(f"autoreset_mode is {autoreset_mode!r}, but must be one of {known}") from error
    made = make(env)
    if not on_device(made):
        raise EsrlError(f"{made.name} is stepped by Python; make its lanes with gymnasium.make_vec")
    return VectorEnv(made, num_envs, mode)


def as_gymnasium(env: Any) -> gymnasium.Env:
    """Any environment of esrl as a `gymnasium.Env` of one lane; one that Python steps is made as it is.

    Args:
      env: a name or object, as `esrl.make` takes it.

    Example:
      >>> import esrl
      >>> env = esrl.as_gymnasium("gymnasium/phys2d/CartPole-v1")
      >>> observation, _ = env.reset(seed=0)
      >>> observation, reward, terminated, truncated, _ = env.step(1)
      >>> observation.shape, reward
      ((4,), 1.0)
    """
    made = make(env)
    return SingleEnv(made) if on_device(made) else made.make_one()
