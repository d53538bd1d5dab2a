"""What stands in for an environment that is not at hand: its spaces are known, and it cannot be stepped."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NoReturn

import jax.numpy as jnp
from gymnasium import spaces

from esrl.core.types import Array, EsrlError, Key, PyTree
from esrl.policies.spaces import observation_zeros


class StandIn:
    """An environment by its spaces alone, so that a policy can act.

    Attributes:
      name, recipe_name: of the environment. observation_space, action_space, max_episode_steps: its own.
      why: what is missing, as a sentence.

    Example:
      >>> env = StandIn("far/Away", gymnasium.spaces.Box(-1, 1, (2,)), gymnasium.spaces.Discrete(2), 100, "no far here")
      >>> env.reset(jax.random.key(0))
      Traceback (most recent call last):
      esrl.core.errors.EsrlError: far/Away cannot be stepped here: no far here
    """

    def __init__(
        self,
        name: str,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        max_episode_steps: int,
        why: str,
    ) -> None:
        self.name = self.recipe_name = name
        self.observation_space, self.action_space = observation_space, action_space
        self.max_episode_steps, self.why = max_episode_steps, why
        self._traced = False

    @contextlib.contextmanager
    def traced(self) -> Iterator[None]:
        """Within, JAX may trace `reset` and `step` for their shapes, which is how an agent is made."""
        self._traced = True
        try:
            yield
        finally:
            self._traced = False

    def reset(self, key: Key) -> tuple[PyTree, PyTree]:
        """Raises `EsrlError`, which says what is missing."""
        self._check()
        return (), observation_zeros(self.observation_space)

    def step(self, state: PyTree, action: PyTree, key: Key) -> tuple[PyTree, PyTree, Array, Array]:
        """Raises `EsrlError`, which says what is missing."""
        self._check()
        return (), observation_zeros(self.observation_space), jnp.float32(0), jnp.bool_(False)

    def render(self, state: PyTree) -> NoReturn:
        """Raises `EsrlError`, which says what is missing."""
        self.refuse()

    def refuse(self, *_: Any) -> NoReturn:
        """Raises `EsrlError`, which says what is missing."""
        raise EsrlError(f"{self.name} cannot be stepped here: {self.why}")

    def _check(self) -> None:
        if not self._traced:
            self.refuse()
