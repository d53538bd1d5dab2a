"""Who plays which block of pairs: a pure state machine, without a clock, a process or a network in it.

Events go in (`begin`, `joined`, `left`, `finished`, `tick`), each with the time; commands come out. The same code runs
behind Ray (`fleet`) and in a simulation of ten thousand workers (`experiments/scaling/simulate.py`).

A block is some pairs that are played together. Its numbers depend on nobody who plays it, so that

* a block whose worker has ended is played again by another one,
* a block that takes long is played by a second worker as well, and the first answer counts (backup tasks: Dean and
  Ghemawat, "MapReduce", OSDI 2004, section 3.6),
* a worker that takes far too long is replaced.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

LATE = 2.0  # a block that takes so many times the median is played by a second worker, where one is idle
FAR_TOO_LONG = 20.0  # its worker is replaced after so many times that,
LEAST = 30.0  # and after no less than so many seconds
START = 600.0  # seconds that a worker's first block may take in addition: it compiles
MOST_DEATHS = 4  # workers that may end while they play a block; then it is given up, since it may be why they end
SLACK = 0.05  # seconds: blocks of milliseconds are not late because a machine is busy
_COPIES = 3  # of a block, at a time: each is begun when all before it are late
_FORGIVEN = 0.9  # in each generation a slow worker is taken for so much less slow, to be tried again
_KEPT = 1000  # durations that are remembered
_ENOUGH = 3  # from so many on they say something


class Play(NamedTuple):
    """The worker is to play the block."""

    worker: int
    block: int


class Replace(NamedTuple):
    """The worker is to be ended, and another to be started in its place."""

    worker: int
    seconds: float  # that it was given for a block


class GiveUp(NamedTuple):
    """The block counts as failed: too many workers have ended while they played it."""

    block: int


class Close(NamedTuple):
    """The generation is over, without the blocks that are missing."""

    missing: tuple[int, ...]


Command = Play | Replace | GiveUp | Close


class _Task(NamedTuple):
    generation: int
    block: int
    since: float
    first: bool  # of its size, of this worker


class Scheduler:
    """The blocks of one generation after another, and the workers that play them.

    Args:
      sizes: pairs of each block.
      close_at: part of the pairs with which a generation is closed; 1 waits for all of them.
      limit: seconds that a block may take before its worker is replaced; None follows what blocks have taken.

    Attributes:
      again: blocks of this generation that were begun once more, since their worker ended or was late.
      ended: workers that have ended or were replaced, in this generation.
      generation: its number, from 1 on; it counts calls of `begin`.

    Example:
      >>> from esrl.cluster.schedule import Scheduler
      >>> scheduler = Scheduler([4, 4])
      >>> scheduler.joined(7, now=0.0)
      []
      >>> scheduler.begin(now=0.0)
      [Play(worker=7, block=0)]
      >>> scheduler.finished(7, 1, 0, now=1.0)
      [Play(worker=7, block=1)]
      >>> scheduler.left(7, now=1.5)  # it ends; another one joins
      []
      >>> scheduler.joined(8, now=3.0)
      [Play(worker=8, block=1)]
      >>> scheduler.finished(8, 1, 1, now=4.0)
      [Close(missing=())]
    """

    def __init__(self, sizes: Sequence[int], *, close_at: float = 1.0, limit: float | None = None) -> None:
        self.sizes, self.close_at, self.limit = tuple(sizes), close_at, limit
        self.generation = self.again = self.ended = 0
        self._enough = math.ceil(close_at * sum(sizes) - 1e-9)  # pairs that close a generation
        self._open = False
        self._waiting: deque[int] = deque()  # blocks that nobody plays
        self._done: set[int] = set()
        self._pairs = 0  # of the blocks that are done
        self._playing: dict[int, set[int]] = {}  # who plays each block of this generation
        self._last: dict[int, float] = {}  # when each of them was begun last
        self._deaths: dict[int, int] = {}
        # Of each worker that is busy, in the order in which they were begun: all, and by whether it may compile.
        self._tasks: dict[int, _Task] = {}
        self._by_kind: tuple[dict[int, _Task], dict[int, _Task]] = ({}, {})
        self._idle: dict[int, None] = {}  # in the order in which they became so
        self._sizes: dict[int, set[int]] = {}  # of the blocks that each worker has played: each size is compiled
        self._took: deque[float] = deque(maxlen=_KEPT)
        self._known = 0  # durations behind `_usual`
        self._usual = math.inf  # seconds that a block takes, the median
        self._pace: dict[int, float] = {}  # of each worker: what its last block took, over that

    # ---- events

    def begin(self, now: float) -> list[Command]:
        """A generation begins. Workers that still play a block of an earlier one are left alone until they answer."""
        self.generation += 1
        self.again = self.ended = self._pairs = 0
        self._open = True
        self._waiting = deque(range(len(self.sizes)))
        self._done, self._playing, self._last = set(), {}, {}
        self._deaths = dict.fromkeys(range(len(self.sizes)), 0)
        self._pace = {worker: pace * _FORGIVEN for worker, pace in self._pace.items()}
        self._measure()
        return self._work(now)

    def joined(self, worker: int, now: float) -> list[Command]:
        """A worker is there, and has nothing to do."""
        self._idle[worker] = None
        self._sizes[worker] = set()
        return self._work(now)

    def left(self, worker: int, now: float) -> list[Command]:
        """A worker has ended, or cannot be reached."""
        if worker not in self._idle and worker not in self._tasks:  # it was replaced before
            return []
        task = self._taken(worker)
        self._gone(worker, now)
        return self._lost(worker, task) + self._work(now)

    def finished(
        self, worker: int, generation: int, block: int, now: float, took: float | None = None
    ) -> list[Command]:
        """A worker has played a block; one of an earlier generation, or that another has played, changes nothing.

        `took` are the seconds that it says it took; None is those since it was begun.
        """
        task = self._taken(worker)
        if task is None:  # it was replaced meanwhile
            return []
        self._idle[worker] = None
        self._sizes.setdefault(worker, set()).add(self.sizes[task.block])
        if not task.first:  # the first block of a size compiles, which says nothing of the next
            took = now - task.since if took is None else took
            self._took.append(took)
            self._pace[worker] = took / self._usual if self._usual > 0 else 1.0
            if len(self._took) >= max(_ENOUGH, self._known * 1.5):
                self._measure()
        if generation == self.generation and self._open and block not in self._done:
            return self._settle(block) or self._work(now)
        if generation == self.generation:
            self._playing.get(block, set()).discard(worker)
        return self._work(now)

    def refused(self, worker: int, now: float) -> list[Command]:
        """What a worker has played is of no use, through no fault of the block's: it is to be played again."""
        task = self._taken(worker)
        if task is None:
            return []
        self._idle[worker] = None
        if task.generation == self.generation:
            self._deaths[task.block] -= 1  # what is lost counts as one
        return self._lost(worker, task) + self._work(now)

    def tick(self, now: float) -> list[Command]:
        """Time has passed: who is late, and who is far too late?"""
        found: list[Command] = []
        for worker, task in self._overdue(now):
            self._taken(worker)
            self._gone(worker, now)
            found.append(Replace(worker, self._allowed(task)))
            found += self._lost(worker, task)
        return found + self._work(now)

    def wake(self) -> float:
        """The time at which `tick` has something to do next, infinite if never."""
        soonest = math.inf
        for tasks in self._by_kind:  # which were begun one after the other, with the same time for each
            for task in tasks.values():
                soonest = min(soonest, task.since + self._allowed(task))
                break
        if self._open and self._idle:
            for task in self._tasks.values():
                if self._missed(task, math.inf):
                    return min(soonest, self._last[task.block] + self._late())
        return soonest

    @property
    def workers(self) -> int:
        """How many there are."""
        return len(self._idle) + len(self._tasks)

    # ---- decisions

    def _work(self, now: float) -> list[Command]:
        """Gives idle workers what waits; where nothing does, what is late."""
        found: list[Command] = []
        if not self._open:
            return found
        while self._waiting and (worker := self._chosen()) is not None:
            found.append(self._play(worker, self._waiting.popleft(), now))
        if self._idle and self._late() < math.inf:
            late = [task.block for task in self._since(now - self._late()) if self._missed(task, now)]
            for block in dict.fromkeys(late):
                if not self._idle:
                    break
                self.again += 1
                quick = (worker for worker in self._idle if self._pace.get(worker, 1.0) <= LATE)
                found.append(self._play(next(quick, next(iter(self._idle))), block, now))
        return found

    def _chosen(self) -> int | None:
        """The worker that has been idle longest; not a slow one that would have to be waited for in the end.

        The others need about this many times of a block for what waits. A worker that takes longer for a single one is
        kept for what is late.
        """
        others = len(self._waiting) / max(self.workers, 1) + 1
        for worker in self._idle:
            if self._pace.get(worker, 1.0) <= max(others, LATE):
                return worker
        return None if self._playing else next(iter(self._idle), None)

    def _play(self, worker: int, block: int, now: float) -> Play:
        del self._idle[worker]
        task = _Task(self.generation, block, now, self.sizes[block] not in self._sizes.get(worker, ()))
        self._tasks[worker] = self._by_kind[task.first][worker] = task
        self._playing.setdefault(block, set()).add(worker)
        self._last[block] = now
        return Play(worker, block)

    def _taken(self, worker: int) -> _Task | None:
        """What a worker was busy with, and is no longer."""
        task = self._tasks.pop(worker, None)
        if task is not None:
            del self._by_kind[task.first][worker]
        return task

    def _gone(self, worker: int, now: float) -> None:
        """There is a worker less."""
        self._idle.pop(worker, None)
        self._sizes.pop(worker, None)
        self._pace.pop(worker, None)
        self.ended += 1

    def _settle(self, block: int) -> list[Command]:
        """A block is done; the generation may be over."""
        self._done.add(block)
        self._playing.pop(block, None)
        self._pairs += self.sizes[block]
        if self._pairs < self._enough:
            return []
        self._open = False
        return [Close(tuple(i for i in range(len(self.sizes)) if i not in self._done))]

    def _lost(self, worker: int, task: _Task | None) -> list[Command]:
        """What a worker played is lost: it waits again, before all others, if nobody else plays it."""
        if task is None or task.generation != self.generation or not self._open or task.block in self._done:
            return []
        block = task.block
        others = self._playing.get(block, set())
        others.discard(worker)
        self._deaths[block] += 1
        if others:
            return []
        self._playing.pop(block, None)
        if self._deaths[block] >= MOST_DEATHS:
            return [GiveUp(block), *self._settle(block)]
        self.again += 1
        self._waiting.appendleft(block)
        return []

    def _missed(self, task: _Task, now: float) -> bool:
        """Whether another worker should play what this one does: all that play it are late."""
        return (
            task.generation == self.generation
            and task.block not in self._done
            and len(self._playing.get(task.block, ())) < _COPIES
            and self._last[task.block] + self._late() <= now
        )

    # ---- times

    def _late(self) -> float:
        return LATE * self._usual + SLACK

    def _allowed(self, task: _Task) -> float:
        """Seconds that a worker has for a block."""
        allowed = self.limit if self.limit is not None else max(FAR_TOO_LONG * self._usual, LEAST)
        if math.isinf(allowed):  # nothing is known yet
            return START
        return allowed + START if task.first else allowed

    def _since(self, time: float) -> list[_Task]:
        """The tasks that were begun until a time, oldest first."""
        found = []
        for task in self._tasks.values():
            if task.since > time:
                break
            found.append(task)
        return found

    def _overdue(self, now: float) -> list[tuple[int, _Task]]:
        found = []
        for tasks in self._by_kind:
            for worker, task in tasks.items():
                if now < task.since + self._allowed(task):
                    break
                found.append((worker, task))
        return found

    def _measure(self) -> None:
        """What a block usually takes, from the last ones. Asked for rarely: with many workers it costs."""
        self._known = len(self._took)
        if self._known >= _ENOUGH:
            self._usual = statistics.median(self._took)
