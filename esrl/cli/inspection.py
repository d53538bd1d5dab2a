"""Inspect an environment: its spaces, how many weights a policy has, and how fast a random policy steps it here."""

from __future__ import annotations

import math
import statistics
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from gymnasium import spaces

from esrl.algorithms.random_agent import random
from esrl.cli.dry_run import shortened
from esrl.core.compile_time import compile_seconds
from esrl.core.types import seed_key
from esrl.envs.base import max_episode_steps_of, name_of, on_device
from esrl.policies.policy import action_mask, bind

_LONG = 1.0  # seconds: a measurement that takes longer is not repeated


class Inspection(NamedTuple):
    """An environment, and what was measured on it.

    Attributes:
      name: what `esrl.make` calls it.
      observation_space, action_space: Gymnasium's spaces as text.
      max_episode_steps: steps after which an episode is cut off.
      action_mask: whether observations say which actions are allowed.
      stepped_by: "device" or "python".
      parameters: weights of `esrl.mlp()`, 3 x 256, as its policy.
      seconds_compile: of what was measured; less when it was compiled before.
      steps_per_second: of a random policy, all lanes together, the median of up to three measurements.
      lanes, steps: of a measurement; `steps` are those of the longest episode.
    """

    name: str
    observation_space: str
    action_space: str
    max_episode_steps: int
    action_mask: bool
    stepped_by: str
    parameters: int
    seconds_compile: float
    steps_per_second: float
    lanes: int
    steps: int


def inspect_env(env: Any, lanes: int | None = None, steps: int = 100) -> Inspection:
    """Looks at an environment, compiles it, and plays episodes by a random policy.

    Args:
      env: from `esrl.make`.
      lanes: episodes side by side; 256 on the device and 16 by Python unless given.
      steps: of an episode at most, where the environment's time limit can be set.

    Raises:
      EsrlError: spaces that no policy can be made for, or an environment whose step fails.
    """
    device = on_device(env)
    lanes = lanes or (256 if device else 16)
    policy = bind(None, env.observation_space, env.action_space)
    shapes = jax.eval_shape(policy.init, jax.eval_shape(lambda: seed_key(0)))
    agent = random(shortened(env, steps) or env, population=lanes)
    state, before = agent.init(seed_key(0)), compile_seconds()
    jax.block_until_ready(agent.rollout(state))
    seconds = compile_seconds() - before
    rates: list[float] = []
    longest = 0
    while len(rates) < 3:
        begun = time.perf_counter()
        lengths = np.asarray(jax.block_until_ready(agent.rollout(state)).lengths)
        spent, longest = time.perf_counter() - begun, int(lengths.max())
        # On the device a lane that is done is stepped on until the last one is.
        rates.append((lanes * longest if device else lengths.sum()) / spent)
        if spent > _LONG:
            break
    return Inspection(
        name=name_of(env),
        observation_space=_space_text(env.observation_space),
        action_space=_space_text(env.action_space),
        max_episode_steps=max_episode_steps_of(env),
        action_mask=action_mask(env.observation_space, env.action_space) is not None,
        stepped_by="device" if device else "python",
        parameters=sum(math.prod(x.shape) for x in jax.tree.leaves(shapes)),
        seconds_compile=seconds,
        steps_per_second=statistics.median(rates),
        lanes=lanes,
        steps=longest,
    )


def _space_text(space: spaces.Space) -> str:
    """A space on one line; of a Box with many different bounds, shape and type."""
    if isinstance(space, spaces.Dict):
        return "Dict(" + ", ".join(f"{name}: {_space_text(sub)}" for name, sub in space.spaces.items()) + ")"
    text = " ".join(str(space).split())
    return f"{type(space).__name__}(..., {space.shape}, {space.dtype})" if len(text) > 200 else text
