"""Check an environment that Python steps, by playing in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from gymnasium import spaces

from esrl.core.types import EsrlError, PyTree, seed_key
from esrl.envs.base import HostEnv, reason_of
from esrl.envs.checks.device import alike, check_step
from esrl.policies.policy import action_mask
from esrl.policies.random_policy import random_policy
from esrl.policies.spaces import outside, row, to_device, to_environment


def check_host(env: HostEnv, steps: int, seed: int) -> None:
    """Plays random actions in one environment that Python steps.

    Raises:
      EsrlError: the first thing that is wrong, in one sentence.
    """
    one = env.make_one()
    call, act = "reset", _allowed_actions(env, seed)
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
            action = env.action_space.sample() if problem or act is None else act(seen, t)
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


def _allowed_actions(env: HostEnv, seed: int) -> Callable[[PyTree, int], Any] | None:
    """`act(observation, t) -> action`, a random one that the observation's mask allows; None without a mask."""
    if action_mask(env.observation_space, env.action_space) is None:
        return None
    choose, key = jax.jit(random_policy(env)), seed_key(seed)

    def act(observation: PyTree, t: int) -> Any:
        chosen = choose(to_device(env.observation_space, observation), jax.random.fold_in(key, t))
        return row(env.action_space, to_environment(env.action_space, jax.tree.map(lambda x: x[None], chosen)), 0)

    return act
