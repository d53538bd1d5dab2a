"""Brax: every environment and physics backend that the package ships, without its wrappers."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from esrl.core.types import Array, EsrlError, Key, PyTree
from esrl.envs.base import MAX_EPISODE_STEPS, check_positive
from esrl.envs.suites._common import check_known, given, lenient, package, with_options

BACKENDS = ("spring", "positional", "generalized", "mjx")


class BraxEnv:
    """A Brax environment for one lane. Actions lie in [-1, 1]; the time limit is esrl's, not a wrapper's."""

    def __init__(self, name: str, env: Any, max_episode_steps: int, backend: str) -> None:
        self.name = name
        self.env = env
        self.max_episode_steps = max_episode_steps
        self.backend = backend
        self.observation_space = spaces.Box(-np.inf, np.inf, (env.observation_size,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (env.action_size,), np.float32)

    @lenient
    def reset(self, key: Key) -> tuple[PyTree, Array]:
        state = self.env.reset(jax.random.key_data(key))
        return state, state.obs.astype(jnp.float32)

    @lenient
    def step(self, state: PyTree, action: Array, key: Key) -> tuple[PyTree, Array, Array, Array]:
        state = self.env.step(state, action)
        return state, state.obs.astype(jnp.float32), jnp.asarray(state.reward, jnp.float32), jnp.asarray(state.done) > 0


def _envs() -> Any:
    envs = package("brax.envs")
    logging.getLogger("absl").setLevel(logging.ERROR)  # to which Brax's packages log as they are used
    return envs


def names() -> list[str]:
    """Names that `make` takes, with the suite in front."""
    return sorted(f"brax/{name}" for name in _envs()._envs if name != "fast")


@lenient
def make(name: str, backend: str = "spring", max_episode_steps: int = MAX_EPISODE_STEPS, **options: Any) -> BraxEnv:
    """A Brax environment.

    Args:
      name: without the suite, as `hopper`.
      backend: "spring", "positional", "generalized" or "mjx".
      max_episode_steps: steps of an episode; Brax's own default is 1000.
      **options: the environment's own constructor arguments.

    Raises:
      EsrlError: unknown environment or backend, or options that the environment does not take.
    """
    envs = _envs()
    check_known("brax", name, envs._envs)
    if backend not in BACKENDS:
        raise EsrlError(f"brax has no backend {backend!r}; use one of {', '.join(BACKENDS)}")
    try:
        env = _made(name, backend, options)
    except (TypeError, ValueError, AttributeError) as error:
        others = [other for other in BACKENDS if other != backend and _makes(name, other, options)]
        advice = f"; use brax/{name}?backend={others[0]}" if others else ""
        said = f"backend {backend}" + (f" and {options}" if options else "")
        raise EsrlError(f"brax/{name} cannot be made with {said}: {str(error).rstrip('.')}{advice}") from error
    limit = None if max_episode_steps == MAX_EPISODE_STEPS else max_episode_steps
    own = given(backend=None if backend == "spring" else backend, max_episode_steps=limit)
    return wrap(env, with_options(f"brax/{name}", own | options), max_episode_steps)


def _made(name: str, backend: str, options: dict[str, Any]) -> Any:
    """Brax's own environment."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Brax System, piplines and environments")
        return _envs().get_environment(name, backend=backend, **options)


def _makes(name: str, backend: str, options: dict[str, Any]) -> bool:
    """Whether an environment can be made so."""
    try:
        return _made(name, backend, options) is not None
    except (TypeError, ValueError, AttributeError):
        return False


@lenient
def wrap(env: Any, name: str, max_episode_steps: int | None = None) -> BraxEnv:
    """A Brax environment that is made already, without Brax's wrappers."""
    limit = MAX_EPISODE_STEPS if max_episode_steps is None else max_episode_steps
    return BraxEnv(name, env, check_positive(f"{name}: max_episode_steps", limit), env.backend)
