"""Check an environment that Python steps, by playing in it."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from esrl.core.types import EsrlError, PyTree
from esrl.envs.base import HostEnv, reason_of
from esrl.envs.checks.device import alike, check_step, mask_parts
from esrl.policies.policy import MASK
from esrl.policies.spaces import outside


def check_host(env: HostEnv, steps: int, seed: int) -> None:
    """Plays random actions in one environment that Python steps.

    Raises:
      EsrlError: the first thing that is wrong, in one sentence.
    """
    one = env.make_one()
    call, draw = "reset", np.random.default_rng(seed)
    try:
        env.action_space.seed(seed)
        earlier, _ = one.reset(seed=seed)  # twice: the first reset may make what the second finds
        observation, _ = one.reset(seed=seed)
        if not _repeats(env.observation_space, earlier, observation):
            advice = "begin reset with super().reset(seed=seed) and draw from self.np_random alone"
            raise EsrlError(f"{env.name}: reset with the same seed gave two different observations; {advice}")
        for t in range(min(steps, env.max_episode_steps)):
            seen, call = observation, f"step {t + 1}"
            problem = outside(env.observation_space, seen)
            action = env.action_space.sample() if problem else _action(env, seen, draw)
            observation, reward, terminated, truncated, _ = one.step(action)
            check_step(env.name, env.observation_space, env.action_space, seen, reward, t)
            if np.shape(terminated) or np.shape(truncated):
                raise EsrlError(
                    f"{env.name}: {call} returns an array as terminated or truncated; each must be one bool"
                )
            if terminated or truncated:
                call = "reset"
                observation, _ = one.reset()
    except EsrlError:
        raise
    except Exception as error:
        raise EsrlError(f"{env.name}: {call} raised {reason_of(error)}") from error
    finally:
        one.close()


def _repeats(space: spaces.Space, a: PyTree, b: PyTree) -> bool:
    """Whether two observations are alike; what is outside the space is said later, and by itself."""
    return bool(outside(space, a) or outside(space, b)) or alike(a, b)


def _action(env: HostEnv, observation: PyTree, draw: np.random.Generator) -> Any:
    """A random action, an allowed one where the observation has a mask."""
    space = env.action_space
    if not isinstance(env.observation_space, spaces.Dict) or MASK not in env.observation_space.spaces:
        return space.sample()
    choices = [int(draw.choice(np.flatnonzero(part))) if part.any() else 0 for part in mask_parts(space, observation)]
    if isinstance(space, spaces.Discrete):
        return space.dtype.type(space.start + choices[0])
    assert isinstance(space, spaces.MultiDiscrete)  # `check_contract` allows a mask for no other
    return np.array(choices, space.dtype).reshape(space.nvec.shape) + space.start
