"""Blocks of lanes that live on, as PPO and EGGROLL-AC step them: where they are travels, and so does all that happened.

A block is some lanes that lie side by side. What it plays follows from the parameters, the moments, the key, and where
its lanes are, which is sent with it and comes back with its steps. So it is the same whoever plays it, and it can be
played again. Worlds that Python steps cannot be sent: they stay with the worker that began them, and only a mark says
whether they are still where a block left them (`esrl.rollouts.host.unroller`).
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from esrl.algorithms.agent import Agent, stepping
from esrl.algorithms.ppo import PPO, Experience, PPOState, update
from esrl.core import sharding
from esrl.core.types import EsrlError
from esrl.envs.base import name_of, on_device
from esrl.envs.stand_in import StandIn
from esrl.rollouts.types import Lanes
from esrl.rollouts.unroll import unroller

_MARK = jax.ShapeDtypeStruct((2,), np.dtype(np.uint32))  # of Python's worlds
_NOWHERE = np.zeros(2, np.uint32)  # the mark of no worlds


class LaneBlocks:
    """Blocks of lanes. See `blocks.Blocks`."""

    option, unit, needs_all = "block_envs", "environments", True
    frozen_field, retold = "", None

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self._ppo: PPO = agent.config
        self.size, self.together = self._ppo.lanes, self._ppo.together
        self.stay = not on_device(agent.env)
        self._shapes: dict[int, Experience] = {}  # of blocks of each size
        # Python's worlds: the mark of all lanes in the state, and behind it that of each block, by its first lane.
        self._mark: Any = _NOWHERE
        self._marks: dict[int, Any] = {}

    @staticmethod
    def on_one_device(agent: Agent) -> Agent:
        """The agent with one device, in whose order every worker sums."""
        config: PPO = dataclasses.replace(agent.config, mesh=sharding.one_device())

        def refused(_: PPOState) -> Experience:
            raise EsrlError("an iteration of this agent is played by its workers")

        init = agent.init.function  # type: ignore[attr-defined]
        made = stepping(agent.env, init, refused, partial(update, config), config.mesh)
        return dataclasses.replace(agent, config=config, **made)

    @staticmethod
    def check(agent: Agent) -> None:
        """Raises an `EsrlError` for an environment whose lanes cannot live in several processes."""
        instances = None if on_device(agent.env) else agent.env.instances
        if instances is not None:
            raise EsrlError(
                f"{name_of(agent.env)} has at most {instances} instances, and {agent.name} on workers needs one for"
                " each of num_envs, in processes that do not share them; leave out ray_address and block_envs, or"
                " instances"
            )

    # ---- what travels

    def playable(self, state: PPOState) -> PPOState:
        """What playing needs of a state beside the lanes."""
        others = ("opt_state", "reward_moments", "discounted", "lanes", "env_steps", "recent", "memory")
        blank: dict[str, Any] = dict.fromkeys(others)
        return state._replace(**blank)

    def frozen(self, state: PPOState) -> tuple[()]:
        """Nothing: they lie among the others."""
        return ()

    def part(self, state: PPOState, first: int, end: int) -> Lanes:
        """Where the lanes first .. end - 1 are."""
        if not self.stay:
            return jax.tree.map(lambda x: x[first:end], state.lanes)
        known = np.array_equal(state.lanes.state, self._mark)  # else the state is not the last one: they begin anew
        cut = jax.tree.map(lambda x: x[first:end], state.lanes._replace(state=()))
        return cut._replace(state=self._marks.get(first, _NOWHERE) if known else _NOWHERE)

    def part_like(self, state: PPOState, number: int) -> Lanes:
        """The shapes of so many lanes."""
        lanes = state.lanes._replace(state=()) if self.stay else state.lanes
        cut = jax.tree.map(lambda x: jax.ShapeDtypeStruct((number, *x.shape[1:]), x.dtype), lanes)
        return cut._replace(state=_MARK) if self.stay else cut

    def rows_like(self, state: PPOState, number: int) -> Experience:
        """The shapes of what so many lanes have played: an `Experience` of theirs."""
        if number not in self._shapes:
            ppo, lanes = self._ppo, self.part_like(state, number)
            if self.stay:
                # Python's worlds cannot be traced; one that JAX steps, with their spaces, has steps of the same shapes.
                env = self.agent.env
                spaces = (env.observation_space, env.action_space, env.max_episode_steps)
                stand_in = StandIn(name_of(env), *spaces, "its shapes alone are asked for")
                ppo = dataclasses.replace(ppo, runner=ppo.runner._replace(unroll=unroller(stand_in)[1]))
                with stand_in.traced():
                    found = jax.eval_shape(partial(_block, ppo), state, lanes._replace(state=()))
                found = found._replace(lanes=found.lanes._replace(state=_MARK))
            else:
                found = jax.eval_shape(partial(_block, ppo), state, lanes)
            self._shapes[number] = found
        return self._shapes[number]

    # ---- what is played

    def player(self) -> Callable[[PPOState, Lanes, int, int], Experience]:
        """`play(state, lanes, first, end) -> rows` on the host, all of the lanes at once, on one device.

        Every process that plays a block compiles the same program for it, whoever it is.
        """
        device = sharding.one_device().devices.flat[0]
        block = partial(_block, self._ppo)
        compiled = block if self.stay else jax.jit(block)

        def run(state: PPOState, lanes: Lanes, first: int, end: int) -> Experience:
            with jax.default_device(device):
                return jax.device_get(compiled(*jax.device_put((state, lanes), device)))

        return run

    def lost(self, state: PPOState, first: int, end: int) -> Experience:
        """Steps of lanes that nobody could play: no reward is known, so that nothing is learned from them."""
        blank = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), self.rows_like(state, end - first))
        unknown = np.full_like(blank.trajectory.rewards, np.nan)
        lanes = self.part(state, first, end)._replace(state=_NOWHERE)
        return blank._replace(lanes=lanes, trajectory=blank.trajectory._replace(rewards=unknown))

    def episodes(self, number: int) -> int:
        """Episodes that are lost with so many lanes."""
        return number

    def put_together(self, state: PPOState, bounds: list[int], rows: dict[int, Experience]) -> Experience:
        """An iteration from the steps of its blocks.

        Sums are added in the order of the blocks, not in that in which they came: floating-point addition has an order.
        """
        each = [rows[i] for i in range(len(bounds) - 1)]
        if self.stay:
            self._marks = {first: row.lanes.state for (first, _), row in zip(pairwise(bounds), each, strict=True)}
            self._mark = np.array([random.SystemRandom().getrandbits(32), 1], np.uint32)
            each = [row._replace(lanes=row.lanes._replace(state=())) for row in each]
        parts = [(row.lanes, row.trajectory, row.last_value) for row in each]
        lanes, trajectory, last_value = jax.tree.map(_joined, *parts)
        totals = each[0].sums, each[0].stats
        for row in each[1:]:
            totals = jax.tree.map(np.add, totals, (row.sums, row.stats))
        if self.stay:
            lanes = lanes._replace(state=self._mark)
        return Experience(lanes, trajectory, last_value, *totals)


def _block(ppo: PPO, state: PPOState, lanes: Lanes) -> Experience:
    rows, totals = ppo.play(ppo, state, lanes)
    return Experience(*rows, *totals)


def _joined(*parts: Any) -> Any:
    """Rows [L, ...] of blocks, one behind the other; keys too, which are JAX's."""
    keys = jnp.issubdtype(parts[0].dtype, jax.dtypes.prng_key)
    return jnp.concatenate(parts) if keys else np.concatenate(parts)
