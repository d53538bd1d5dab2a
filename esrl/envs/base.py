"""The two kinds of environments: those that JAX steps (`Env`), and those that Python steps (`HostEnv`)."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import gymnasium
from gymnasium import spaces

from esrl.core.options import Option
from esrl.core.types import Array, EsrlError, Key, PyTree
from esrl.core.types import reason_of as reason_of
from esrl.envs.faults import Faults
from esrl.envs.host_lanes import HostLanes

MAX_EPISODE_STEPS = 1000  # steps after which an episode is cut off when the environment does not say


@runtime_checkable
class Env(Protocol):
    """A world for one lane, as pure JAX functions. No automatic reset and no time limit inside.

    Attributes:
      observation_space, action_space: Gymnasium spaces.
      max_episode_steps (optional): steps after which an episode is truncated; 1000 when left out. `horizon` is an old
        name of it.
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
      max_episode_steps: steps after which an episode is truncated.
      make_lanes: `make_lanes(shape, together) -> HostLanes`, see `esrl.envs.host_lanes.lanes_maker`.
      make_one: `make_one(**kwargs) -> gymnasium.Env`, for checks and for rendering.
      recipe_name: what a recipe calls it, where that is not `name`.
      faults: what failed while its lanes were stepped; None where lanes cannot fail one by one.
      instances: environments that may exist at once, where that is bounded (a licence, a port): more episodes than
        these are played one after another.
      how: `how(lanes)` says in how many processes so many lanes are stepped, for a header; "" where one call does.
    """

    name: str
    observation_space: spaces.Space
    action_space: spaces.Space
    max_episode_steps: int
    make_lanes: Callable[..., HostLanes]
    make_one: Callable[..., gymnasium.Env]
    recipe_name: str = ""
    faults: Faults | None = None
    instances: int | None = None
    how: Callable[[int], str] | None = None


def on_device(env: Any) -> bool:
    """Whether JAX steps the environment on the device; if not, Python does, on the host."""
    return not isinstance(env, HostEnv)


def name_of(env: Any) -> str:
    """The environment's name, or its class's."""
    return str(getattr(env, "name", None) or type(env).__name__)


def recipe_name_of(env: Any) -> str:
    """What a recipe calls the environment: what `esrl.make` makes it from again, where there is such a text."""
    return str(getattr(env, "recipe_name", "") or name_of(env))


def max_episode_steps_of(env: Any, name: str = "") -> int:
    """Steps after which an episode of this environment (an object or a class) is cut off.

    Raises:
      EsrlError: a limit that is not a positive whole number.
    """
    name = name or name_of(env)
    if hasattr(env, "max_episode_steps") or not hasattr(env, "horizon"):
        return check_positive(f"{name}: max_episode_steps", getattr(env, "max_episode_steps", MAX_EPISODE_STEPS))
    _notice(name)
    return check_positive(f"{name}: horizon", env.horizon)


def rename_horizon(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Options in which the time limit is called `max_episode_steps`, not by its old name `horizon`.

    Raises:
      EsrlError: both names are given.
    """
    if "horizon" not in options:
        return options
    if "max_episode_steps" in options:
        raise EsrlError(f"{name}: max_episode_steps and horizon are the same time limit; give one of them")
    _notice(name)
    return {"max_episode_steps" if key == "horizon" else key: value for key, value in options.items()}


@functools.cache  # once for each name
def _notice(name: str) -> None:
    print(f"{name}: horizon is now called max_episode_steps; the old name still works", file=sys.stderr)


def check_positive(what: str, value: Any) -> int:
    """The value, when it is a whole number of at least 1.

    Raises:
      EsrlError: it is something else.
    """
    return Option("size", int).check(value, what)
