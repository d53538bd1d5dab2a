"""Craftax: its eight names, stepped without automatic reset and time limit."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from esrl.core.types import Array, EsrlError, Key, PyTree, nearest
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

_WORLDS = ("Craftax-Classic-Symbolic", "Craftax-Classic-Pixels", "Craftax-Symbolic", "Craftax-Pixels")
_NAMES = [f"{world}{form}-v1" for world in _WORLDS for form in ("", "-AutoReset")]


class CraftaxEnv:
    """A Craftax world for one lane. The time limit is esrl's; the episode terminates by death, lava or victory.

    A pixel observation is float32 [H, W, 3] in 0 .. 1. A symbolic one is a float32 vector, of which Craftax says that
    it lies in 0 .. 1; mana, health or enchantments can exceed that, so its space here has no bounds.
    """

    def __init__(self, name: str, env: Any, params: Any, max_episode_steps: int) -> None:
        self.name = name
        self.env = env
        self.max_episode_steps = max_episode_steps
        self.params = params.replace(max_timesteps=NEVER)
        said = env.observation_space(params)
        vector = len(said.shape) == 1
        self.observation_space = spaces.Box(-np.inf, np.inf, said.shape, np.float32) if vector else gymnax_space(said)
        self.action_space = gymnax_space(env.action_space(params))
        self._reset, self._step = jax.jit(env.reset_env), jax.jit(env.step_env)  # traced once, whoever calls them
        self._like = jax.eval_shape(self._reset, raw_key(), self.params)[1]
        self._renderer: Any = None

    @lenient
    def reset(self, key: Key) -> tuple[PyTree, Array]:
        observation, state = self._reset(jax.random.key_data(key), self.params)
        return as_before(state, self._like), fitted(observation, self.observation_space)

    @lenient
    def step(self, state: PyTree, action: Array, key: Key) -> tuple[PyTree, Array, Array, Array]:
        out = self._step(jax.random.key_data(key), state, action, self.params)
        observation, state, reward, ended = out[:4]
        state, observation = as_before(state, self._like), fitted(observation, self.observation_space)
        return state, observation, scalar(reward, jnp.float32), scalar(ended, bool)

    @lenient
    def render(self, state: PyTree) -> np.ndarray:
        """What the player sees, as a uint8 image [H, W, 3]; the first call prepares the textures."""
        if self._renderer is None:
            self._renderer = construct(self.name, lambda: _renderer(self.name))
        return np.asarray(self._renderer(state)).clip(0, 255).astype(np.uint8)


def _renderer(name: str) -> Any:
    """`renderer(state) -> pixels in 0 .. 255` of Craftax's own middle size."""
    if "Classic" in name:
        from craftax.craftax_classic import constants, renderer
    else:
        from craftax.craftax import constants, renderer
    return jax.jit(_with_textures(name, lambda: renderer.make_craftax_pixel_renderer(constants.BLOCK_PIXEL_SIZE_IMG)))


def _with_textures(name: str, make: Any) -> Any:
    """What `make` returns, which reads textures that Craftax prepares once and keeps in its own folder."""
    try:
        return make()
    except OSError as error:
        raise EsrlError(
            f"{name}: Craftax keeps prepared textures in its own folder, which cannot be written ({error}); make one "
            "pixel environment once as a user who may write there, or use a Symbolic name"
        ) from error


def names() -> list[str]:
    """Names that `make` takes, with the suite in front."""
    package("craftax.craftax_env")
    return sorted(f"craftax/{name}" for name in _NAMES)


@lenient
def make(name: str, max_episode_steps: int | None = None, **options: Any) -> CraftaxEnv:
    """A Craftax environment.

    A name with AutoReset is the same world with the same rewards, and both forms are stepped without automatic reset
    here: Craftax's own generates a world in every step, which ES, whose episodes end together, has no use for.
    A pixel environment, or rendering, makes Craftax prepare its textures once, which takes a minute; it keeps them in
    its own folder.

    Args:
      name: as `Craftax-Classic-Symbolic-AutoReset-v1` or `Craftax-Pixels-v1`.
      max_episode_steps: steps of an episode; Craftax's own limit, `max_timesteps`, when left out: 10000 in Classic,
        else 100000.
      **options: fields of Craftax's `EnvParams` that are numbers or truth values (`day_length`, `god_mode`).

    Raises:
      EsrlError: unknown environment, a time limit below 1, options that the environment does not take, or textures that
        cannot be kept.
    """
    full = checked_name("craftax", name, _NAMES, options, max_episode_steps, "max_timesteps")

    def build() -> CraftaxEnv:
        maker = package("craftax.craftax_env").make_craftax_env_from_name
        env = _with_textures(full, lambda: maker(name.replace("-AutoReset", ""), auto_reset=False))
        defaults = env.default_params
        fields = {f.name: getattr(defaults, f.name) for f in dataclasses.fields(defaults)}
        known = {field: value for field, value in fields.items() if isinstance(value, (bool, int, float))}
        for option, value in options.items():
            if option not in known:
                raise EsrlError(f"{full}: Craftax has no parameter {option!r}{nearest(option, known)}")
            # In Python True is an int, so a truth value is compared by itself.
            wanted = (int, float) if isinstance(known[option], float) else type(known[option])
            if not isinstance(value, wanted) or isinstance(value, bool) != isinstance(known[option], bool):
                raise EsrlError(f"{full}: {option} is {value!r}, but must be like its default, {known[option]!r}")
        params = defaults.replace(**options)
        return wrap(env, full, max_episode_steps, params)

    return construct(full, build)


@lenient
def wrap(env: Any, name: str, max_episode_steps: int | None = None, params: Any = None) -> CraftaxEnv:
    """A Craftax environment that is made already; with its default parameters where none are given."""
    if max_episode_steps is not None:
        check_positive(f"{name}: max_episode_steps", max_episode_steps)
    params = env.default_params if params is None else params
    return CraftaxEnv(name, env, params, max_episode_steps or int(params.max_timesteps))
