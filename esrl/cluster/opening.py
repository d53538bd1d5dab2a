"""From an agent and the options of a run to the agent whose generations are played in blocks, by whoever is to."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from esrl.algorithms.agent import Agent
from esrl.algorithms.es import ES
from esrl.cluster.fleet import Fleet
from esrl.cluster.in_process import InProcess
from esrl.cluster.jobs import job_of
from esrl.cluster.messages import BROADCASTS
from esrl.cluster.playing import bounds_of, on_one_device
from esrl.cluster.ray_session import Session
from esrl.cluster.ray_workers import RayWorkers
from esrl.core.types import EsrlError

_BLOCKS = 2  # of a worker, in a generation: fewer would leave it idle while the longest is played


class Cluster(NamedTuple):
    """Who plays a run's generations, and how: arguments of `esrl.iterate` by their names."""

    ray_address: str | None = None
    workers: int | None = None
    broadcast: str = "parameters"
    block_pairs: int | None = None
    block_timeout: float | None = None
    close_at: float = 1.0

    @property
    def asked(self) -> bool:
        """Whether generations are played in blocks."""
        return self.ray_address is not None or self.block_pairs is not None

    def check(self, agent: Agent) -> None:
        """Raises an `EsrlError` for what does not fit, before anything is started."""
        if self.broadcast not in BROADCASTS:
            raise EsrlError(f"broadcast is {self.broadcast!r}, but must be one of {', '.join(BROADCASTS)}")
        if not 0 < self.close_at <= 1:
            raise EsrlError(f"close_at is {self.close_at}, but must be above 0 and at most 1")
        if self.ray_address is None:
            for name in ("workers", "block_timeout"):
                if getattr(self, name) is not None:
                    raise EsrlError(f'{name} is of Ray\'s workers; give ray_address as well ("local" is this machine)')
            for name in ("broadcast", "close_at"):
                if getattr(self, name) != Cluster._field_defaults[name]:
                    raise EsrlError(f'{name} is of Ray\'s workers; give ray_address as well ("local" is this machine)')
        if not self.asked:
            return
        if agent.kind != "evolution":
            raise EsrlError(
                f"workers play whole episodes, as evolution strategies do, and {agent.name} steps lanes that live on;"
                " leave out ray_address and block_pairs, or take eggroll or open_es"
            )
        if not isinstance(agent.config, ES):
            raise EsrlError(
                f"workers play eggroll, open_es and es, and {agent.name} is none of them; leave out ray_address and"
                " block_pairs"
            )
        pairs = agent.config.pairs
        if self.block_pairs is not None and self.block_pairs > pairs:
            raise EsrlError(f"block_pairs is {self.block_pairs}, but a generation has {pairs} pairs; give at most that")
        blocks = len(bounds_of(pairs, self.block_pairs or 1)) - 1
        if self.workers is not None and self.workers > blocks:
            raise EsrlError(
                f"{self.workers} workers are too many for {blocks} blocks of pairs (population"
                f" {pairs * len(agent.config.signs)}, block_pairs {self.block_pairs or 1}); give at most {blocks}, or a"
                " larger population"
            )


def opened(agent: Agent, cluster: Cluster) -> tuple[Agent, Fleet, Cluster]:
    """The agent that plays so, its fleet, and the options with the size of blocks that was chosen.

    Raises:
      EsrlError: an agent that is no evolution strategy, too few pairs for the workers, Ray is missing or does not
        answer, or the agent cannot be sent.
    """
    cluster.check(agent)
    alone = on_one_device(agent)
    pairs = alone.config.pairs
    if cluster.ray_address is None:
        block = cluster.block_pairs or pairs
        fleet = Fleet(alone, InProcess(alone), block)
    else:
        job = job_of(agent)
        session = Session(cluster.ray_address, cluster.workers)
        try:
            number = cluster.workers or min(max(session.cores, 1), pairs)
            block = cluster.block_pairs or -(-pairs // (_BLOCKS * number))
            most = len(bounds_of(pairs, block)) - 1
            workers = RayWorkers(session, job, cluster.broadcast, cluster.workers, most)
        except BaseException:
            session.close()
            raise
        fleet = Fleet(
            alone,
            workers,
            block,
            broadcast=cluster.broadcast,
            close_at=cluster.close_at,
            limit=cluster.block_timeout,
        )
    played = dataclasses.replace(
        alone, rollout=fleet.rollout, step=lambda state: alone.update(state, fleet.rollout(state))
    )
    return played, fleet, cluster._replace(block_pairs=block)
