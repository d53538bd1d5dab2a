"""What PPO carries from one iteration to the next, what an iteration gives, and what is learnt from."""

from __future__ import annotations

from typing import NamedTuple

from esrl.core.types import Array, Count, Key, PyTree
from esrl.policies.running_statistics import Moments, Sums
from esrl.rollouts.types import EpisodeStats, Lanes, Trajectory


class PPOState(NamedTuple):
    """What the next iteration needs.

    Attributes:
      params: the actor's and the critic's.
      opt_state: the optimiser's.
      moments: observation statistics, or None without normalisation.
      reward_moments: statistics of the running discounted return, or None; `discounted` [L] is where it stands.
      lanes: the environments, each somewhere in an episode.
      key: the run key, which never changes: all randomness is folded from it and the generation.
      generation: uint32, iterations done. env_steps: environment steps so far.
      recent: [2], mean return and length of the episodes that ended in the last iteration in which any did.
      learning_rate, gamma, gae_lambda, clip_eps, entropy_coef, value_coef: float32, as in the options.
    """

    params: PyTree
    opt_state: PyTree
    moments: Moments | None
    reward_moments: Moments | None
    discounted: Array
    lanes: Lanes
    key: Key
    generation: Array
    env_steps: Count
    recent: Array
    learning_rate: Array
    gamma: Array
    gae_lambda: Array
    clip_eps: Array
    entropy_coef: Array
    value_coef: Array


class Decision(NamedTuple):
    """What a step's record holds: the choice that was drawn, its log probability, and the value, for every lane."""

    choice: Array
    log_prob: Array
    value: Array


class Batch(NamedTuple):
    """An iteration's experience: lanes L, steps T.

    Attributes:
      lanes: where they are afterwards.
      trajectory: [L, T, ...], with a `Decision` as record.
      last: [L], value of the observation after the last step.
      sums: of observations, or None.
      ended: the episodes that ended.
    """

    lanes: Lanes
    trajectory: Trajectory
    last: Array
    sums: Sums | None
    ended: EpisodeStats


class Sample(NamedTuple):
    """What is learnt from: sequences [B, S, ...] (S is 1 for a policy without memory), begun with `carry` [B, ...].

    `anew` marks steps that begin an episode, before which the carry starts again.
    """

    observations: PyTree
    choice: Array
    log_prob: Array
    value: Array
    advantage: Array
    target: Array
    anew: Array
    carry: PyTree
