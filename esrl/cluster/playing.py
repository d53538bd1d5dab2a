"""Blocks of pairs played in this process, and the generation that is put together from blocks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from esrl.algorithms import integer_es, memory_plan
from esrl.algorithms.agent import Agent, stepping
from esrl.algorithms.es import ES, ESState, Experience, play, update
from esrl.algorithms.integer_es import IntegerES, IntegerESState
from esrl.cluster import messages
from esrl.cluster.messages import Rows, Votes, rows_like
from esrl.core import sharding
from esrl.core.types import EsrlError, PyTree
from esrl.envs.base import on_device


def bounds_of(pairs: int, block: int) -> list[int]:
    """Where blocks of so many pairs begin and end: [0, block, 2 block, ..., pairs]; the last one may be smaller."""
    return [*range(0, pairs, block), pairs]


class _Pairs:
    """What blocks of pairs have in common, whatever the pairs are perturbed by."""

    option, unit, needs_all = "block_pairs", "pairs", False
    together, stay = 1, False

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.size: int = agent.config.pairs

    @staticmethod
    def check(agent: Agent) -> None:
        """All of them can be played in blocks."""

    def part(self, state: Any, first: int, end: int) -> tuple[()]:
        """Nothing: the numbers of the pairs say it."""
        return ()

    def part_like(self, state: Any, number: int) -> tuple[()]:
        """Nothing."""
        return ()

    def rows_like(self, state: Any, number: int) -> Rows:
        """The shapes of what so many pairs have played."""
        return rows_like(self.agent.config, state.moments, number)

    def player(self) -> Callable[[Any, PyTree, int, int], Rows]:
        """`play(state, part, first, end) -> rows`, as `player`."""
        play = player(self.agent)
        return lambda state, part, first, end: play(state, first, end)

    def lost(self, state: Any, first: int, end: int) -> Rows:
        """Rows of pairs that nobody could play."""
        return lost_rows(self.agent.config, state.moments, end - first)

    def episodes(self, number: int) -> int:
        """Episodes of so many pairs."""
        return number * len(self.agent.config.signs) * int(self.agent.config.episodes)

    def put_together(self, state: Any, bounds: list[int], rows: dict[int, Rows]) -> Experience:
        """A generation from the rows of its blocks."""
        return put_together(self.agent.config, state.moments, bounds, rows)


class PairBlocks(_Pairs):
    """Blocks of pairs: their numbers say all of what a block plays. See `blocks.Blocks`."""

    frozen_field = "frozen"

    def __init__(self, agent: Agent) -> None:
        super().__init__(agent)
        self._es: ES = agent.config

    @property
    def retold(self) -> PairBlocks:
        """It tells generations by scalars itself."""
        return self

    @staticmethod
    def on_one_device(agent: Agent) -> Agent:
        """The agent with one device, in whose order every worker sums; on a host's environments it is that already."""
        es: ES = agent.config
        mesh = sharding.one_device()
        noise_bytes = es.noise.bytes_each * sum(leaf.num_random for leaf in es.leaves)
        size = memory_plan.default_update_chunk(es.pairs, noise_bytes, mesh)
        config = dataclasses.replace(es, mesh=mesh, summing=mesh, update_chunk=size)
        return _played_elsewhere(agent, config, partial(update, config))

    def playable(self, state: ESState) -> ESState:
        """What playing needs of a state."""
        return messages.playable(state)

    def frozen(self, state: ESState) -> PyTree:
        """The frozen parameters."""
        return state.frozen

    def played_by(self, state: ESState) -> PyTree:
        """The parameters, the statistics of observations, and sigma."""
        return state.params, state.moments, state.signal.sigma

    def scalars(self, experience: Experience) -> bytes:
        """Packed, the `messages.Scalars` of a generation."""
        return messages.pack(messages.scalars_of(self._es, experience))

    def follow(self, agent: Agent, state: ESState, message: bytes) -> ESState:
        """The state after the update, which a worker repeats."""
        scalars = messages.unpack(message, messages.scalars_like(self._es, state.moments))
        after: ESState = agent.update(state, messages.experience_of(self._es, scalars))[0]
        return after


class IntegerPairBlocks(_Pairs):
    """Blocks of pairs of an agent of integers, whose update is exact. See `blocks.Blocks`.

    Sums of integers have no order: blocks of any size add up to the same, and every processor that is told the votes
    comes to the same state.
    """

    frozen_field = "table"

    def __init__(self, agent: Agent) -> None:
        super().__init__(agent)
        es: IntegerES = agent.config
        self._es = es
        self._score = jax.jit(lambda fitness, present: es.score(fitness, present).astype(jnp.int8))
        self._learn = jax.jit(
            lambda state, told: integer_es.follow(es, state, told.scores.astype(jnp.int32), told.sums)[0]
        )

    @property
    def retold(self) -> IntegerPairBlocks:
        """It tells generations by scalars itself."""
        return self

    @staticmethod
    def on_one_device(agent: Agent) -> Agent:
        """The agent with one device."""
        es: IntegerES = agent.config
        mesh = sharding.one_device()
        noise_bytes = 4 * sum(leaf.num_random for leaf in es.leaves)
        size = memory_plan.default_update_chunk(es.pairs, noise_bytes, mesh)
        config = dataclasses.replace(es, mesh=mesh, update_chunk=size)
        return _played_elsewhere(agent, config, partial(integer_es.update, config))

    def playable(self, state: IntegerESState) -> IntegerESState:
        """What playing needs of a state: neither the average nor the running sums."""
        return state._replace(average=None, votes=None, chance=None)

    def frozen(self, state: IntegerESState) -> PyTree:
        """The table of random numbers, where there is one."""
        return state.table

    def played_by(self, state: IntegerESState) -> PyTree:
        """The weights and the statistics of observations."""
        return state.params, state.moments

    def scalars(self, experience: Experience) -> bytes:
        """Packed, the `messages.Votes` of a generation."""
        return messages.pack(Votes(self._score(experience.fitness, experience.present), experience.sums))

    def follow(self, agent: Agent, state: IntegerESState, message: bytes) -> IntegerESState:
        """The state after the update, which a worker repeats, but for its counts of steps."""
        told = messages.unpack(message, messages.votes_like(self._es, state.moments))
        after: IntegerESState = self._learn(state, told)
        return after


def _played_elsewhere(agent: Agent, config: Any, learn: Callable[..., Any]) -> Agent:
    """The agent with another configuration, whose generations are played by its workers."""

    def refused(_: Any) -> Experience:
        raise EsrlError("a generation of this agent is played by its workers")

    made = stepping(agent.env, agent.init.function, refused, learn, config.mesh)  # type: ignore[attr-defined]
    return dataclasses.replace(agent, config=config, **made)


def player(agent: Agent) -> Callable[[Any, int, int], Rows]:
    """`play(state, first, end) -> rows` on the host of the pairs first .. end - 1, all of them at once, on one device.

    Every process that plays a block compiles the same program for it, whoever it is.
    """
    es: ES | IntegerES = agent.config

    def block(state: Any, pairs: Any) -> tuple[Any, ...]:
        if isinstance(es, IntegerES):
            return integer_es.play(es, state, pairs, pairs.shape[0])
        return play(es, state, pairs, pairs.shape[0])

    device = sharding.one_device().devices.flat[0]
    compiled = jax.jit(block) if on_device(agent.env) else block

    def run(state: Any, first: int, end: int) -> Rows:
        with jax.default_device(device):
            state = jax.device_put(state, device)
            return jax.device_get(Rows(*compiled(state, jnp.arange(first, end, dtype=jnp.uint32))))

    return run


def lost_rows(es: ES | IntegerES, moments: PyTree, pairs: int) -> Rows:
    """Rows of pairs that nobody has played: fitness and returns NaN, no step, no observation."""
    like = rows_like(es, moments, pairs)
    blank = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
    nan = [None if x is None else np.full_like(x, np.nan) for x in (blank.fitness, blank.halves, blank.returns)]
    return blank._replace(fitness=nan[0], halves=nan[1], returns=nan[2])


def put_together(es: ES | IntegerES, moments: PyTree, bounds: list[int], rows: dict[int, Rows]) -> Experience:
    """A generation from the rows of its blocks; those that are not there are missing.

    Sums are added in the order of the blocks, not in that in which they came: floating-point addition has an order.
    """
    sizes = [end - first for first, end in pairwise(bounds)]
    each = [rows[i] if i in rows else lost_rows(es, moments, size) for i, size in enumerate(sizes)]
    columns: list[Any] = [
        None if parts[0] is None else np.concatenate(parts) for parts in zip(*(row[:-1] for row in each), strict=True)
    ]
    sums = each[0].sums
    for row in each[1:]:
        sums = jax.tree.map(np.add, sums, row.sums)
    present: Any = None
    if len(rows) < len(sizes):
        present = np.repeat([i in rows for i in range(len(sizes))], sizes)
    fitness, halves, returns, lengths, nonfinite, steps = columns
    return Experience(fitness, halves, returns, lengths, nonfinite, steps, sums, present)
