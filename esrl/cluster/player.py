"""What runs on a worker: an agent of its own, which plays the blocks that it is given, by the parameters it is told."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import time
from typing import Any, NamedTuple

import jax

from esrl.cluster import messages
from esrl.cluster.blocks import blocks_of, on_one_device
from esrl.cluster.jobs import Job, agent_of
from esrl.core.processes import versions
from esrl.core.runtime import take_one_core
from esrl.core.types import EsrlError, PyTree, reason_of, seed_key
from esrl.envs.base import on_device


class Orders(NamedTuple):
    """What a worker is to play.

    Attributes:
      generation: uint32 of the state. first, end: of the pairs or lanes.
      kind: of the message that comes along: "state", "trained" (a state without its frozen parameters, which the worker
        has) or "scalars"; or "" where the worker knows already.
      seconds: that a call of the environment may take. tolerant: whether a fault costs an episode alone.
      part: packed, what the block needs beside the message.
    """

    generation: int
    first: int
    end: int
    kind: str
    seconds: float
    tolerant: bool
    part: bytes = b""


class Played(NamedTuple):
    """What a worker has played.

    Attributes:
      rows: packed. error: a sentence, where it could not play. told: of the first episode that failed, or "".
      failed, begun: episodes, of those that Python steps. print: of the state that it played by.
      seconds: that it took.
    """

    rows: bytes
    error: str
    told: str
    failed: int
    begun: int
    print: bytes
    seconds: float

    @property
    def size(self) -> int:
        """Bytes of it that travel, but for what Ray adds."""
        return len(self.rows) + len(self.error) + len(self.told) + len(self.print) + 16


def settle(flags: str) -> None:
    """Makes this process a worker's: one core, and the driver's XLA_FLAGS: another program may round otherwise."""
    os.environ["XLA_FLAGS"] = flags
    os.environ["JAX_PLATFORMS"] = "cpu"  # a worker is of one core; Ray hides no GPU from those that asked for none
    jax.config.update("jax_platforms", "cpu")
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the driver's
    take_one_core()


class Player:
    """A worker. It is made without an agent, so that it can say its versions before it reads anything.

    Args:
      broadcast: how it is told where the search is, `messages.BROADCASTS`.
    """

    def __init__(self, broadcast: str) -> None:
        self.scalars = broadcast == "scalars"
        self.agent: Any = None
        self.state: Any = None

    def versions(self) -> dict[str, str]:
        """What has to be the same on all nodes; and the node's name."""
        return {**versions(), "node": platform.node()}

    def prepare(self, job: Job) -> str:
        """Makes the agent; returns a sentence where that is not possible, else ""."""
        try:
            self.agent = on_one_device(agent_of(job))
            self.blocks = blocks_of(self.agent)
            self.retold = self.blocks.retold if self.scalars else None
            self.shapes = jax.eval_shape(self.agent.init.function, jax.eval_shape(lambda: seed_key(0)))
            self.like = self.shapes if self.retold else self.blocks.playable(self.shapes)
            self.play_block = self.blocks.player()
        except EsrlError as error:
            return str(error)
        except Exception as error:
            return f"a worker cannot make the agent: {reason_of(error)}"
        return ""

    def play(self, orders: Orders, message: bytes) -> Played:
        """Plays a block, after the message that comes before it, if one does."""
        begun = time.monotonic()
        try:
            self._hear(orders, message)
            rows, told, failed, started = self._play(orders)
        except EsrlError as error:
            return Played(b"", str(error), "", 0, 0, b"", time.monotonic() - begun)
        seen = messages.fingerprint(self.retold.played_by(self.state)) if self.retold else b""
        return Played(messages.pack(rows), "", told, failed, started, seen, time.monotonic() - begun)

    def _hear(self, orders: Orders, message: bytes) -> None:
        if orders.kind in ("state", "trained"):
            state = messages.state_of(orders.kind, message, self.like, self.state, self.blocks.frozen_field)
            self.state = jax.tree.map(jax.numpy.asarray, state)
        elif orders.kind == "scalars" and self.retold:
            self.state = self.retold.follow(self.agent, self.state, message)
        if self.state is None or int(self.state.generation) != orders.generation:
            raise EsrlError("a worker was asked for a generation that it has not heard of; this is an error of esrl")

    def _play(self, orders: Orders) -> tuple[PyTree, str, int, int]:
        faults = None if on_device(self.agent.env) else self.agent.env.faults
        part = messages.unpack(orders.part, self.blocks.part_like(self.shapes, orders.end - orders.first))
        if faults is None:
            return self.play_block(self.state, part, orders.first, orders.end), "", 0, 0
        with faults.tolerating(orders.seconds, 1.0 if orders.tolerant else 0.0):
            rows = self.play_block(self.state, part, orders.first, orders.end)
            # Lanes that live on may begin no episode.
            return rows, faults.first.text if faults.first else "", faults.count, max(faults.begun, faults.lanes)


def agrees(mine: dict[str, str], theirs: dict[str, str]) -> str:
    """A sentence where a node's versions are not those of the driver, else ""."""
    other = [
        f"{name} {theirs.get(name, 'none')} (here {mine[name]})" for name in mine if theirs.get(name) != mine[name]
    ]
    if not other:
        return ""
    return f"node {theirs.get('node', '?')} has {', '.join(other)}; install the same versions on every node"
