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

from esrl.algorithms import memory_plan
from esrl.algorithms.agent import Agent, stepping
from esrl.algorithms.es import ES, ESState, Experience, play, update
from esrl.cluster import messages
from esrl.cluster.messages import Rows, rows_like
from esrl.core import sharding
from esrl.core.types import EsrlError, PyTree
from esrl.envs.base import on_device


def bounds_of(pairs: int, block: int) -> list[int]:
    """Where blocks of so many pairs begin and end: [0, block, 2 block, ..., pairs]; the last one may be smaller."""
    return [*range(0, pairs, block), pairs]


class PairBlocks:
    """Blocks of pairs: their numbers say all of what a block plays. See `blocks.Blocks`."""

    option, unit, needs_all = "block_pairs", "pairs", False
    together, stay = 1, False

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self._es: ES = agent.config
        self.size = self._es.pairs

    @staticmethod
    def on_one_device(agent: Agent) -> Agent:
        """The agent with one device."""
        return on_one_device(agent)

    @staticmethod
    def check(agent: Agent) -> None:
        """All of them can be played in blocks."""

    def playable(self, state: ESState) -> ESState:
        """What playing needs of a state."""
        return messages.playable(state)

    def frozen(self, state: ESState) -> PyTree:
        """The frozen parameters."""
        return state.frozen

    def part(self, state: ESState, first: int, end: int) -> tuple[()]:
        """Nothing: the numbers of the pairs say it."""
        return ()

    def part_like(self, state: ESState, number: int) -> tuple[()]:
        """Nothing."""
        return ()

    def rows_like(self, state: ESState, number: int) -> Rows:
        """The shapes of what so many pairs have played."""
        return rows_like(self._es, state.moments, number)

    def player(self) -> Callable[[ESState, PyTree, int, int], Rows]:
        """`play(state, part, first, end) -> rows`, as `player`."""
        play = player(self.agent)
        return lambda state, part, first, end: play(state, first, end)

    def lost(self, state: ESState, first: int, end: int) -> Rows:
        """Rows of pairs that nobody could play."""
        return lost_rows(self._es, state.moments, end - first)

    def episodes(self, number: int) -> int:
        """Episodes of so many pairs."""
        return number * len(self._es.signs) * self._es.episodes

    def put_together(self, state: ESState, bounds: list[int], rows: dict[int, Rows]) -> Experience:
        """A generation from the rows of its blocks."""
        return put_together(self._es, state.moments, bounds, rows)


def on_one_device(agent: Agent) -> Agent:
    """The agent with one device, in whose order every worker sums; on a host's environments it is that already."""
    es: ES = agent.config
    mesh = sharding.one_device()
    noise_bytes = es.noise.bytes_each * sum(leaf.num_random for leaf in es.leaves)
    config = dataclasses.replace(
        es, mesh=mesh, summing=mesh, update_chunk=memory_plan.default_update_chunk(es.pairs, noise_bytes, mesh)
    )

    def refused(_: ESState) -> Experience:
        raise EsrlError("a generation of this agent is played by its workers")

    made = stepping(agent.env, agent.init.function, refused, partial(update, config), mesh)  # type: ignore[attr-defined]
    return dataclasses.replace(agent, config=config, **made)


def player(agent: Agent) -> Callable[[ESState, int, int], Rows]:
    """`play(state, first, end) -> rows` on the host of the pairs first .. end - 1, all of them at once, on one device.

    Every process that plays a block compiles the same program for it, whoever it is.
    """
    es: ES = agent.config

    def block(state: ESState, pairs: Any) -> tuple[Any, ...]:
        return play(es, state, pairs, pairs.shape[0])

    device = sharding.one_device().devices.flat[0]
    compiled = jax.jit(block) if on_device(agent.env) else block

    def run(state: ESState, first: int, end: int) -> Rows:
        with jax.default_device(device):
            state = jax.device_put(state, device)
            return jax.device_get(Rows(*compiled(state, jnp.arange(first, end, dtype=jnp.uint32))))

    return run


def lost_rows(es: ES, moments: PyTree, pairs: int) -> Rows:
    """Rows of pairs that nobody has played: fitness and returns NaN, no step, no observation."""
    like = rows_like(es, moments, pairs)
    blank = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
    nan = [None if x is None else np.full_like(x, np.nan) for x in (blank.fitness, blank.halves, blank.returns)]
    return blank._replace(fitness=nan[0], halves=nan[1], returns=nan[2])


def put_together(es: ES, moments: PyTree, bounds: list[int], rows: dict[int, Rows]) -> Experience:
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
