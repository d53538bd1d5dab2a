"""Ten thousand workers that fail and dawdle, by discrete events: what a generation takes, and what the driver does.

    python -m experiments.scaling.simulate                          # 100, 1,000 and 10,000 workers
    python -m experiments.scaling.simulate --workers 1000 --block 10 --hours 6

The scheduler is the very code that plays behind Ray, `esrl.cluster.schedule`; what it costs is measured while it runs
here. Around it all is a model:

* a block takes `block` seconds, log-normally spread by `spread`, and `slow` times that on a part `dawdling` of workers,
* a worker ends once in `hours`, at any time, and another one is there after `start` seconds,
* a message takes `latency`, and the generation's state `state` (megabytes) over `bandwidth` to every node,
* the driver does one thing at a time: `send` for every order, `receive` for every answer, and what the scheduler takes.

`send` and `receive` are what `experiments.scaling.driver_cost` measures of Ray on one machine. What the model leaves
out: a network that is shared, and Ray's own limits at so many actors.

Written: results/simulate.json.
"""

from __future__ import annotations

import heapq
import json
import math
import random
import statistics
import time
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from esrl.cluster.schedule import Close, Command, GiveUp, Play, Replace, Scheduler
from experiments import script
from experiments.lab.store import results

RESULTS = results("scaling")
COST = RESULTS / "driver_cost.json"


@dataclass
class Arguments:
    """The command line. Times are in seconds."""

    workers: tuple[int, ...] = (100, 1000, 10000)
    blocks: int = 2  # of a worker, in a generation
    generations: int = 10
    block: float = 5.0
    spread: float = 0.3  # standard deviation of the logarithm of a block's time
    dawdling: float = 0.01  # part of the workers
    slow: float = 10.0
    hours: float = 24.0  # between two ends of a worker; 0 is never
    start: float = 30.0
    latency: float = 1e-3
    state: float = 1.0  # megabytes
    bandwidth: float = 100.0  # megabytes a second, to each node
    send: float | None = None  # of the driver, for an order; results/driver_cost.json unless given
    receive: float | None = None  # of the driver, for an answer
    close_at: float = 1.0
    seed: int = 0
    out: Path = RESULTS


class Simulation:
    """A cluster in virtual time.

    Attributes:
      now: the time. busy: seconds that the driver has worked. scheduling: of these, those of the scheduler (real ones).
    """

    def __init__(self, arguments: Arguments, workers: int) -> None:
        self.a, self._random = arguments, random.Random(arguments.seed)
        self.schedule = Scheduler([1] * (arguments.blocks * workers), close_at=arguments.close_at)
        self.now = self.busy = self.scheduling = self.work = 0.0
        self._heap: list[tuple[float, int, str, int, int, int]] = []
        self._count, self._next = count(), count(workers)
        self._alive: set[int] = set()
        self._knows: dict[int, int] = {}
        self._begun: set[int] = set()  # blocks of this generation
        self.over = False
        for worker in range(workers):
            self._happen(0.0, "joined", worker)

    def generation(self) -> dict[str, float]:
        """Plays one; returns what it took."""
        began, busy, scheduling, self.work, self.over = self.now, self.busy, self.scheduling, 0.0, False
        self._begun.clear()
        self._do(self._asked(self.schedule.begin))
        while not self.over:
            wake = self.schedule.wake()
            if self._heap and self._heap[0][0] <= wake:
                at, _, what, worker, generation, block = heapq.heappop(self._heap)
                self.now = max(self.now, at)  # later, where the driver was busy
                self._do(self._heard(what, worker, generation, block))
            else:
                self.now = max(self.now, wake)
                self._do(self._asked(self.schedule.tick))
        return {
            "seconds": self.now - began,
            "driver": self.busy - busy,
            "scheduler": self.scheduling - scheduling,
            "work": self.work,
            "again": self.schedule.again,
            "lost": self.schedule.ended,
        }

    def _heard(self, what: str, worker: int, generation: int, block: int) -> list[Command]:
        if what == "joined":
            self._alive.add(worker)
            if self.a.hours:
                self._happen(self.now + self._random.expovariate(1 / (3600 * self.a.hours)), "left", worker)
            return self._asked(self.schedule.joined, worker)
        if worker not in self._alive:
            return []
        if what == "left":
            self._replace(worker)
            return self._asked(self.schedule.left, worker)
        self._spend(self.a.receive or 0.0)
        return self._asked(self.schedule.finished, worker, generation, block)

    def _do(self, commands: list[Command]) -> None:
        for command in commands:
            if isinstance(command, Play):
                self._spend(self.a.send or 0.0)
                self._play(command)
            elif isinstance(command, Replace):
                self._replace(command.worker)
            elif isinstance(command, (Close, GiveUp)):
                self.over |= isinstance(command, Close)

    def _play(self, order: Play) -> None:
        seconds = self.a.block * math.exp(self._random.gauss(0, self.a.spread))
        if order.block not in self._begun:  # what a copy of a block plays is no work done
            self._begun.add(order.block)
            self.work += seconds
        part = self.a.dawdling
        if int((order.worker + 1) * part) > int(order.worker * part):  # one in 1 / part, in any number of workers
            seconds *= self.a.slow
        news = 0.0
        if self._knows.get(order.worker) != self.schedule.generation:
            self._knows[order.worker] = self.schedule.generation
            news = self.a.state / self.a.bandwidth
        at = self.now + 2 * self.a.latency + news + seconds
        self._happen(at, "finished", order.worker, self.schedule.generation, order.block)

    def _replace(self, worker: int) -> None:
        self._alive.discard(worker)
        self._happen(self.now + self.a.start, "joined", next(self._next))

    def _asked(self, event: Any, *given: Any) -> list[Command]:
        begun = time.process_time()
        found = event(*given, now=self.now)
        took = time.process_time() - begun
        self.scheduling += took
        self._spend(took)
        return found

    def _spend(self, seconds: float) -> None:
        self.busy += seconds
        self.now += seconds

    def _happen(self, at: float, what: str, worker: int, generation: int = 0, block: int = 0) -> None:
        heapq.heappush(self._heap, (at, next(self._count), what, worker, generation, block))


def measured(arguments: Arguments, workers: int) -> dict[str, float]:
    """Medians over generations, but for the first, in which nobody knows what a block takes."""
    simulation = Simulation(arguments, workers)
    simulation.generation()
    each = [simulation.generation() for _ in range(arguments.generations)]
    found = {name: statistics.median(row[name] for row in each) for name in each[0]}
    return {"workers": workers, **found, "efficiency": found["work"] / workers / found["seconds"]}


def main() -> None:
    arguments = script.options(Arguments, __doc__)
    cost = json.loads(COST.read_text()) if COST.exists() else {}
    for name in ("send", "receive"):
        if getattr(arguments, name) is None:
            if name not in cost:
                script.wrong(f"give --{name}, or measure it: python -m experiments.scaling.driver_cost")
            setattr(arguments, name, cost[name])
    cases = {
        "as given": arguments,
        "twice the blocks, half as long": replace(arguments, blocks=2 * arguments.blocks, block=arguments.block / 2),
        "closed at 0.9": replace(arguments, close_at=0.9),
    }
    rows = [{"case": name} | measured(a, workers) for name, a in cases.items() for workers in a.workers]
    head = ["case", "workers", "generation s", "driver s", "of it scheduler s", "efficiency", "again", "lost"]
    names = ["case", "workers", "seconds", "driver", "scheduler", "efficiency", "again", "lost"]
    print(script.table(head, [[f"{row[n]:.3g}" if n != "case" else row[n] for n in names] for row in rows]))
    arguments.out.mkdir(parents=True, exist_ok=True)
    told = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(arguments).items() if k != "out"}
    (arguments.out / "simulate.json").write_text(json.dumps({"arguments": told, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
