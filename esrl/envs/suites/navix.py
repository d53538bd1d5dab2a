"""Navix: the environments that the package registers, stepped without its automatic reset and time limit."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from esrl.core.types import Array, EsrlError, Key, nearest
from esrl.envs.base import check_positive
from esrl.envs.suites._common import (
    as_before,
    checked_name,
    construct,
    fitted,
    given,
    lenient,
    package,
    raw_key,
    scalar,
)

_OBSERVATIONS = (
    "symbolic",
    "symbolic_first_person",
    "categorical",
    "categorical_first_person",
    "rgb",
    "rgb_first_person",
)


class NavixState(NamedTuple):
    """One lane's state: Navix's own, without the pictures of its grid, and the steps done (int32)."""

    world: Any
    t: Array


class NavixEnv:
    """A Navix environment for one lane. The time limit is esrl's.

    Navix keeps a picture of the grid in every state (192 bytes for each cell). Only pictures need it, and it follows
    from the grid, so it is no part of the state here: a lane of `Navix-FourRooms-v0` is 1.9 kB and not 71 kB.

    Where things move by themselves, Navix draws from a key in its state, which the reset's key decides.
    """

    def __init__(self, name: str, env: Any, observation: str, max_episode_steps: int) -> None:
        self.name = name
        self.env = env
        self.observation = observation
        self.max_episode_steps = max_episode_steps
        self.action_space = spaces.Discrete(int(env.action_space.n))
        first = jax.eval_shape(env.reset, raw_key())
        self.observation_space = _space(first.observation, observation, name)
        # a step reads the state and the time alone
        self._before = first.replace(observation=None, action=None, reward=None, step_type=None, info={})
        self._like = NavixState(first.state.replace(cache=None), first.t)

    @lenient
    def reset(self, key: Key) -> tuple[NavixState, Array]:
        return self._split(self.env.reset(jax.random.key_data(key)))

    @lenient
    def step(self, state: NavixState, action: Array, key: Key) -> tuple[NavixState, Array, Array, Array]:
        world = self._drawn(state.world) if self.observation.startswith("rgb") else state.world
        after = self.env._step(self._before.replace(state=world, t=state.t), action)
        # at the time limit a step that also ends the episode is a termination, so the limit hides none
        return *self._split(after), scalar(after.reward, jnp.float32), scalar(after.is_termination(), bool)

    @lenient
    def render(self, state: NavixState) -> np.ndarray:
        """The whole grid as a uint8 image [8 H, 8 W, 3]."""
        from navix import observations

        return np.asarray(observations.rgb(self._drawn(state.world)))

    def _split(self, timestep: Any) -> tuple[NavixState, Array]:
        """A timestep of Navix as the state and the observation."""
        state = as_before(NavixState(timestep.state.replace(cache=None), timestep.t), self._like)
        return state, fitted(timestep.observation, self.observation_space)

    def _drawn(self, world: Any) -> Any:
        """Navix's state with the picture of its grid."""
        from navix.rendering.cache import RenderingCache

        return world.replace(cache=RenderingCache.init(world.grid))


_SYMBOLS = np.array([10, 5, 3])  # the largest tag, color and state (of a door, or direction) of a cell


def _space(observation: Any, kind: str, name: str) -> spaces.Box:
    """The space of an observation. (Navix's own has too small a maximum.)"""
    # What is seen in first person is filled up beyond the walls; and in KeyCorridor a state may be 254.
    narrow = kind in ("symbolic", "categorical") and "KeyCorridor" not in name
    if observation.dtype != jnp.uint8:  # tags, of which wall is -1
        return spaces.Box(-1, int(_SYMBOLS[0]) if narrow else 255, observation.shape, np.dtype(observation.dtype))
    high = np.broadcast_to(_SYMBOLS if narrow else 255, observation.shape)
    return spaces.Box(np.zeros(observation.shape, np.uint8), high.astype(np.uint8), dtype=np.uint8)


def names() -> list[str]:
    """Names that `make` takes, with the suite in front."""
    return sorted(f"navix/{name}" for name in package("navix").registry())


@lenient
def make(name: str, max_episode_steps: int | None = None, observation: Any = "symbolic", **options: Any) -> NavixEnv:
    """A Navix environment.

    Episodes have 100 steps, the limit of `navix.make(name)`, which is how most people make one. (Constructed without
    it, Navix's classes take 4 x height x width: 256 for `DoorKey-8x8`, 1444 for `FourRooms`; `max_episode_steps=256`
    asks for that.) Rewards are the package's: 1 on reaching the goal, or on facing the right door, else 0; time is
    free.

    Args:
      name: as Navix registers it, as `Navix-DoorKey-8x8-v0`.
      max_episode_steps: steps of an episode; 100 when left out.
      observation: `symbolic` (uint8 [H, W, 3]: tag at most 10, colour, state), `categorical` (int32 [H, W] tags, wall
        -1), `rgb` (uint8 [8 H, 8 W, 3]), or one of these with `_first_person` behind it: the 7 x 7 cells before the
        player, not all of the grid. Values are left as they are, not scaled.
      **options: numbers that Navix's environment takes, such as `penality_coeff`: what the last step's reward loses
        when an episode terminates, times the part of the time limit that has gone by.

    Raises:
      EsrlError: unknown environment or observation, a time limit below 1, or options that the environment does not
        take.
    """
    navix = package("navix")
    own = given(observation=None if observation == "symbolic" else observation)
    full = checked_name("navix", name, navix.registry(), own | options, max_episode_steps, "max_steps")
    if observation not in _OBSERVATIONS:
        raise EsrlError(f"{full}: there is no observation {observation!r}{nearest(str(observation), _OBSERVATIONS)}")
    for option, value in options.items():
        if not isinstance(value, (bool, int, float)):
            raise EsrlError(f"{full}: {option} is {value!r}, but options of Navix other than observation are numbers")
    limit = {} if max_episode_steps is None else {"max_steps": max_episode_steps}

    def build() -> NavixEnv:
        env = navix.make(name, observation_fn=getattr(navix.observations, observation), **limit, **options)
        return NavixEnv(full, env, observation, int(env.max_steps))

    return construct(full, build)


@lenient
def wrap(env: Any, name: str, max_episode_steps: int | None = None) -> NavixEnv:
    """A Navix environment that is made already; its time limit is its own `max_steps` when left out."""
    if max_episode_steps is not None:
        env = env.replace(max_steps=check_positive(f"{name}: max_episode_steps", max_episode_steps))
    return NavixEnv(name, env, getattr(env.observation_fn, "__name__", ""), int(env.max_steps))
