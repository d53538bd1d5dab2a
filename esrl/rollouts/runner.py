"""The runner of an environment: the one place that chooses between stepping on the device and by Python."""

from __future__ import annotations

from typing import Any

from esrl.envs.base import on_device
from esrl.envs.objectives import Objective
from esrl.rollouts import episodes, host, scoring, unroll
from esrl.rollouts.types import Runner, Transform


def runner(env: Any, transform: Transform | None = None) -> Runner:
    """How an environment is played.

    Args:
      env: from `esrl.make`, or an objective.
      transform: maps rewards to what is trained on; returns stay raw.
    """
    if isinstance(env, Objective):
        return scoring.runner(env)
    if on_device(env):
        return Runner(*episodes.players(env, transform), *unroll.unroller(env))
    return Runner(*host.players(env, transform), *host.unroller(env))
