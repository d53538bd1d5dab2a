"""Workers that are actors of Ray, one for a core, on whichever node has one."""

from __future__ import annotations

import contextlib
import os
import queue
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from esrl.cluster.fleet import Broken, Event, Finished, Joined, Left
from esrl.cluster.jobs import Job
from esrl.cluster.player import Orders, Player, agrees, settle, versions
from esrl.cluster.ray_session import Session
from esrl.core.types import reason_of

_EVERY = 2.0  # seconds between looks at what the cluster has
_STILLBORN = 5  # workers that may end in a row before one is ready; then there is something wrong with all of them


class _Actor(Player):
    """A player in a process of Ray's."""

    def __init__(self, flags: str, broadcast: str) -> None:
        settle(flags)
        super().__init__(broadcast)


class _Worker(NamedTuple):
    actor: Any
    ready: bool = False


class RayWorkers:
    """Actors that play. See `fleet.Workers`.

    Args:
      session: of Ray. job: what they make their agent from. broadcast: of messages.
      number: how many there are to be; None is one for each core of the cluster, also of nodes that join.
      most: no more than so many, where the cores decide.
    """

    def __init__(self, session: Session, job: Job, broadcast: str, number: int | None, most: int) -> None:
        self._session, self._ray = session, session.ray
        self._number, self._most = number, most
        self._job = self._ray.put(job)
        self._mine, self._flags, self._broadcast = versions(), os.environ.get("XLA_FLAGS", ""), broadcast
        self._kind = self._ray.remote(_Actor)
        self._queue: queue.SimpleQueue[Event | Callable[[], list[Event]]] = queue.SimpleQueue()
        self._workers: dict[int, _Worker] = {}
        self._next = self._stillborn = 0
        self._looked = 0.0
        self.look()

    # ---- who is there

    def look(self) -> None:
        if time.monotonic() - self._looked < _EVERY:
            return
        self._looked = time.monotonic()
        wanted = self._number or min(self._session.cores, self._most)
        while len(self._workers) < wanted:
            self._start()

    def replace(self, worker: int) -> None:
        self._end(worker)
        wanted = self._number or min(max(self._session.cores, 1), self._most)
        if len(self._workers) < wanted:
            self._start()

    def close(self) -> None:
        for worker in list(self._workers):
            self._end(worker)
        self._session.close()

    def _start(self) -> None:
        worker, self._next = self._next, self._next + 1
        # Ray would make an actor again without its state, and would play its blocks twice: both are decided here.
        options = {"num_cpus": 1, "max_restarts": 0, "max_task_retries": 0, "scheduling_strategy": "SPREAD"}
        actor = self._kind.options(**options).remote(self._flags, self._broadcast)
        self._workers[worker] = _Worker(actor)
        self._call(worker, actor.versions.remote(), lambda found: self._met(worker, actor, found))

    def _met(self, worker: int, actor: Any, found: dict[str, str]) -> list[Event]:
        if wrong := agrees(self._mine, found):
            return [Broken(wrong)]
        self._call(worker, actor.prepare.remote(self._job), lambda error: self._prepared(worker, found["node"], error))
        return []

    def _prepared(self, worker: int, node: str, error: str) -> list[Event]:
        if error:
            return [Broken(f"{error} (on node {node})")]
        if worker in self._workers:
            self._workers[worker] = self._workers[worker]._replace(ready=True)
            self._stillborn = 0
            return [Joined(worker, node)]
        return []

    def _end(self, worker: int) -> None:
        gone = self._workers.pop(worker, None)
        if gone is not None:
            with contextlib.suppress(Exception):  # its node may be gone
                self._ray.kill(gone.actor)

    # ---- what travels

    def publish(self, message: bytes) -> Any:
        return self._ray.put(message)

    def send(self, worker: int, orders: Orders, message: Any) -> None:
        if worker not in self._workers:
            return  # it has ended; the event is under way
        ref = self._workers[worker].actor.play.remote(orders, b"" if message is None else message)
        self._call(worker, ref, lambda played: [Finished(worker, orders, played)])

    def events(self, seconds: float) -> list[Event]:
        found: list[Event] = []
        with contextlib.suppress(queue.Empty):
            found += self._heard(self._queue.get(timeout=max(seconds, 1e-4)))
            while True:
                found += self._heard(self._queue.get_nowait())
        return found

    def _heard(self, item: Event | Callable[[], list[Event]]) -> list[Event]:
        return item() if callable(item) else [item]

    def _call(self, worker: int, ref: Any, then: Callable[[Any], list[Event]]) -> None:
        """Queues what follows from an answer. Ray answers in a thread of its own, and all else happens in this one."""

        def answered(future: Any) -> None:
            error = future.exception()
            if error is None:
                result = future.result()
                self._queue.put(lambda: then(result))
            else:
                self._queue.put(lambda: self._failed(worker, error))

        ref.future().add_done_callback(answered)

    def _failed(self, worker: int, error: BaseException) -> list[Event]:
        """What a call's error means: a worker that has ended is replaced, anything else is an error of all of them."""
        if worker not in self._workers:
            return []
        died = isinstance(error, self._ray.exceptions.RayActorError)  # also where its node is gone
        lost = isinstance(error, (self._ray.exceptions.ObjectLostError, self._ray.exceptions.NodeDiedError))
        stillborn = not self._workers[worker].ready
        self._stillborn += stillborn
        if (died or lost) and self._stillborn < _STILLBORN and not _of_creation(error):
            return [Left(worker, reason_of(error))]
        return [Broken(_sentence(error))]


def _of_creation(error: BaseException) -> bool:
    """Whether an actor has ended since it could not be made: no other one could be, then."""
    return "creation task" in str(error)


def _sentence(error: BaseException) -> str:
    """Why a worker cannot play, from Ray's many lines."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else type(error).__name__)
    return f"a worker cannot play ({last[:300]}); install the same esrl, and its packages, on every node"
