"""From an agent and the options of a run to the agent whose generations are played in blocks, by whoever is to."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from esrl.algorithms.agent import Agent
from esrl.cluster.blocks import Blocks, blocks_of, kind_of, on_one_device
from esrl.cluster.fleet import Fleet
from esrl.cluster.in_process import InProcess
from esrl.cluster.jobs import job_of
from esrl.cluster.messages import BROADCASTS
from esrl.cluster.playing import bounds_of
from esrl.cluster.ray_session import Session
from esrl.cluster.ray_workers import RayWorkers
from esrl.core.types import EsrlError

# Options that say how much is played together, and whose they are.
BLOCK_SIZES = {
    "block_pairs": "evolution strategies",
    "block_envs": "agents whose environments live on (ppo, eggroll_ac)",
}
_BLOCKS = 2  # of a worker, in a generation: fewer would leave it idle while the longest is played


class Cluster(NamedTuple):
    """Who plays a run's generations, and how: arguments of `esrl.iterate` by their names."""

    ray_address: str | None = None
    workers: int | None = None
    broadcast: str = "parameters"
    block_pairs: int | None = None
    block_timeout: float | None = None
    close_at: float = 1.0
    block_envs: int | None = None

    @property
    def asked(self) -> bool:
        """Whether generations are played in blocks."""
        return self.ray_address is not None or any(getattr(self, name) is not None for name in BLOCK_SIZES)

    def check(self, agent: Agent) -> None:
        """Raises an `EsrlError` for what does not fit, before anything is started."""
        if self.broadcast not in BROADCASTS:
            raise EsrlError(f"broadcast is {self.broadcast!r}, but must be one of {', '.join(BROADCASTS)}")
        if not 0 < self.close_at <= 1:
            raise EsrlError(f"close_at is {self.close_at}, but must be above 0 and at most 1")
        if self.ray_address is None:
            for name in ("workers", "block_timeout", "broadcast", "close_at"):
                if getattr(self, name) != Cluster._field_defaults[name]:
                    raise EsrlError(f'{name} is of Ray\'s workers; give ray_address as well ("local" is this machine)')
        if not self.asked:
            return
        kind = kind_of(agent)
        for name, fits in BLOCK_SIZES.items():
            if name != kind.option and getattr(self, name) is not None:
                raise EsrlError(
                    f"{name} is of {fits}, and {agent.name} is played in blocks of {kind.unit}: {kind.option}"
                )
        kind.check(agent)
        blocks = kind(agent)
        if blocks.needs_all:
            for name in ("broadcast", "close_at"):
                if getattr(self, name) != Cluster._field_defaults[name]:
                    raise EsrlError(
                        f"{name} is {getattr(self, name)}, but the update of {agent.name} needs every step of all"
                        f" {blocks.unit}; leave {name} out"
                    )
        block = self.block(kind.option)
        if block is not None and (block > blocks.size or block % blocks.together):
            fits = f" in steps of {blocks.together}" if blocks.together > 1 else ""
            raise EsrlError(
                f"{kind.option} is {block}, but a generation has {blocks.size} {blocks.unit}; give at most that{fits}"
            )
        number = len(bounds_of(blocks.size, block or blocks.together)) - 1
        if self.workers is not None and self.workers > number:
            raise EsrlError(
                f"{self.workers} workers are too many for {number} blocks of {blocks.unit} (a generation has"
                f" {blocks.size}, {kind.option} {block or blocks.together}); give at most {number}, or a larger"
                f" {'num_envs' if blocks.needs_all else 'population'}"
            )

    def block(self, option: str) -> int | None:
        """The size of blocks, by the option that says it."""
        found: int | None = getattr(self, option)
        return found


def _block_size(blocks: Blocks, workers: int) -> int:
    """So many blocks for each worker that it is not idle for long; where they stay with it, one."""
    parts = workers * (1 if blocks.stay else _BLOCKS)
    return -(-blocks.size // (parts * blocks.together)) * blocks.together


def opened(agent: Agent, cluster: Cluster) -> tuple[Agent, Fleet, Cluster]:
    """The agent that plays so, its fleet, and the options with the size of blocks that was chosen.

    Raises:
      EsrlError: an agent that cannot be played in blocks, too few pairs or environments for the workers, Ray is missing
        or does not answer, or the agent cannot be sent.
    """
    cluster.check(agent)
    blocks = blocks_of(on_one_device(agent))
    alone, size = blocks.agent, cluster.block(blocks.option)
    if cluster.ray_address is None:
        size = size or blocks.size
        fleet = Fleet(blocks, InProcess(blocks), size)
    else:
        job = job_of(agent)
        session = Session(cluster.ray_address, cluster.workers)
        try:
            number = cluster.workers or min(max(session.cores, 1), blocks.size // blocks.together)
            size = size or _block_size(blocks, number)
            most = len(bounds_of(blocks.size, size)) - 1
            workers = RayWorkers(session, job, cluster.broadcast, cluster.workers, most)
        except BaseException:
            session.close()
            raise
        fleet = Fleet(
            blocks,
            workers,
            size,
            number=number,
            broadcast=cluster.broadcast,
            close_at=cluster.close_at,
            limit=cluster.block_timeout,
        )
    played = dataclasses.replace(
        alone, rollout=fleet.rollout, step=lambda state: alone.update(state, fleet.rollout(state))
    )
    chosen: dict[str, Any] = {blocks.option: size}
    return played, fleet, cluster._replace(**chosen)
