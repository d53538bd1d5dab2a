"""A trained agent as something that acts: from an observation to an action, for any loop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from esrl.algorithms.agent import Agent
from esrl.core.lanes import broadcast_lanes, reset_lanes
from esrl.core.options import shown
from esrl.core.types import EsrlError, PyTree, seed_key
from esrl.envs.base import name_of
from esrl.policies.spaces import row, to_device, to_environment
from esrl.training.evaluation import act_all
from esrl.training.inline_film import Film, film


class Trained:
    """An agent with a state: `predict(observation) -> action`, NumPy in and out.

    It acts by the unperturbed parameters, or by their average where the agent keeps one.

    `esrl.load(folder)` gives one; `agent, state, recipe = esrl.load(folder)` takes it apart. A policy with memory keeps
    it between calls: call `reset()` when an episode begins, or `reset(mask)` for the lanes where one does. Policies
    without memory need neither.

    Attributes:
      agent: what was trained. state: its state. recipe: how it was trained, None when it is not from a folder.

    Args:
      agent, state, recipe: those.
      seed: of the actions, for policies that sample.

    Example:
      >>> agent = esrl.eggroll("gymnasium/phys2d/CartPole-v1", esrl.mlp((16,)), population=32)
      >>> trained = esrl.Trained(agent, agent.init(jax.random.key(0)))
      >>> trained.predict(np.zeros(4, np.float32)) in (0, 1), trained.predict(np.zeros((8, 4), np.float32)).shape
      (True, (8,))
    """

    def __init__(self, agent: Agent, state: Any, recipe: Any = None, seed: int = 0) -> None:
        self.agent, self.state, self.recipe = agent, state, recipe
        self._key = seed_key(seed)
        self._act = jax.jit(act_all(agent))
        self._carry: PyTree | None = None
        self._steps = 0

    def __repr__(self) -> str:
        done = f"{int(self.state.env_steps):,} environment steps, generation {int(self.state.generation)}"
        what = f"{self.agent.name} on {name_of(self.agent.env)}: {self.agent.plan.num_params:,} weights"
        return f"Trained({what}, {done})"

    def __iter__(self) -> Iterator[Any]:
        return iter((self.agent, self.state, self.recipe))

    def reset(self, mask: np.ndarray | None = None) -> None:
        """Forgets what is remembered, in all lanes or in those of `mask` [L] bool."""
        if mask is None or self._carry is None:
            self._carry = None
        else:
            self._carry = reset_lanes(self._carry, self.agent.policy.carry, jnp.asarray(np.asarray(mask, bool)))

    def predict(self, observation: Any) -> Any:
        """The action for one observation, or the actions [L, ...] for a batch of them.

        Raises:
          EsrlError: an observation whose shape is not that of the environment, with or without a batch axis; or
            another number of lanes than before, for a policy with memory (call `reset()` first).
        """
        space = self.agent.env.observation_space
        try:
            given = to_device(space, _entries(space, observation))
        except (TypeError, ValueError) as error:  # text, None, or rows of several lengths
            raise EsrlError(f"{shown(observation)} was given, but an observation of {space} is needed") from error
        extra = {np.ndim(x) - want.ndim for x, want in self._pairs(given)}
        fits = [x.shape[x.ndim - want.ndim :] == want.shape for x, want in self._pairs(given)]
        if extra not in ({0}, {1}) or not all(fits):
            shapes = jax.tree.map(np.shape, given)
            raise EsrlError(f"an observation of shape {shapes} was given, but {space} is needed, or a batch of it")
        alone = extra == {0}
        given = jax.tree.map(lambda x: x[None], given) if alone else given
        lanes = jax.tree.leaves(given)[0].shape[0]
        if self._carry is None:
            self._carry = broadcast_lanes(self.agent.policy.carry, lanes)
        held = [x.shape[0] for x in jax.tree.leaves(self._carry)]
        if held and held[0] != lanes:
            raise EsrlError(f"{lanes} observations were given, but {held[0]} lanes are remembered; call reset() first")
        keys = jax.random.split(jax.random.fold_in(self._key, self._steps), lanes)
        actions, self._carry = self._act(self.state, given, self._carry, keys)
        self._steps += 1
        actions = to_environment(self.agent.env.action_space, actions)
        return row(self.agent.env.action_space, actions, 0) if alone else actions

    def film(self, seed: int = 0, form: str = "auto", max_steps: int | None = None) -> Film:
        """Plays an episode as a film that a notebook shows in place.

        Args:
          seed: of the episode's world. form: "html" (Brax), "mp4" or "gif"; "auto" is what `esrl.render` takes.
          max_steps: of the episode that are shown; None shows it to its end.

        Returns:
          A film: `film.save("episode.gif")` writes it, `film.form` says which ending it has.

        Raises:
          EsrlError: as `esrl.render`.
        """
        return film(self.agent, self.state, seed, form, max_steps)

    def _pairs(self, given: PyTree) -> list[tuple[np.ndarray, Any]]:
        return list(zip(jax.tree.leaves(given), jax.tree.leaves(self.agent.policy.observation), strict=True))


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
