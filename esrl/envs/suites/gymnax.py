"""gymnax: the environments that the package registers, stepped without its automatic reset and time limit."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from esrl.core.types import Array, EsrlError, Key, PyTree
from esrl.envs.suites._lenient import lenient
from esrl.envs.suites._names import with_options
from esrl.envs.suites._suite import as_before, check_horizon, check_known, construct, fitted, gymnax_space, quiet

_NEVER = 2**30  # steps; gymnax's own time limit, which its `done` would mix with termination
_SHOWS_LIMIT = ("DiscountingChain-bsuite",)  # the observation is the time as a part of the limit, so the limit stays


class GymnaxEnv:
    """A gymnax environment for one lane. The time limit is esrl's; some environments always begin in one state."""

    fixed_start = True

    def __init__(self, name: str, env: Any, params: Any, horizon: int, limit: int) -> None:
        self.name = name
        self.env = env
        number = type(params.max_steps_in_episode)  # an int, or a float in some
        self.params = params.replace(max_steps_in_episode=number(limit))
        self.horizon = horizon
        known = params.replace(max_steps_in_episode=number(horizon))  # some spaces have the limit as a bound
        self.observation_space = gymnax_space(env.observation_space(known))
        self.action_space = gymnax_space(env.action_space(known))
        self._reset, self._step = jax.jit(env.reset_env), jax.jit(env.step_env)  # parameters traced, as gymnax has them
        key = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0, impl="threefry2x32")))
        self._like = jax.eval_shape(self._first_step, key)

    def _first_step(self, key: Array) -> PyTree:
        """The state after a step: resets leave Python numbers in it, whose types a step decides."""
        action = jnp.zeros(self.action_space.shape, jax.dtypes.canonicalize_dtype(self.action_space.dtype))
        return self._step(key, self._reset(key, self.params)[1], action, self.params)[1]

    @lenient
    def reset(self, key: Key) -> tuple[PyTree, PyTree]:
        observation, state = self._reset(jax.random.key_data(key), self.params)
        return self._state(state), self._observation(observation)

    @lenient
    def step(self, state: PyTree, action: Array, key: Key) -> tuple[PyTree, PyTree, Array, Array]:
        # 0.x says `done` fourth, 1.x `terminated` and in its six-value form `truncated` fifth; here there is no limit.
        out = self._step(jax.random.key_data(key), state, action, self.params)
        observation, state, reward, terminated = out[:4]
        ended = jnp.asarray(terminated, bool).reshape(())
        return self._state(state), self._observation(observation), jnp.asarray(reward, jnp.float32).reshape(()), ended

    def _state(self, state: PyTree) -> PyTree:
        return as_before(state, self._like)

    def _observation(self, observation: PyTree) -> PyTree:
        return fitted(observation, self.observation_space)


def _gymnax() -> Any:
    """The `gymnax` module, without the lines that its imports print."""
    with quiet():
        import gymnax
    return gymnax


def names() -> list[str]:
    """Names that `make` takes, with the suite in front."""
    return sorted(f"gymnax/{name}" for name in _gymnax().registered_envs)


@lenient
def make(name: str, horizon: int | None = None, **options: Any) -> GymnaxEnv:
    """A gymnax environment.

    Args:
      name: without the suite, as `CartPole-v1`.
      horizon: steps of an episode; gymnax's own limit, `max_steps_in_episode`, when left out.
      **options: fields of the environment's parameters (`masscart`), or arguments of its constructor.

    Raises:
      EsrlError: unknown environment, a horizon below 1, or options that the environment does not take.
    """
    gymnax = _gymnax()
    check_known("gymnax", name, gymnax.registered_envs)
    full = with_options(f"gymnax/{name}", {"horizon": horizon, **options})
    check_horizon(full, horizon)
    if "max_steps_in_episode" in options:
        raise EsrlError(f"{full}: set the time limit as horizon, not as max_steps_in_episode")
    defaults = gymnax.make(name)[1] if options else None
    fields = {field.name for field in dataclasses.fields(defaults)} if defaults is not None else set()

    def build() -> GymnaxEnv:
        env, params = gymnax.make(name, **{key: value for key, value in options.items() if key not in fields})
        params = params.replace(**{key: value for key, value in options.items() if key in fields})
        steps = int(params.max_steps_in_episode) if horizon is None else horizon
        return GymnaxEnv(full, env, params, steps, steps if name in _SHOWS_LIMIT else _NEVER)

    return construct(full, build)
