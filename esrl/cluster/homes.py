"""Who plays which block where blocks stay with their workers: worlds that Python steps cannot be sent.

A pure state machine, as `schedule` is. A block has a home, the worker that plays it in every generation. One whose
worker has ended waits for another worker to take its place, for a while; then whoever has nothing to do takes it. Its
worlds begin new episodes there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from esrl.cluster.schedule import Command, Scheduler, _Task

WAIT = 120.0  # seconds that a block without a home waits for a worker that has room; processes take long to start


class StayingScheduler(Scheduler):
    """As `Scheduler`, for blocks that stay with their workers. No block is played twice at a time.

    Args:
      sizes: environments of each block.
      workers: how many there are to be; none takes more than its share of the blocks, as long as others may come.
      limit: as `Scheduler` has it.

    Example:
      >>> from esrl.cluster.homes import StayingScheduler
      >>> scheduler = StayingScheduler([4, 4], workers=2)
      >>> scheduler.joined(0, now=0.0)
      []
      >>> scheduler.begin(now=0.0)
      [Play(worker=0, block=0)]
      >>> scheduler.finished(0, 1, 0, now=1.0)  # block 1 is for the other worker
      []
      >>> scheduler.joined(1, now=9.0)
      [Play(worker=1, block=1)]
      >>> scheduler.finished(1, 1, 1, now=10.0)
      [Close(missing=())]
      >>> scheduler.begin(now=11.0)
      [Play(worker=0, block=0), Play(worker=1, block=1)]
    """

    def __init__(self, sizes: Sequence[int], *, workers: int, limit: float | None = None) -> None:
        super().__init__(sizes, limit=limit)
        self._share = -(-len(sizes) // max(workers, 1))
        self._home: dict[int, int] = {}  # the worker of each block that has one
        self._without: dict[int, float] = {}  # since when each other one has had none, from the first generation on

    def begin(self, now: float) -> list[Command]:
        """A generation begins. A worker that has come since takes from one that has more than its share."""
        for block in range(len(self.sizes)):
            if block not in self._home:
                self._without.setdefault(block, now)
        for worker in self._idle:
            held = Counter(self._home.values())
            while held and held[worker] < self._share < max(held.values()):
                most = held.most_common(1)[0][0]
                block = max(block for block, home in self._home.items() if home == most)
                self._home[block] = worker
                held = Counter(self._home.values())
        return super().begin(now)

    def _gone(self, worker: int, now: float) -> None:
        super()._gone(worker, now)
        for block in [block for block, home in self._home.items() if home == worker]:
            del self._home[block]
            self._without[block] = now

    def _work(self, now: float) -> list[Command]:
        """Gives idle workers the blocks that are theirs, and those of nobody."""
        found: list[Command] = []
        if not self._open:
            return found
        for block in list(self._waiting):
            if block not in self._home:
                self._settle_down(block, now)
            if (worker := self._home.get(block)) in self._idle and worker is not None:
                self._waiting.remove(block)
                found.append(self._play(worker, block, now))
        return found

    def _settle_down(self, block: int, now: float) -> None:
        """Finds a block a home, where there is one."""
        held = Counter(self._home.values())
        room = [worker for worker in self._idle if held[worker] < self._share]
        if not room and now - self._without[block] >= WAIT:
            room = list(self._idle)
        if room:
            self._home[block] = min(room, key=lambda worker: held[worker])
            del self._without[block]

    def _missed(self, task: _Task, now: float) -> bool:
        return False  # nobody else could go on with it
