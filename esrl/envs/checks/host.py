"""Check an environment that Python steps, by playing in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from gymnasium import spaces

from esrl.core.types import EsrlError, PyTree, notice, seed_key
from esrl.envs.base import HostEnv, reason_of
from esrl.envs.checks.device import alike, check_step
from esrl.envs.faults import WATCH, Hang, trial_limit
from esrl.envs.suites.gymnasium_lanes import observation_of, outcome_of
from esrl.policies.policy import action_mask
from esrl.policies.random_policy import random_policy
from esrl.policies.spaces import outside, row, to_device, to_environment
from esrl.policies.spaces import seen as visible_part


def check_host(env: HostEnv, steps: int, seed: int, strict: bool = True) -> None:
    """Plays random actions in one environment that Python steps.

    Args:
      env, steps, seed: as in `check_env`.
      strict: whether an observation outside a Box's bounds, or not finite, is an error, or a notice: many a public
        package has such.

    Raises:
      EsrlError: the first thing that is wrong, in one sentence.
    """
    try:
        one = env.make_one()
    except (Exception, SystemExit) as error:
        raise EsrlError(f"{env.name} cannot be made a second time: {reason_of(error)}") from error
    call, act, told, seconds = "reset", _allowed_actions(env, seed), False, trial_limit()
    try:
        env.action_space.seed(seed)
        WATCH.start(seconds, env.name)
        # Twice: the first reset may make what the second finds.
        earlier, observation = (first(env, one.reset(seed=seed)) for _ in range(2))
        if not _repeats(env.observation_space, earlier, observation):
            advice = "begin reset with super().reset(seed=seed) and draw from self.np_random alone"
            raise EsrlError(f"{env.name}: reset with the same seed gave two different observations; {advice}")
        for t in range(min(steps, env.max_episode_steps)):
            seen, call = observation, f"step {t + 1}"
            WATCH.start(seconds, env.name)
            problem = outside(env.observation_space, seen)
            action = env.action_space.sample() if problem or act is None else act(seen, t)
            observation, reward, terminated, truncated = outcome_of(env.name, one.step(action), call)
            observation = visible_part(env.observation_space, observation)
            check_step(env.name, env.observation_space, env.action_space, seen, reward, t, strict)
            if problem and not told:  # its bounds, or NaN
                told = True
                notice(f"{env.name}: the observation after {t} steps {problem}; training takes it all the same")
            if terminated or truncated:
                call = "reset"
                observation = first(env, one.reset())
    except EsrlError:
        raise
    except Hang:
        raise EsrlError(f"{env.name}: {call} took longer than {seconds:g} s (env_timeout)") from None
    except (Exception, SystemExit) as error:  # of an environment that exits, esrl would end without a word
        _explain(env, one.unwrapped, seed)
        raise EsrlError(f"{env.name}: {call} raised {reason_of(error)}") from error
    finally:
        WATCH.stop()
        one.close()


def first(env: HostEnv, out: Any) -> PyTree:
    """The observation in what reset returned, as the policy sees it."""
    return visible_part(env.observation_space, observation_of(env.name, out))


def _explain(env: HostEnv, bare: Any, seed: int) -> None:
    """Raises `EsrlError` where the environment itself returns what a wrapper around it could not take apart."""
    try:
        observation_of(env.name, bare.reset(seed=seed))
        outcome_of(env.name, bare.step(bare.action_space.sample()), "step 1")
    except EsrlError:
        raise
    except (Exception, SystemExit):  # it fails by itself, which is said already
        return


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
