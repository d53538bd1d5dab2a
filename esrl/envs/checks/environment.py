"""`esrl.check_env`: the whole check of an environment, whoever steps it."""

from __future__ import annotations

from typing import Any

import gymnasium

from esrl.core.options import checked, shown
from esrl.core.types import EsrlError
from esrl.envs.base import on_device
from esrl.envs.checks import device, host
from esrl.envs.checks.contract import check_contract


@checked
def check_env(env: Any, steps: int = 100, seed: int = 0) -> None:
    """Checks an environment by its contract and by running it with random actions.

    Looked at: spaces, shapes, types; that observations lie in their space, also after an episode's end, that rewards
    are finite and action masks allow something; that reset and step keep nothing on the object; that the same key gives
    the same episode, and different keys give different first states (unless the environment sets `fixed_start`); that
    step does not begin the next episode by itself; and that lanes side by side (`jax.vmap`), and operation by operation
    where that takes no time, play the same episode as compiled.

    Args:
      env: a JAX environment, or a host one from `esrl.make`.
      steps: steps to run.
      seed: of keys and actions.

    Raises:
      EsrlError: the first thing that is wrong, in one sentence; fewer than one step.

    Example:
      >>> import esrl
      >>> esrl.check_env(esrl.make("gymnasium/phys2d/CartPole-v1"), steps=10)  # nothing is wrong
    """
    if isinstance(env, (str, type, gymnasium.Env)):
        raise EsrlError(
            f"check_env needs an environment that was made, not {shown(env)}; use esrl.check_env(esrl.make(...))"
        )
    check_contract(env)
    if on_device(env):
        device.check_device(env, steps, seed)
    else:
        host.check_host(env, steps, seed)


def check_made(env: Any) -> None:
    """What `esrl.make` checks: as `check_env`, but observations of a host environment may leave their bounds or be NaN.

    Raises:
      EsrlError: the first thing that is wrong, in one sentence.
    """
    check_contract(env)
    if on_device(env):
        device.check_device(env, 100, 0)
    else:
        host.check_host(env, 100, 0, strict=False)
