"""A suite of esrl: the levels that Kinetix ships, one environment each, without its automatic reset and time limit."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from esrl.core.types import Array, EsrlError, Key, PyTree, nearest
from esrl.envs.base import rename_horizon
from esrl.envs.suites._common import NEVER, checked_name, construct, fitted, gymnax_space, lenient, quiet, scalar

_OBSERVATIONS = ("symbolic_flat", "symbolic_entity", "pixels")
_ACTIONS = ("multi_discrete", "continuous", "discrete")

# What a step reads and changes. The rest of Kinetix's state is the level's own or made anew by each step.
_BODY = ("position", "rotation", "velocity", "angular_velocity")
_CONTACT = ("active", "acc_impulse_normal", "acc_impulse_tangent")
_MOVING = {
    "polygon": _BODY,
    "circle": _BODY,
    "joint": ("global_position", "acc_impulse", "acc_r_impulse"),
    "thruster": ("global_position",),
    "acc_rr_manifolds": _CONTACT,
    "acc_cr_manifolds": _CONTACT,
    "acc_cc_manifolds": _CONTACT,
}


class KinetixEnv:
    """A level of Kinetix for one lane. An episode always begins as the level does; only actions tell episodes apart.

    Kinetix's state holds the level too (masses, shapes, joints). Here the level is a constant, and a lane keeps what
    moves: 2.1 kB of 8.0 kB for a level of size `l`, 0.4 kB of 1.5 kB for one of size `s`.

    An episode terminates when the green shape touches the blue one (reward 1), or a red one (reward -1), or when the
    physics gives a number that is not finite. Every step also has the dense reward.
    """

    fixed_start = True

    def __init__(self, name: str, env: Any, params: Any, level: Any, max_episode_steps: int) -> None:
        self.name = name
        self.env = env
        self.params = params.replace(max_timesteps=NEVER)
        self.max_episode_steps = max_episode_steps
        self.level = level
        self.action_space = _action_space(env.action_space(params))
        self.observation_space = gymnax_space(env.observation_space(params))
        self._first = jax.device_get(fitted(_entries(jax.jit(env.get_obs)(level)), self.observation_space))

    def reset(self, key: Key) -> tuple[PyTree, PyTree]:
        return jax.tree.map(jnp.asarray, (moving(self.level), self._first))

    @lenient
    def step(self, state: PyTree, action: Array, key: Key) -> tuple[PyTree, PyTree, Array, Array]:
        world = self._world(state)
        observation, after, reward, ended, _ = self.env.step_env(jax.random.key_data(key), world, action, self.params)
        observation = fitted(_entries(observation), self.observation_space)
        return moving(after), observation, scalar(reward, jnp.float32), scalar(ended, bool)

    @lenient
    def render(self, state: PyTree) -> np.ndarray:
        """The level as a uint8 image [500, 500, 3]."""
        from kinetix.render import make_render_pixels

        if not hasattr(self, "_draw"):
            self._draw = jax.jit(make_render_pixels(self.params, self.env.static_env_params.replace(downscale=1)))
        return np.asarray(self._draw(self._world(state)), np.uint8).transpose(1, 0, 2)[::-1]

    def _world(self, state: PyTree) -> Any:
        """Kinetix's whole state: the level, in which what moves is where the lane has it."""
        moved = {part: getattr(self.level, part).replace(**state[part]) for part in _MOVING}
        return self.level.replace(**moved, last_distance=state["last_distance"])


def moving(world: Any) -> PyTree:
    """A lane's state: of Kinetix's, what a step reads and changes."""
    parts = {part: {field: getattr(getattr(world, part), field) for field in _MOVING[part]} for part in _MOVING}
    return {**parts, "last_distance": jnp.asarray(world.last_distance, jnp.float32)}


def _entries(observation: Any) -> PyTree:
    """Kinetix's observation as its space has it: entities by their names, of pixels the image."""
    if not dataclasses.is_dataclass(observation):
        return observation
    fields = {field.name: getattr(observation, field.name) for field in dataclasses.fields(observation)}
    return fields.get("image", fields)


def _action_space(space: Any) -> spaces.Space:
    """Kinetix's action space as Gymnasium's; its MultiDiscrete is the one that gymnax does not have."""
    if hasattr(space, "number_of_dims_per_distribution"):
        return spaces.MultiDiscrete(np.asarray(space.number_of_dims_per_distribution, np.int32), dtype=np.int32)
    return gymnax_space(space)


def _check_jax() -> None:
    """Raises an EsrlError when Kinetix is installed beside a jax that it says it does not work with."""
    from packaging.requirements import Requirement

    try:
        needed = [Requirement(line) for line in importlib.metadata.requires("kinetix-env") or ()]
    except importlib.metadata.PackageNotFoundError:  # imported from a folder: nothing says what it needs
        return
    for requirement in needed:
        if requirement.name == "jax" and not requirement.specifier.contains(jax.__version__, prereleases=True):
            raise EsrlError(
                f"Kinetix {importlib.metadata.version('kinetix-env')} needs jax{requirement.specifier}, but jax "
                f"{jax.__version__} is installed; give it an environment of its own, with: pip install ./envs/kinetix"
            )


def _levels() -> list[str]:
    """The levels in the package's folder, as `l/hard_pinball`."""
    _check_jax()
    with quiet():
        import kinetix
    return sorted(f"{path.parent.name}/{path.stem}" for path in Path(kinetix.__path__[0]).glob("levels/?/*.json"))


def names() -> list[str]:
    """Names that `make` takes, with the suite in front."""
    return [f"kinetix/{level}" for level in _levels()]


@lenient
def make(
    name: str,
    max_episode_steps: int | None = None,
    observation: Any = "symbolic_flat",
    actions: Any = "multi_discrete",
    **options: Any,
) -> KinetixEnv:
    """A level of Kinetix, as Kinetix itself loads it to train on.

    Args:
      name: size and level, as `l/hard_pinball`.
      max_episode_steps: steps of an episode; Kinetix's own limit, `max_timesteps` (256), when left out.
      observation: `symbolic_flat` (float32 [F], between -10 and 10), `symbolic_entity` (a Dict of shapes, joints and
        thrusters with their masks and indices), or `pixels` (float32 [125, 125, 3], between 0 and 1).
      actions: `multi_discrete` (4 motors of 3, 2 thrusters of 2), `continuous` (float32 [6], between -1 and 1) or
        `discrete` (one of 11: one motor or thruster at a time). These are of the size, also where a level has fewer.
      **options: numbers in Kinetix's `EnvParams`. `dense_reward_scale=0.0` leaves the reward of the end alone.

    Raises:
      EsrlError: unknown level, observation or actions, a time limit below 1, options that Kinetix does not take, or a
        jax that the installed Kinetix does not work with.
    """
    if "horizon" in options:  # the old name of the time limit
        return make(name, **rename_horizon(f"kinetix/{name}", options), observation=observation, actions=actions)
    defaults = {"observation": "symbolic_flat", "actions": "multi_discrete"}
    chosen = {"observation": observation, "actions": actions}
    said = {key: value for key, value in chosen.items() if value != defaults[key]}
    full = checked_name("kinetix", name, _levels(), {**said, **options}, max_episode_steps, "max_timesteps")
    for option, known in (("observation", _OBSERVATIONS), ("actions", _ACTIONS)):
        if chosen[option] not in known:
            raise EsrlError(f"{full}: {option} is {chosen[option]!r}{nearest(str(chosen[option]), known)}")
    for option, value in options.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise EsrlError(
                f"{full}: {option} is {value!r}, but options other than observation and actions are numbers"
            )

    def build() -> KinetixEnv:
        env, params, level = _kinetix(name, observation, actions, tuple(sorted(options.items())))
        return KinetixEnv(full, env, params, level, max_episode_steps or int(params.max_timesteps))

    return construct(full, build)


@functools.cache
def _kinetix(name: str, observation: str, actions: str, options: tuple[tuple[str, float], ...]) -> tuple[Any, Any, Any]:
    """Kinetix's environment, its parameters and its state at the level's start.

    Made once: loading takes seconds, and JAX traces a step once for each of Kinetix's environments.
    """
    logging_was = logging.root.manager.disable
    logging.disable(logging.WARNING)  # one of its imports talks
    try:
        from kinetix import environment
        from kinetix.util import load_evaluation_levels
    finally:
        logging.disable(logging_was)
    params = environment.EnvParams(**dict(options))
    static = environment.static_env_params_from_size(name[0])
    level = jax.tree.map(lambda x: x[0], load_evaluation_levels([name], static)[0])
    env = environment.make_kinetix_env(
        environment.ActionType.from_string(actions),
        environment.ObservationType.from_string(observation),
        reset_fn=lambda key: level,  # environments of one reset_fn are equal to jax.jit, which then mixes up options
        env_params=params,
        static_env_params=static,
        auto_reset=False,
    )
    return env, params, level
