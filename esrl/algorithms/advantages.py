"""Returns and advantages of trajectories that end in two ways.

Arrays are [L, T]: lanes, and steps of an unroll. An episode that is *terminated* has no future; one that is *truncated*
(by its time limit) has, and the value of its final observation stands for it.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from esrl.core.types import Array


def next_values(values: Array, final: Array, last: Array, truncated: Array) -> Array:
    """The value of what follows each step, [L, T].

    Args:
      values: [L, T], of the observation before each step.
      final: [L, T], of the observation after it; looked at where `truncated` only.
      last: [L], of the observation after the last step.
      truncated: [L, T] bool.
    """
    following = jnp.concatenate([values[:, 1:], last[:, None]], axis=1)
    return jnp.where(truncated, final, following)


def gae(
    rewards: Array,
    values: Array,
    after: Array,
    terminated: Array,
    truncated: Array,
    gamma: Any,
    gae_lambda: Any,
    known: Array | None = None,
) -> Array:
    """Generalized advantage estimates (Schulman et al., arXiv 1506.02438, equation 16), [L, T].

        delta_t = r_t + gamma V(s_t+1) (1 - terminated_t) - V(s_t)
        A_t     = delta_t + gamma lambda (1 - ended_t) A_t+1

    Args:
      rewards, values: [L, T].
      after: [L, T], from `next_values`.
      terminated, truncated: [L, T] bool; `ended` is either.
      gamma: discount of one step. gae_lambda: lambda.
      known: [L, T] bool, whether a reward is known; None when all are. One that is not is taken to be as the values
        expect, so that its delta is 0.
    """
    delta = rewards + gamma * jnp.where(terminated, 0.0, after) - values
    delta = delta if known is None else jnp.where(known, delta, 0.0)
    # What comes after an end belongs to another episode; only the value of a truncated one's last observation counts.
    through = gamma * gae_lambda * jnp.where(terminated | truncated, 0.0, 1.0)

    def back(later: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        now = step[0] + step[1] * later
        return now, now

    _, advantages = jax.lax.scan(back, jnp.zeros_like(delta[:, 0]), (delta.T, through.T), reverse=True)
    return advantages.T


def discounted_sums(start: Array, rewards: Array, ended: Array, gamma: Any) -> tuple[Array, Array]:
    """Running sums `G_t = gamma G_t-1 + r_t` of each lane, which start again with each episode.

    Returns the sums [L, T], and where each lane stands after the last step [L].

    Args:
      start: [L], where the previous unroll left off.
      rewards: [L, T]. ended: [L, T] bool, whether the episode ended with that step.
      gamma: discount of one step.
    """

    def forth(total: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        now = gamma * total + step[0]
        return jnp.where(step[1], 0.0, now), now

    last, sums = jax.lax.scan(forth, start, (rewards.T, ended.T))
    return sums.T, last
