"""MuJoCo Playground: the control suite, stepped by MJX without the package's automatic reset and time limit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from esrl.core.types import Array, EsrlError, Key, PyTree, nearest
from esrl.envs.base import MAX_EPISODE_STEPS, check_positive
from esrl.envs.suites._common import as_before, checked_name, construct, fitted, lenient, package, raw_key


class PlaygroundEnv:
    """A Playground environment for one lane. Actions lie in -1 .. 1; rewards are summed over an action's repeats."""

    def __init__(self, name: str, env: Any, max_episode_steps: int, repeat: int) -> None:
        self.name = name
        self.env = env
        self.max_episode_steps = max_episode_steps
        self.repeat = repeat
        self.action_space = spaces.Box(-1.0, 1.0, (int(env.action_size),), np.float32)
        self._like = jax.eval_shape(self._first_step, raw_key())
        self.observation_space = _observations(self._like.obs)

    def _first_step(self, key: Array) -> PyTree:
        """The state after a step, whose types all other states get."""
        return self.env.step(self.env.reset(key), jnp.zeros(self.action_space.shape))

    @lenient
    def reset(self, key: Key) -> tuple[PyTree, PyTree]:
        state = as_before(self.env.reset(jax.random.key_data(key)), self._like)
        return state, fitted(state.obs, self.observation_space)

    @lenient
    def step(self, state: PyTree, action: Array, key: Key) -> tuple[PyTree, PyTree, Array, Array]:
        """A step; what is random in it comes from the key in the state, which `reset` was given."""
        state = jax.tree.map(lambda x: x, state)  # its dicts are this step's own: some environments write into them

        def once(state: PyTree, _: None) -> tuple[PyTree, Array]:
            after = as_before(self.env.step(state, action), self._like)
            return after, after.reward

        state, rewards = once(state, None) if self.repeat == 1 else jax.lax.scan(once, state, None, self.repeat)
        reward = jnp.asarray(jnp.sum(rewards), jnp.float32)
        return state, fitted(state.obs, self.observation_space), reward, state.done > 0

    @lenient
    def render(self, state: PyTree) -> np.ndarray:
        """The state as an rgb array [H, W, 3]; MuJoCo draws it, so `MUJOCO_GL` must name a way that works."""
        return np.asarray(package("mujoco_playground").render_array(self.env.mj_model, state))


def _observations(like: Any) -> spaces.Space:
    """The space of an observation, or of a mapping of them (`state`, `privileged_state`): nothing says its bounds."""
    if isinstance(like, Mapping):
        return spaces.Dict({name: _observations(part) for name, part in like.items()})
    return spaces.Box(-np.inf, np.inf, like.shape, np.float32)


def _known(playground: Any) -> tuple[str, ...]:
    """The control suite, and the robots where the models that the package fetches for them are already there."""
    suite = tuple(playground.dm_control_suite.ALL_ENVS)
    return tuple(playground.registry.ALL_ENVS) if playground.registry.mjx_env.MENAGERIE_PATH.exists() else suite


def names() -> list[str]:
    """Names that `make` takes, with the suite in front."""
    return sorted(f"playground/{name}" for name in _known(package("mujoco_playground")))


@lenient
def make(name: str, max_episode_steps: int | None = None, **options: Any) -> PlaygroundEnv:
    """A Playground environment.

    Args:
      name: without the suite, as `CartpoleBalance`.
      max_episode_steps: steps of an episode; the configuration's `episode_length`, in steps of the policy, when left
        out.
      **options: entries of the environment's configuration (`ctrl_dt`, `action_repeat`), nested ones with dots. `impl`
        is `jax` when left out. The package's own default `warp` runs on CUDA alone, with limits on the contacts of all
        lanes together.

    Raises:
      EsrlError: unknown environment, one whose models have to be downloaded, a time limit below 1, or entries that the
        configuration does not have.
    """
    playground = package("mujoco_playground")
    known = playground.registry.ALL_ENVS
    full = checked_name("playground", name, known, options, max_episode_steps, "episode_length")
    if name not in _known(playground):
        needs = (
            "its models come from the MuJoCo Menagerie, which Playground downloads, and esrl does not use the network"
        )
        raise EsrlError(f"{full} cannot be made: {needs}")
    if options.get("impl") == "warp" and jax.default_backend() != "gpu":
        raise EsrlError(f"{full}: impl=warp needs a CUDA device, and there is none; leave it out, or give impl=jax")

    def build() -> PlaygroundEnv:
        config = playground.registry.get_default_config(name)
        unknown = [key for key in options if key.partition(".")[0] not in config]
        if unknown:
            raise EsrlError(f"{full}: the configuration has no entry {unknown[0]!r}{nearest(unknown[0], config)}")
        overrides = {"impl": "jax", **options} if "impl" in config else options
        env = playground.registry.load(name, config=config, config_overrides=overrides)  # config has them afterwards
        return _wrapped(env, full, config, max_episode_steps)

    return construct(full, build)


@lenient
def wrap(env: Any, name: str, max_episode_steps: int | None = None) -> PlaygroundEnv:
    """A Playground environment that is made already; time limit and action repeat are those of its configuration."""
    if max_episode_steps is not None:
        check_positive(f"{name}: max_episode_steps", max_episode_steps)
    return _wrapped(env, name, env._config, max_episode_steps)


def _wrapped(env: Any, name: str, config: Any, max_episode_steps: int | None) -> PlaygroundEnv:
    repeat = int(config.get("action_repeat", 1))
    steps = -(-int(config.get("episode_length", MAX_EPISODE_STEPS)) // repeat)
    return PlaygroundEnv(name, env, max_episode_steps or steps, repeat)
