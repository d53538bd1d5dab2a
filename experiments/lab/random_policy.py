"""The random policy that experiments measure against: an action space's head, fed with zeros, as an esrl agent."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

import esrl
from esrl.policies.heads import head


def random_agent(env: Any, lanes: int = 2, squash: str = "tanh") -> esrl.Agent:
    """An agent that draws its actions from zero outputs: uniform over the choices that an action mask leaves.

    In a Box space it draws standard normal numbers and fits them to the bounds by `squash`. It is an EGGROLL agent over
    a network whose outputs are zero and whose one parameter does nothing, so that its `rollout` and `esrl.evaluate` use
    the same runner, chunks and devices as those of any other agent.

    Args:
      env: an environment, or whatever `esrl.make` takes.
      lanes: episodes of a rollout, an even number.
      squash: as the option of every agent.

    Raises:
      EsrlError: as `esrl.eggroll`.
    """
    env = esrl.make(env)
    size = head(env.action_space).size
    network = esrl.network(lambda params, observation: jnp.zeros(size), params={"unused": jnp.zeros(1)})
    return esrl.eggroll(
        env, network, population=lanes, deterministic=False, normalize_observations=False, squash=squash
    )
