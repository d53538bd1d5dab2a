"""Workers in virtual time, in this process: they play for real, and answer, die, hang or dawdle as a test says."""

import copy
import heapq
import itertools
from collections.abc import Callable
from typing import Any

from esrl.cluster.blocks import blocks_of, on_one_device
from esrl.cluster.fleet import Event, Finished, Fleet, Joined, Left
from esrl.cluster.in_process import InProcess
from esrl.cluster.jobs import job_of
from esrl.cluster.player import Orders, Player

HANG = None  # no answer comes, ever
Fate = tuple[str, float] | None  # ("answer" or "die", after so many seconds)


class Simulated:
    """Workers whose fate is `fate(worker, n)` when they get their n-th orders. See `esrl.cluster.fleet.Workers`.

    All of them are one process: worlds that Python steps are moved for nothing between them, which `moved` counts.
    """

    def __init__(self, player: Player, number: int, fate: Callable[[int, int], Fate], joins: dict[float, int]) -> None:
        self.now = 0.0
        self.moved = 0
        self._played_by: dict[int, int] = {}
        self.replaced: list[int] = []
        self._original, self._fate = player, fate
        self._players: dict[int, Player] = {}
        self._orders: dict[int, int] = {}
        self._heap: list[tuple[float, int, Event]] = []
        self._count = itertools.count()
        for _ in range(number):
            self._join(0.0)
        for time, more in joins.items():
            for _ in range(more):
                self._join(time)

    def _join(self, time: float) -> None:
        worker = len(self._players)
        self._players[worker] = copy.copy(self._original)
        self._happen(time, Joined(worker, f"node{worker % 2}"))

    def _happen(self, time: float, event: Event) -> None:
        heapq.heappush(self._heap, (time, next(self._count), event))

    def publish(self, message: bytes) -> Any:
        return message

    def send(self, worker: int, orders: Orders, message: Any) -> None:
        self._orders[worker] = self._orders.get(worker, 0) + 1
        self.moved += self._played_by.get(orders.first, worker) != worker
        self._played_by[orders.first] = worker
        fate = self._fate(worker, self._orders[worker])
        if fate is HANG:
            return
        what, seconds = fate
        if what == "die":
            self._happen(self.now + seconds, Left(worker, "killed"))
        else:
            played = self._players[worker].play(orders, b"" if message is None else message)
            self._happen(self.now + seconds, Finished(worker, orders, played))

    def replace(self, worker: int) -> None:
        self.replaced.append(worker)
        self._join(self.now + 5.0)

    def look(self) -> None:
        pass

    def events(self, seconds: float) -> list[Event]:
        if not self._heap or self._heap[0][0] > self.now + seconds:
            self.now += max(seconds, 1e-3)
            return []
        self.now, _, event = heapq.heappop(self._heap)
        return [event]

    def close(self) -> None:
        pass


def always(worker: int, n: int) -> Fate:
    """Every block takes a second."""
    return "answer", 1.0


class Fleets:
    """Fleets of one agent; what it compiles is shared by all."""

    def __init__(self, agent: Any) -> None:
        self.agent = on_one_device(agent)
        self._players = {}
        for broadcast in ("parameters", "scalars"):
            player = Player(broadcast)
            assert player.prepare(job_of(agent)) == ""
            self._players[broadcast] = player
        # One environment plays for all of them, and one update computes for all.
        self._players["scalars"].agent = self._players["parameters"].agent
        self._players["scalars"].play_block = self._players["parameters"].play_block

    def in_process(self, block: int = 1) -> Fleet:
        """What plays the blocks one after the other."""
        return Fleet(blocks_of(self.agent), InProcess(blocks_of(self.agent)), block)

    def fleet(
        self,
        number: int = 2,
        fate: Callable[[int, int], Fate] = always,
        *,
        block: int = 1,
        broadcast: str = "parameters",
        joins: dict[float, int] | None = None,
        **options: Any,
    ) -> tuple[Fleet, Simulated]:
        """A fleet and its workers."""
        workers = Simulated(self._players[broadcast], number, fate, joins or {})
        made = Fleet(
            blocks_of(self.agent),
            workers,
            block,
            number=max(number, 1),
            broadcast=broadcast,
            clock=lambda: workers.now,
            **options,
        )
        return made, workers
