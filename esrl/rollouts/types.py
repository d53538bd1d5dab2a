"""What playing on the device and playing by Python have in common: what comes out, and how rewards add up (level 2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from esrl.core.types import Array, Key, PyTree
from esrl.policies.running_statistics import Sums

Act = Callable[[PyTree, PyTree, PyTree, Key], tuple[Array, PyTree]]
Transform = Callable[[Array], Array]


class Episodes(NamedTuple):
    """One episode of every lane.

    Attributes:
      returns: [P, S, E] sum of raw rewards.
      shaped: [P, S, E] sum of transformed rewards, the same array when there is no transform.
      lengths: [P, S, E] int32, live steps.
      sums: of live observations, or None when they are not summed.
      steps: [P] int32, steps that a pair's lanes were stepped, live or not.
    """

    returns: Array
    shaped: Array
    lengths: Array
    sums: Sums | None
    steps: Array


def tally(live: Array, reward: Array, totals: tuple[Array, ...], transform: Transform | None) -> tuple[Array, ...]:
    """Adds a step's rewards and lengths of the live lanes to (returns, shaped, lengths)."""
    returns, shaped, lengths = totals
    returns = returns + jnp.where(live, reward, 0.0)
    shaped = returns if transform is None else shaped + jnp.where(live, transform(reward), 0.0)
    return returns, shaped, lengths + live.astype(jnp.int32)
