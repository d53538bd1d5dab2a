"""A trained agent as a plain function from an observation to an action, for any Gymnasium loop."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from esrl.algorithms.agent import Agent
from esrl.core.lanes import broadcast_lanes, reset_lanes, to_32_bit
from esrl.core.types import EsrlError, PyTree, seed_key
from esrl.training.evaluation import act_all


class Player:
    """`player(observation) -> action`, NumPy in and NumPy out; see `play_as`.

    The number of lanes is that of the observation: one without a batch axis gives one action, [L, ...] gives [L, ...].
    A policy with memory keeps it between calls: call `reset()` when an episode begins, or `reset(mask)` with a bool
    [L] for the lanes where one does. Policies without memory need neither.
    """

    def __init__(self, agent: Agent, state: Any, seed: int = 0) -> None:
        self._agent, self._state, self._key = agent, state, seed_key(seed)
        self._act = jax.jit(act_all(agent))
        self._carry: PyTree | None = None
        self._steps = 0

    def reset(self, mask: np.ndarray | None = None) -> None:
        """Forgets what is remembered, in all lanes or in those of `mask` [L] bool."""
        if mask is None or self._carry is None:
            self._carry = None
        else:
            self._carry = reset_lanes(self._carry, self._agent.policy.carry, jnp.asarray(np.asarray(mask, bool)))

    def __call__(self, observation: Any) -> Any:
        """The action for one observation, or the actions [L, ...] for a batch of them.

        Raises:
          EsrlError: an observation whose shape is not that of the environment, with or without a batch axis; or
            another number of lanes than before, for a policy with memory (call `reset()` first).
        """
        space = self._agent.env.observation_space
        given = to_32_bit(_entries(space, observation))
        extra = {np.ndim(x) - want.ndim for x, want in self._pairs(given)}
        shapes = [x.shape[x.ndim - want.ndim :] == want.shape for x, want in self._pairs(given)]
        if extra not in ({0}, {1}) or not all(shapes):
            shown = jax.tree.map(np.shape, given)
            raise EsrlError(f"an observation of shape {shown} was given, but {space} is needed, or a batch of it")
        alone = extra == {0}
        given = jax.tree.map(lambda x: x[None], given) if alone else given
        given = jax.tree.map(lambda x, want: jnp.asarray(x, want.dtype), given, self._agent.policy.observation)
        lanes = jax.tree.leaves(given)[0].shape[0]
        if self._carry is None:
            self._carry = broadcast_lanes(self._agent.policy.carry, lanes)
        held = [x.shape[0] for x in jax.tree.leaves(self._carry)]
        if held and held[0] != lanes:
            raise EsrlError(f"{lanes} observations were given, but {held[0]} lanes are remembered; call reset() first")
        keys = jax.random.split(jax.random.fold_in(self._key, self._steps), lanes)
        actions, self._carry = self._act(self._state, given, self._carry, keys)
        self._steps += 1
        out = np.array(actions, dtype=self._agent.env.action_space.dtype)
        return out[0] if alone else out

    def _pairs(self, given: PyTree) -> list[tuple[np.ndarray, Any]]:
        return list(zip(jax.tree.leaves(given), jax.tree.leaves(self._agent.policy.observation), strict=True))


def _entries(space: spaces.Space, observation: Any) -> PyTree:
    """The observation as plain dicts, tuples and arrays."""
    try:
        if isinstance(space, spaces.Dict):
            return {name: _entries(sub, observation[name]) for name, sub in space.spaces.items()}
        if isinstance(space, spaces.Tuple):
            return tuple(_entries(sub, part) for sub, part in zip(space.spaces, observation, strict=True))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise EsrlError(f"an observation without the entries of its space {space} was given") from error
    return np.asarray(observation)


def play_as(agent: Agent, state: Any, seed: int = 0) -> Player:
    """A trained agent as a plain function, `player(observation) -> action`, with the unperturbed parameters.

    Args:
      agent: what was trained.
      state: its state.
      seed: of the actions, for policies that sample.

    Returns:
      A `Player`. For a run in a folder, `esrl.load(folder).player()` is the same.
    """
    return Player(agent, state, seed)
