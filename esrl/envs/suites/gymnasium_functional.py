"""Gymnasium's functional environments (`FuncEnv`) stepped on the device: its own ids, and the user's classes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from esrl.core.types import Array, EsrlError, Key, PyTree
from esrl.envs.base import MAX_EPISODE_STEPS
from esrl.envs.suites._common import check_call, fitted, given, lenient, scalar, with_options


class FunctionalEnv:
    """A `gymnasium.experimental.functional.FuncEnv` as an environment of one lane.

    Methods are called with the arguments that they declare: FuncEnv's signatures differ between environments.
    `fixed_start` is whether all episodes may begin in the same state.
    """

    def __init__(self, env: Any, name: str, max_episode_steps: int, fixed_start: bool = False) -> None:
        self.env = env
        self.name = name
        self.max_episode_steps = max_episode_steps
        self.fixed_start = fixed_start
        self.observation_space = env.observation_space
        self.action_space, self._offset = _discrete(env.action_space)
        self._params = getattr(env, "default_params", None)

    def _call(self, method: str, *args: Any, rng: Any = None) -> Any:
        fn = getattr(self.env, method)
        declared = list(inspect.signature(fn).parameters)
        extra = {"params": self._params} if "params" in declared and self._params is not None else {}
        further = [name for name in declared[len(args) :] if name != "params"]  # "rng", or "key", or none
        return fn(*args, **dict.fromkeys(further[:1], rng), **extra)

    @lenient
    def reset(self, key: Key) -> tuple[PyTree, PyTree]:
        rng = jax.random.key_data(key)
        state = self._call("initial", rng=rng)
        action = jnp.zeros(self.env.action_space.shape, jax.dtypes.canonicalize_dtype(self.env.action_space.dtype))
        # Resets leave Python numbers in the state, whose types a step decides; a loop needs them from the beginning.
        later = jax.eval_shape(lambda state: self._call("transition", state, action, rng=rng), state)
        state = jax.tree.map(lambda x, like: jnp.broadcast_to(jnp.asarray(x, like.dtype), like.shape), state, later)
        return state, self._observe(state, key)

    @lenient
    def step(self, state: PyTree, action: Array, key: Key) -> tuple[PyTree, PyTree, Array, Array]:
        rng = jax.random.key_data(key)
        action = action if self._offset is None else jnp.reshape(action + self._offset, self.env.action_space.shape)
        after = self._call("transition", state, action, rng=rng)
        after = jax.tree.map(lambda new, old: jnp.asarray(new, jnp.result_type(old)), after, state)
        reward = scalar(self._call("reward", state, action, after, rng=rng), jnp.float32)
        ended = scalar(self._call("terminal", after, rng=rng), bool)
        return after, self._observe(after, key), reward, ended

    def _observe(self, state: PyTree, key: Key) -> PyTree:
        observation = self._call("observation", state, rng=jax.random.key_data(key))
        return fitted(observation, self.observation_space)

    def render(self, state: PyTree) -> np.ndarray:
        """A frame [H, W, 3], drawn by the environment."""
        if not hasattr(self, "_screen"):
            self._screen = self.env.render_init()
        state = jax.tree.map(np.asarray, state)
        self._screen, image = self.env.render_image(state, self._screen)
        return np.array(image)


def _discrete(space: spaces.Space) -> tuple[spaces.Space, int | None]:
    """An integer Box of one entry (CliffWalking's action) as the Discrete space that it means, and its lowest value."""
    if not isinstance(space, spaces.Box) or not np.issubdtype(space.dtype, np.integer) or space.low.size != 1:
        return space, None
    low, high = int(space.low.item()), int(space.high.item())
    return spaces.Discrete(high - low + 1), low


def functional_class(entry_point: str | Callable[..., Any]) -> type | None:
    """The `FuncEnv` class behind a registered functional environment, or None when there is none."""
    from gymnasium.envs.registration import load_env_creator
    from gymnasium.experimental.functional import FuncEnv

    creator = load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
    module = inspect.getmodule(creator)
    found = [
        cls
        for _, cls in inspect.getmembers(module, inspect.isclass)
        if issubclass(cls, FuncEnv) and cls is not FuncEnv and cls.__module__ == creator.__module__
    ]
    return found[0] if found else None


def make(identifier: str, spec: Any, max_episode_steps: int | None = None, **options: Any) -> FunctionalEnv:
    """A registered functional environment, stepped on the device.

    Args:
      identifier: as Gymnasium registers it, `phys2d/CartPole-v1`.
      spec: its `EnvSpec`.
      max_episode_steps: steps of an episode; the spec's own limit when left out.
      **options: the functional class's constructor arguments.

    Raises:
      EsrlError: the id has no functional class behind it.
    """
    cls = functional_class(spec.entry_point)
    if cls is None:
        raise EsrlError(f"gymnasium/{identifier} has no functional (JAX) class behind it")
    name = with_options(f"gymnasium/{identifier}", given(max_episode_steps=max_episode_steps) | options)
    check_call(name, cls, options)
    limit = max_episode_steps if max_episode_steps is not None else spec.max_episode_steps or MAX_EPISODE_STEPS
    return FunctionalEnv(cls(**options), name, limit, fixed_start=True)
