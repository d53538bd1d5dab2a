"""A policy that knows nothing: every allowed choice is equally likely."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from esrl.core.types import Key, PyTree
from esrl.policies.heads import head
from esrl.policies.policy import action_mask, masked


def random_policy(env: Any, squash: str = "tanh") -> Callable[[PyTree, Key], PyTree]:
    """`act(observation, key) -> action` for one lane: the head of the action space fed with zeros.

    In a Box, the draw is a normal one of deviation 1, fitted to the bounds by `squash`.

    Raises:
      EsrlError: an action space without a head, or an action mask that does not fit it.
    """
    actions = head(env.action_space, squash)
    allowed = action_mask(env.observation_space, env.action_space)
    zeros, log_std = jnp.zeros(actions.size), jnp.zeros(actions.gaussians)

    def act(observation: PyTree, key: Key) -> PyTree:
        logits = zeros if allowed is None else masked(zeros, allowed(observation))
        return actions.sample(logits, log_std if actions.gaussians else None, key)

    return act
