"""gymnax: the environments that the package registers, stepped without its automatic reset and time limit."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from esrl.core.types import Array, Key, PyTree
from esrl.envs.base import check_positive
from esrl.envs.suites._common import (
    NEVER,
    as_before,
    checked_name,
    construct,
    fitted,
    gymnax_space,
    lenient,
    package,
    raw_key,
    scalar,
)

_SHOWS_LIMIT = ("DiscountingChain-bsuite",)  # the observation is the time as a part of the limit, so the limit stays


class GymnaxEnv:
    """A gymnax environment for one lane. The time limit is esrl's; some environments always begin in one state."""

    fixed_start = True

    def __init__(self, name: str, env: Any, params: Any, max_episode_steps: int, limit: int) -> None:
        self.name = name
        self.env = env
        number = type(params.max_steps_in_episode)  # an int, or a float in some
        self.params = params.replace(max_steps_in_episode=number(limit))
        self.max_episode_steps = max_episode_steps
        known = params.replace(max_steps_in_episode=number(max_episode_steps))  # some spaces have the limit as a bound
        self.observation_space = gymnax_space(env.observation_space(known))
        self.action_space = gymnax_space(env.action_space(known))
        self._reset, self._step = jax.jit(env.reset_env), jax.jit(env.step_env)  # parameters traced, as gymnax has them
        self._like = jax.eval_shape(self._first_step, raw_key())

    def _first_step(self, key: Array) -> PyTree:
        """The state after a step: resets leave Python numbers in it, whose types a step decides."""
        action = jnp.zeros(self.action_space.shape, jax.dtypes.canonicalize_dtype(self.action_space.dtype))
        return self._step(key, self._reset(key, self.params)[1], action, self.params)[1]

    @lenient
    def reset(self, key: Key) -> tuple[PyTree, PyTree]:
        observation, state = self._reset(jax.random.key_data(key), self.params)
        return as_before(state, self._like), fitted(observation, self.observation_space)

    @lenient
    def step(self, state: PyTree, action: Array, key: Key) -> tuple[PyTree, PyTree, Array, Array]:
        # 0.x says `done` fourth, 1.x `terminated` and in its six-value form `truncated` fifth; here there is no limit.
        out = self._step(jax.random.key_data(key), state, action, self.params)
        observation, state, reward, terminated = out[:4]
        state, observation = as_before(state, self._like), fitted(observation, self.observation_space)
        return state, observation, scalar(reward, jnp.float32), scalar(terminated, bool)


def names() -> list[str]:
    """Names that `make` takes, with the suite in front."""
    return sorted(f"gymnax/{name}" for name in package("gymnax").registered_envs)


@lenient
def make(name: str, max_episode_steps: int | None = None, **options: Any) -> GymnaxEnv:
    """A gymnax environment.

    Args:
      name: without the suite, as `CartPole-v1`.
      max_episode_steps: steps of an episode; gymnax's own limit, `max_steps_in_episode`, when left out.
      **options: fields of the environment's parameters (`masscart`), or arguments of its constructor.

    Raises:
      EsrlError: unknown environment, a time limit below 1, or options that the environment does not take.
    """
    gymnax = package("gymnax")
    known = gymnax.registered_envs
    full = checked_name("gymnax", name, known, options, max_episode_steps, "max_steps_in_episode")
    defaults = gymnax.make(name)[1] if options else None
    fields = {field.name for field in dataclasses.fields(defaults)} if defaults is not None else set()

    def build() -> GymnaxEnv:
        env, params = gymnax.make(name, **{key: value for key, value in options.items() if key not in fields})
        params = params.replace(**{key: value for key, value in options.items() if key in fields})
        return wrap(env, full, max_episode_steps, params)

    return construct(full, build)


@lenient
def wrap(env: Any, name: str, max_episode_steps: int | None = None, params: Any = None) -> GymnaxEnv:
    """A gymnax environment that is made already; with its default parameters where none are given."""
    if max_episode_steps is not None:
        check_positive(f"{name}: max_episode_steps", max_episode_steps)
    params = env.default_params if params is None else params
    steps = max_episode_steps or int(params.max_steps_in_episode)
    return GymnaxEnv(name, env, params, steps, steps if env.name in _SHOWS_LIMIT else NEVER)
