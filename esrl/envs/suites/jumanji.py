"""Jumanji: the environments that the package registers, with masks of what is allowed and without its time limits."""

from __future__ import annotations

import copy
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from esrl.core.types import Array, EsrlError, Key, PyTree
from esrl.envs.base import MAX_EPISODE_STEPS, check_positive
from esrl.envs.suites._common import NEVER, as_before, checked_name, construct, fitted, lenient, package, raw_key

_LIMITS = {"Game2048-v1": 5000}  # games that end by themselves, but may take longer than MAX_EPISODE_STEPS
_DOWNLOADS = ("Sokoban-v0",)  # at construction
_STEPS = ("step_count", "step")  # entries that count steps
_MASK = "action_mask"


class JumanjiEnv:
    """A Jumanji environment for one lane.

    Observations are Dicts with the names of the package's fields; a field with fields of its own is a Dict again. Truth
    values are MultiBinary, counts of steps are floats in `0 .. max_episode_steps` (so that they are normalised like
    other floats), and anything else is what the package's specification says. Rewards of several agents are summed, and
    an episode terminates when it ends for all of them.

    A mask with an entry for each joint action (Minesweeper's, of shape [10, 10]) makes the action one Discrete of all
    of them; a mask for each agent or machine (shape [A, N]) leaves it a MultiDiscrete. Either way `action_mask` is a
    MultiBinary vector with an entry for each logit of the action, which is how a policy takes it.
    """

    def __init__(self, name: str, env: Any, max_episode_steps: int) -> None:
        self.name = name
        self.env = env
        self.max_episode_steps = max_episode_steps
        specification = env.observation_spec
        self._fields = _fields(specification)
        mask = self._fields.get(_MASK)
        shape = None if mask is None else mask.shape
        self._sizes = _joint_sizes(env.action_spec, shape)
        joint = spaces.Discrete(int(np.prod(self._sizes)))
        self.action_space = joint if self._sizes else _actions(env.action_spec, shape)
        self.observation_space = _observations(specification, max_episode_steps)
        if isinstance(self.observation_space, spaces.Dict):
            self.observation_space.spaces.update(_other_parts(env, shape))
        self._remove_time_limit()
        self._like = jax.eval_shape(self._first_step, raw_key())

    def _remove_time_limit(self) -> None:
        """Jumanji ends most episodes at its limit with a discount of 0, as if they had terminated.

        The observation's bounds and the state's shapes were made with the limit, and keep it.
        """
        if not hasattr(self.env, "time_limit"):
            return
        self.env.time_limit = NEVER
        if type(self.env).__name__ == "SearchAndRescue":  # what a target is worth falls to 0 at the time limit
            rewards = self.env._reward_fn
            self.env._reward_fn = lambda found, step, _: rewards(found, step, self.max_episode_steps)

    def _first_step(self, key: Array) -> PyTree:
        """The state after a step: resets leave Python numbers in it, whose types a step decides."""
        return self.env.step(self.env.reset(key)[0], self._own_action(jnp.zeros(self.action_space.shape, jnp.int32)))[0]

    @lenient
    def reset(self, key: Key) -> tuple[PyTree, PyTree]:
        state, timestep = self.env.reset(jax.random.key_data(key))
        return as_before(state, self._like), self._observation(timestep.observation)

    @lenient
    def step(self, state: PyTree, action: Array, key: Key) -> tuple[PyTree, PyTree, Array, Array]:
        """A step; what is random in it comes from the key in the state, which `reset` was given."""
        state, timestep = self.env.step(state, self._own_action(action))
        ended = timestep.last() & jnp.all(timestep.discount == 0)
        reward = jnp.sum(jnp.asarray(timestep.reward, jnp.float32))
        return as_before(state, self._like), self._observation(timestep.observation), reward, ended

    def _own_action(self, action: Array) -> Array:
        """An action as Jumanji takes it."""
        if self._sizes:
            action = jnp.stack(jnp.unravel_index(action, self._sizes))
        return jnp.asarray(action, self.env.action_spec.dtype)

    def _observation(self, observation: Any) -> PyTree:
        named = _named(observation, self._fields) if self._fields else observation
        return fitted(named, self.observation_space)


def _fields(specification: Any) -> dict[str, Any]:
    """The specifications that a specification is made of; none for an array's."""
    return {name: part for name, part in vars(specification).items() if hasattr(part, "generate_value")}


def _named(observation: Any, fields: dict[str, Any]) -> dict[str, Any]:
    """A NamedTuple or dataclass as a dict, and so its fields."""
    parts = {name: getattr(observation, name) for name in fields}
    return {name: _named(parts[name], _fields(spec)) if _fields(spec) else parts[name] for name, spec in fields.items()}


def _observations(specification: Any, limit: int = MAX_EPISODE_STEPS, name: str = "") -> spaces.Space:
    """The space of a specification."""
    fields = _fields(specification)
    if fields:
        return spaces.Dict({name: _observations(part, limit, name) for name, part in fields.items()})
    if name in _STEPS:
        return spaces.Box(0, limit, specification.shape, np.float32)
    kind, shape, dtype = type(specification).__name__, specification.shape, np.dtype(specification.dtype)
    if dtype == np.bool_:
        return spaces.MultiBinary(shape) if shape else spaces.Box(0, 1, (), np.int8)
    if kind == "DiscreteArray":
        return spaces.Discrete(int(specification.num_values))
    if kind == "MultiDiscreteArray":
        return spaces.MultiDiscrete(np.asarray(specification.num_values))
    lowest, highest = (-np.inf, np.inf) if np.issubdtype(dtype, np.floating) else _range(dtype)
    low, high = getattr(specification, "minimum", lowest), getattr(specification, "maximum", highest)
    sides = [np.broadcast_to(np.asarray(side, dtype), shape) for side in (low, high)]
    return spaces.Box(sides[0], sides[1], shape, dtype.type)


def _other_parts(env: Any, mask: tuple[int, ...] | None) -> dict[str, spaces.Space]:
    """Entries of an observation space that are not as the package specifies them."""
    parts: dict[str, spaces.Space] = {} if mask is None else {_MASK: spaces.MultiBinary(int(np.prod(mask)))}
    if type(env).__name__ == "TSP":  # before the first city its position is -1
        parts["position"] = spaces.Discrete(env.num_cities + 1, start=-1)
    return parts


def _range(dtype: np.dtype) -> tuple[int, int]:
    limits = np.iinfo(dtype)
    return int(limits.min), int(limits.max)


def _joint_sizes(specification: Any, mask: tuple[int, ...] | None) -> tuple[int, ...]:
    """The numbers of values of an action whose mask is joint over them; empty when it is not."""
    if type(specification).__name__ != "MultiDiscreteArray":
        return ()
    sizes = tuple(int(size) for size in np.asarray(specification.num_values).ravel())
    return sizes if sizes == mask else ()


def _actions(specification: Any, mask: tuple[int, ...] | None) -> spaces.Space:
    """The action space; bounded whole numbers (MultiCVRP's) have as many values as their mask has entries."""
    whole = np.issubdtype(specification.dtype, np.integer)
    if whole and type(specification).__name__ == "BoundedArray" and mask and mask[:-1] == specification.shape:
        return spaces.MultiDiscrete(np.full(specification.shape, mask[-1]))
    return _observations(specification)


def names() -> list[str]:
    """Names that `make` takes, with the suite in front."""
    return sorted(f"jumanji/{name}" for name in package("jumanji").registered_environments() if name not in _DOWNLOADS)


@lenient
def make(name: str, max_episode_steps: int | None = None, **options: Any) -> JumanjiEnv:
    """A Jumanji environment.

    Args:
      name: without the suite, as `Snake-v1`.
      max_episode_steps: steps of an episode; Jumanji's own time limit when left out, and where it has none 1000, which
        is more than an episode of a registered instance can take. Game2048, which has no such bound, has 5000.
      **options: arguments of the environment's constructor.

    Raises:
      EsrlError: unknown environment, one that has to be downloaded, a time limit below 1, or options that the
        environment does not take.
    """
    jumanji = package("jumanji")
    known = jumanji.registered_environments()
    full = checked_name("jumanji", name, known, options, max_episode_steps, "time_limit")
    if name in _DOWNLOADS:
        raise EsrlError(f"{full} cannot be made: Jumanji downloads its levels, and esrl does not use the network")

    def build() -> JumanjiEnv:
        env = jumanji.make(name, **options)
        own = getattr(env, "time_limit", None)
        steps = max_episode_steps or own or _LIMITS.get(name, MAX_EPISODE_STEPS)
        if own not in (None, steps):
            env = jumanji.make(name, time_limit=steps, **options)
        return JumanjiEnv(full, env, int(steps))

    return construct(full, build)


@lenient
def wrap(env: Any, name: str, max_episode_steps: int | None = None) -> JumanjiEnv:
    """A Jumanji environment that is made already.

    Raises:
      EsrlError: another time limit than its own, with which its spaces were made.
    """
    own = getattr(env, "time_limit", None)
    if max_episode_steps is not None:
        check_positive(f"{name}: max_episode_steps", max_episode_steps)
    if own is not None and max_episode_steps not in (None, own):
        raise EsrlError(f"{name}: it was made with a time limit of {own}; give time_limit to its constructor instead")
    limit = _LIMITS.get(f"{type(env).__name__}-v1", MAX_EPISODE_STEPS)
    # The limit is taken out of a copy: the object stays as it was given.
    return JumanjiEnv(name, copy.copy(env), int(max_episode_steps or own or limit))
