"""The driver's side of a generation: what the scheduler decides is sent, what comes back is put together."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np

from esrl.cluster import messages
from esrl.cluster.blocks import Blocks
from esrl.cluster.homes import StayingScheduler
from esrl.cluster.player import Orders, Played
from esrl.cluster.playing import bounds_of
from esrl.cluster.schedule import Close, Command, GiveUp, Play, Replace, Scheduler
from esrl.core.types import EsrlError, notice
from esrl.envs.base import name_of
from esrl.envs.faults import Faults

PATIENCE = 600.0  # seconds that a generation waits while there is not one worker
_SILENT = 60.0  # seconds after which it says so; workers start within that, but on a busy machine
_LOOK = 0.5  # seconds between looks at who is late
_STRANGE = 2  # times that a worker may have computed other parameters; then it is always sent them
_HEAD = 32  # bytes of the numbers in an order


class Joined(NamedTuple):
    """A worker is ready to play. node: where it is."""

    worker: int
    node: str


class Left(NamedTuple):
    """A worker has ended. why: in a few words."""

    worker: int
    why: str


class Finished(NamedTuple):
    """A worker has answered to orders."""

    worker: int
    orders: Orders
    played: Played


class Broken(NamedTuple):
    """No worker like this one can be of use, and why: in a sentence."""

    text: str


Event = Joined | Left | Finished | Broken


@runtime_checkable
class Workers(Protocol):
    """Processes that play, wherever they are. Each has a number, which no other one gets."""

    def publish(self, message: bytes) -> Any:
        """Makes a message ready to be sent to many; returns what `send` takes. The ones before it may be dropped."""

    def send(self, worker: int, orders: Orders, message: Any) -> None:
        """Sends orders, and a message that was published, or None. The answer is an event."""

    def replace(self, worker: int) -> None:
        """Ends a worker, if it is there, and starts another one."""

    def look(self) -> None:
        """Starts workers for resources that have come."""

    def events(self, seconds: float) -> list[Event]:
        """What has happened; waits so long for something to happen."""

    def close(self) -> None:
        """Ends all of them."""


class Fleet:
    """Plays the generations of an agent by workers.

    Args:
      blocks: of the agent. workers: who plays. block: how many pairs or environments are played together.
      number: workers that there are to be, where blocks stay with them.
      broadcast, close_at, limit: as `esrl.iterate` has them (`limit` is its `block_timeout`).

    Attributes:
      metrics: of the last generation.
      seconds: that a call of the environment may take. tolerant: whether a fault costs an episode alone.
    """

    def __init__(
        self,
        blocks: Blocks,
        workers: Workers,
        block: int,
        *,
        number: int = 1,
        broadcast: str = "parameters",
        close_at: float = 1.0,
        limit: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.metrics: dict[str, float] = {}
        self.seconds, self.tolerant = 300.0, True
        self._blocks = blocks
        self._bounds = bounds_of(blocks.size, block)
        self._workers, self._clock = workers, clock
        sizes = np.diff(self._bounds).tolist()
        self._schedule = (
            StayingScheduler(sizes, workers=number, limit=limit)
            if blocks.stay
            else Scheduler(sizes, close_at=close_at, limit=limit)
        )
        self._retold = blocks.retold if broadcast == "scalars" else None
        self._last: tuple[int, bytes] | None = None  # the generation that the last scalars lead to, and these
        self._at: dict[int, int] = {}  # the generation that each worker knows the state of
        self._frozen: Any = ()  # the frozen parameters, and the workers that have been sent them
        self._have_frozen: set[int] = set()
        self._strange: dict[int, int] = {}
        self._node: dict[int, str] = {}
        self._since_one, self._told = clock(), False  # when there last was a worker; whether it was said since

    def rollout(self, state: Any) -> Any:
        """Plays one generation. It is the same, bit for bit, whoever plays; but for what `close_at` leaves out.

        Raises:
          EsrlError: the environment's own error, or there are no workers.
        """
        now = _Generation(self, jax.device_get(state))
        self._since_one = self._clock()  # what the driver did between generations is no wait for workers
        self._workers.look()
        commands = self._schedule.begin(self._clock())
        while not now.over:
            for command in commands:
                now.obey(command)
            if now.over:
                break
            commands = []
            wait = min(max(self._schedule.wake() - self._clock(), 0.0), _LOOK)
            for event in self._workers.events(wait):
                commands += now.hear(event)
            commands += self._schedule.tick(self._clock())
            self._check_there_is_one()
        experience = self._blocks.put_together(state, self._bounds, now.rows)
        if self._retold is not None:
            self._last = now.number + 1, self._retold.scalars(experience)
        self.metrics = now.metrics()
        return experience

    def close(self) -> None:
        """Ends the workers."""
        self._workers.close()

    def _check_there_is_one(self) -> None:
        if self._schedule.workers:
            self._since_one, self._told = self._clock(), False
            return
        alone = self._clock() - self._since_one
        if alone > PATIENCE:
            raise EsrlError(
                f"there has been no worker for {PATIENCE:.0f} s; start nodes with free cores (ray status says what the"
                " cluster has)"
            )
        if alone > _SILENT and not self._told:
            self._told = True
            notice(
                f"there is no worker yet: the cluster has no free core, or its processes start slowly; the run goes on"
                f" as soon as there is one, and ends where none has come after {PATIENCE:.0f} s"
            )
        self._workers.look()


class _Generation:
    """One generation of a fleet while it is played."""

    def __init__(self, fleet: Fleet, state: Any) -> None:
        self.fleet, self.state = fleet, state
        self.number = int(state.generation)
        self.rows: dict[int, Any] = {}
        self.over = False
        self.sent = self.received = self.resent = 0
        self._handles: dict[str, tuple[Any, int]] = {}  # of each kind of message: published, and its bytes
        self._told: set[tuple[str, str]] = set()  # kinds of messages, and the nodes that have them
        self._print = messages.fingerprint(fleet._retold.played_by(state)) if fleet._retold else b""
        frozen = fleet._blocks.frozen(state)
        if not messages.same_numbers(fleet._frozen, frozen):  # the first generation, or another run's state
            fleet._frozen, fleet._have_frozen = frozen, set()

    def obey(self, command: Command) -> None:
        """Does what the scheduler says."""
        if isinstance(command, Play):
            self._send(command.worker, command.block)
        elif isinstance(command, Replace):
            notice(f"a worker was given {command.seconds:.0f} s for a block, and is replaced")
            self._forget(command.worker)
            self.fleet._workers.replace(command.worker)
        elif isinstance(command, GiveUp):
            self._give_up(command.block)
        elif isinstance(command, Close):
            self.over = True

    def hear(self, event: Event) -> list[Command]:
        """Tells the scheduler what has happened."""
        fleet, now = self.fleet, self.fleet._clock()
        if isinstance(event, Broken):
            raise EsrlError(event.text)
        if isinstance(event, Joined):
            fleet._node[event.worker] = event.node
            return fleet._schedule.joined(event.worker, now)
        if isinstance(event, Left):
            self._forget(event.worker)
            fleet._workers.replace(event.worker)
            return fleet._schedule.left(event.worker, now)
        return self._finished(event, now)

    def metrics(self) -> dict[str, float]:
        """What an observer wants to know of who played."""
        schedule, blocks = self.fleet._schedule, self.fleet._blocks
        present = sum(end - first for i, (first, end) in enumerate(pairwise(self.fleet._bounds)) if i in self.rows)
        missing = {} if blocks.needs_all else {"pairs_missing": blocks.size - present}
        return {
            "workers": schedule.workers,
            "workers_lost": schedule.ended,
            "blocks_again": schedule.again,
            **missing,
            "bytes_sent": self.sent,
            "bytes_received": self.received,
        }

    def _send(self, worker: int, block: int) -> None:
        fleet = self.fleet
        first, end = fleet._bounds[block : block + 2]
        kind = self._news(worker)
        handle = None
        if kind:
            handle, size = self._published(kind)
            fleet._at[worker] = self.number
            if kind == "state":
                fleet._have_frozen.add(worker)
            # Workers of a node share what the node has got.
            if (kind, node := fleet._node.get(worker, "")) not in self._told:
                self._told.add((kind, node))
                self.sent += size
        part = messages.pack(fleet._blocks.part(self.state, first, end))
        self.sent += _HEAD + len(part)
        orders = Orders(self.number, first, end, kind, fleet.seconds, fleet.tolerant, part)
        fleet._workers.send(worker, orders, handle)

    def _news(self, worker: int) -> str:
        """The kind of message that a worker needs before it can play: none, if it has had it."""
        known = self.fleet._at.get(worker)
        if known == self.number:
            return ""
        last = self.fleet._last
        follows = last is not None and last[0] == self.number and known == self.number - 1
        if follows and self.fleet._strange.get(worker, 0) < _STRANGE:
            return "scalars"
        has = worker in self.fleet._have_frozen and jax.tree.leaves(self.fleet._frozen)
        return "trained" if has else "state"

    def _published(self, kind: str) -> tuple[Any, int]:
        if kind not in self._handles:
            whole = self.state if self.fleet._retold else self.fleet._blocks.playable(self.state)
            if kind == "trained":
                whole = messages.without_frozen(whole, self.fleet._blocks.frozen_field)
            message = self.fleet._last[1] if kind == "scalars" and self.fleet._last else messages.pack(whole)
            self._handles[kind] = self.fleet._workers.publish(message), len(message)
        return self._handles[kind]

    def _finished(self, event: Finished, now: float) -> list[Command]:
        fleet, (worker, orders, played) = self.fleet, event
        block = fleet._bounds.index(orders.first)
        ours = orders.generation == self.number
        self.received += played.size
        if played.error:
            if ours:
                raise EsrlError(played.error)
            fleet._at.pop(worker, None)  # it was asked before a run broke off
            fleet._have_frozen.discard(worker)
        elif ours and played.print != self._print:
            # Its processor, or its version of a library, rounds otherwise: it has to be sent the parameters.
            fleet._at.pop(worker, None)
            fleet._strange[worker] = fleet._strange.get(worker, 0) + 1
            return fleet._schedule.refused(worker, now)
        elif ours and block not in self.rows and not self.over:
            self.rows[block] = messages.unpack(
                played.rows, fleet._blocks.rows_like(self.state, orders.end - orders.first)
            )
            if (faults := self._faults()) is not None:
                faults.elsewhere(played.told, played.failed, played.begun)
        generation = fleet._schedule.generation if ours else -1
        # What is of an earlier generation may have been heard long after it was there.
        return fleet._schedule.finished(worker, generation, block, now, None if ours else played.seconds)

    def _give_up(self, block: int) -> None:
        first, end = self.fleet._bounds[block : block + 2]
        blocks, faults = self.fleet._blocks, self._faults()
        text = (
            f"{name_of(blocks.agent.env)}: every worker that played the {blocks.unit} {first} to {end - 1} has ended;"
            " one that plays them in the driver's process may show why (leave out ray_address)"
        )
        if faults is None:
            raise EsrlError(text)
        self.rows[block] = blocks.lost(self.state, first, end)
        lanes = blocks.episodes(end - first)
        faults.elsewhere(text, lanes, lanes)

    def _faults(self) -> Faults | None:
        return getattr(self.fleet._blocks.agent.env, "faults", None)

    def _forget(self, worker: int) -> None:
        for known in (self.fleet._at, self.fleet._strange, self.fleet._node):
            known.pop(worker, None)
        self.fleet._have_frozen.discard(worker)
