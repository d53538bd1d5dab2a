"""What an environment is: a world that JAX steps (`Env`), or one that Python steps (`HostEnv`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from gymnasium import spaces

from esrl.core.types import Array, EsrlError, Key, PyTree

MAX_EPISODE_STEPS = 1000  # steps after which an episode is cut off when the environment does not say


@runtime_checkable
class Env(Protocol):
    """A world for one lane, as pure JAX functions. No automatic reset and no time limit inside.

    Attributes:
      observation_space, action_space: Gymnasium spaces.
      max_episode_steps (optional): steps after which an episode is truncated; 1000 when left out. `horizon` is
        another name for it.
      name (optional): what `esrl.make` would call it.
      fixed_start (optional): True when every episode begins in the same state; `check_env` asks otherwise.

    A method `render(state) -> rgb array [H, W, 3]` is optional too.
    """

    observation_space: spaces.Space
    action_space: spaces.Space

    def reset(self, key: Key) -> tuple[PyTree, PyTree]:
        """`(state, observation)` of a new episode, random by key."""

    def step(self, state: PyTree, action: Array, key: Key) -> tuple[PyTree, PyTree, Array, Array]:
        """`(state, observation, reward, terminated)`; reward a float scalar, terminated a bool scalar."""


class HostEnv(NamedTuple):
    """An environment that Python steps: Gymnasium's.

    Attributes:
      name: what `esrl.make` calls it.
      observation_space, action_space: of one lane.
      horizon: steps after which an episode is truncated.
      make_vec: `make_vec(lanes, twins) -> VectorLanes`, see `esrl.envs.suites.gymnasium_host`.
      make_stream: `make_stream(lanes) -> StreamLanes`, lanes that begin a new episode when they are told to.
      make_one: `make_one(**kwargs) -> gymnasium.Env`, for rendering.
    """

    name: str
    observation_space: spaces.Space
    action_space: spaces.Space
    horizon: int
    make_vec: Callable[..., Any]
    make_stream: Callable[[int], Any]
    make_one: Callable[..., Any]


def on_device(env: Any) -> bool:
    """Whether JAX steps the environment on the device; if not, Python does, on the host."""
    return not isinstance(env, HostEnv)


def name_of(env: Any) -> str:
    """The environment's name, or its class's."""
    return str(getattr(env, "name", None) or type(env).__name__)


def max_episode_steps_of(env: Any) -> int:
    """Steps after which an episode of this environment is cut off: its `max_episode_steps`, or `horizon`.

    Raises:
      EsrlError: a limit that is not a positive whole number.
    """
    own = "max_episode_steps" if hasattr(env, "max_episode_steps") else "horizon"
    limit = getattr(env, own, MAX_EPISODE_STEPS)
    if isinstance(limit, bool) or not isinstance(limit, (int, np.integer)) or limit < 1:
        raise EsrlError(f"{name_of(env)}: {own} is {limit!r}, but must be a whole number of at least 1")
    return int(limit)
