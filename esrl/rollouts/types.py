"""Types of stepping, on the device and on the host alike: episodes, trajectories, and the two ways to play.

Shapes: P pairs, S signs of a pair, E episodes of a member; L lanes (side by side), T steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp

from esrl.core.lanes import broadcast_lanes
from esrl.core.types import Array, Key, PyTree
from esrl.policies.running_statistics import AnyMoments, AnySums

# From rewards, and the steps of their episodes before them, to what is trained on.
Transform = Callable[[Array, Array], Array]
Draw = Callable[[Array], tuple[PyTree, Key]]


@runtime_checkable
class Act(Protocol):
    """`act(context, observations, carries, keys) -> (actions, carries)`, for all lanes at once."""

    def __call__(
        self, context: PyTree, observations: PyTree, carries: PyTree, keys: Key, /
    ) -> tuple[PyTree, PyTree]: ...

    def __hash__(self) -> int: ...  # what is compiled for one is kept by it


@runtime_checkable
class RecordingAct(Protocol):
    """As `Act`, with a record of the decision beside the actions and carries."""

    def __call__(
        self, context: PyTree, observations: PyTree, carries: PyTree, keys: Key, /
    ) -> tuple[PyTree, PyTree, PyTree]: ...


@runtime_checkable
class Value(Protocol):
    """`value(context, observations, carries) -> [L]`, the value of each lane's observation."""

    def __call__(self, context: PyTree, observations: PyTree, carries: PyTree, /) -> Array: ...


# ---- whole episodes -------------------------------------------------------------------------------------------------


class Episodes(NamedTuple):
    """One episode of every lane.

    Attributes:
      returns: [P, S, E] sum of raw rewards.
      shaped: [P, S, E] sum of transformed rewards, the same array when there is no transform.
      lengths: [P, S, E] int32, live steps.
      nonfinite: [P, S, E] bool, whether a live observation or reward was not finite.
      sums: of live observations, or None when they are not summed.
      steps: [P] int32, steps that a pair's lanes were stepped, live or not (by Python: that the loop made).
    """

    returns: Array
    shaped: Array
    lengths: Array
    nonfinite: Array
    sums: AnySums | None
    steps: Array


@runtime_checkable
class PlayEpisodes(Protocol):
    """Plays one episode in every lane, all at once.

    Args:
      act: decides for all lanes. context: what it needs.
      keys: [P, S, E]; lanes with equal keys see the same world and the same action noise.
      carry: one lane's at the start of an episode.
      moments: says which observations to sum, or is None.
      most: int32, a cap on an episode's steps below the environment's own, which may be traced; None is no further cap.
    """

    def __call__(
        self,
        act: Act,
        context: PyTree,
        keys: Key,
        carry: PyTree,
        moments: AnyMoments | None,
        most: Array | None = None,
        /,
    ) -> Episodes: ...


@runtime_checkable
class StreamEpisodes(Protocol):
    """Plays the pairs with these ids [P], as many at once as there are slots; the others wait for a free one.

    Args:
      shared: what every pair needs. draw: `draw(ids [C]) -> (drawn [C, ...], keys [C, S, E])` is what each pair brings
        along; `act`'s context is `(shared, drawn)`. A pair's episodes do not depend on the slots.
      act, carry, moments, most: as in `PlayEpisodes`.
    """

    def __call__(
        self,
        act: Act,
        shared: PyTree,
        draw: Draw,
        ids: Array,
        slots: int,
        carry: PyTree,
        moments: AnyMoments | None,
        most: Array | None = None,
        /,
    ) -> Episodes: ...


# ---- lanes that live on ---------------------------------------------------------------------------------------------


class Lanes(NamedTuple):
    """Where every lane is: `ids` [L] uint32, `state` and `observation` of its world, the policy's `carry`, steps into
    the episode (`time` [L] int32), and the episode's return so far (`total` [L], of finite rewards)."""

    ids: Array
    state: PyTree
    observation: PyTree
    carry: PyTree
    time: Array
    total: Array


class Trajectory(NamedTuple):
    """What happened, [L, T, ...].

    Attributes:
      observations: before each step.
      record: whatever `act` returned beside the action.
      rewards: float32. terminated, truncated: bool; at most one of them is true.
      bootstrap_value: value of the observation after the step where it was truncated, 0 elsewhere.
    """

    observations: PyTree
    record: PyTree
    rewards: Array
    terminated: Array
    truncated: Array
    bootstrap_value: Array


class EpisodeStats(NamedTuple):
    """Episodes that ended in an unroll: how many (`episodes`), and the sums of their `returns` and `lengths`.

    A reward that is not finite counts as 0 in a return."""

    episodes: Array
    returns: Array
    lengths: Array


@runtime_checkable
class StartLanes(Protocol):
    """`start(keys [L], carry) -> Lanes`, every lane at the beginning of an episode."""

    def __call__(self, keys: Key, carry: PyTree, /) -> Lanes: ...


@runtime_checkable
class Unroll(Protocol):
    """Steps every lane `length` times: `(lanes, trajectory, last_value [L], stats)`.

    Args:
      act, value: decide, and value observations, for all lanes at once, given the `context`.
      lanes: where they are. key: of this unroll. carry: one lane's at the start of an episode.

    `last_value` is the value of the observation after the last step.
    """

    def __call__(
        self,
        act: RecordingAct,
        value: Value,
        context: PyTree,
        lanes: Lanes,
        key: Key,
        carry: PyTree,
        length: int,
        /,
    ) -> tuple[Lanes, Trajectory, Array, EpisodeStats]: ...


class Runner(NamedTuple):
    """The ways to play an environment, on the device (pure JAX) or on the host (they must not be traced).

    Attributes:
      episodes: one episode in every lane.
      stream: the episodes of more pairs than play at once.
      start, unroll: a fixed number of steps in lanes that live on.
    """

    episodes: PlayEpisodes
    stream: StreamEpisodes
    start: StartLanes
    unroll: Unroll


def first_lanes(ids: Array, state: PyTree, observation: PyTree, carry: PyTree) -> Lanes:
    """Lanes [L] at the beginning of their episodes; `carry` is one lane's."""
    number = ids.shape[0]
    return Lanes(
        ids, state, observation, broadcast_lanes(carry, number), jnp.zeros(number, jnp.int32), jnp.zeros(number)
    )
