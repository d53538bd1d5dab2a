"""The random policy that experiments measure against: an action space's head, fed with zeros, as an esrl agent."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

import esrl
from esrl.networks import Bound, Network
from esrl.types import Array, Key, PyTree


def zeros() -> Network:
    """A network whose outputs are zero whatever it sees. Its one parameter does nothing."""

    def bind(observation: PyTree, size: int, *, observation_space: Any) -> Bound:
        def init(key: Key) -> PyTree:
            return {"unused": jnp.zeros(1)}

        def apply(params: PyTree, obs: PyTree, carry: PyTree) -> tuple[Array, PyTree]:
            return jnp.zeros(size), carry

        return Bound(init, apply)

    return Network(bind, {"network": "zeros"})


def random_agent(env: Any, lanes: int = 2, squash: str = "tanh") -> esrl.Agent:
    """An agent that draws its actions from zero outputs: uniform over the choices that an action mask leaves.

    In a Box space it draws standard normal numbers and fits them to the bounds by `squash`. It is an EGGROLL agent over
    a network without work to do, so that its `rollout` and `esrl.evaluate` use the same runner, chunks and devices as
    those of any other agent.

    Args:
      env: an environment, or whatever `esrl.make` takes.
      lanes: episodes of a rollout, an even number.
      squash: as the option of every agent.

    Raises:
      EsrlError: as `esrl.eggroll`.
    """
    options = {"deterministic": False, "normalize_observations": False, "squash": squash}
    return esrl.eggroll(env, zeros(), population=lanes, **options)
