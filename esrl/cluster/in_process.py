"""The one worker that is this process: what a cluster's result is equal to, bit for bit."""

from __future__ import annotations

import time
from typing import Any

import jax

from esrl.cluster import messages
from esrl.cluster.blocks import Blocks
from esrl.cluster.fleet import Event, Finished, Joined
from esrl.cluster.player import Orders, Played
from esrl.core.types import seed_key


class InProcess:
    """Plays the blocks one after the other, here. See `fleet.Workers`."""

    def __init__(self, blocks: Blocks) -> None:
        init = blocks.agent.init.function  # type: ignore[attr-defined]
        self._shapes = jax.eval_shape(init, jax.eval_shape(lambda: seed_key(0)))
        self._blocks, self._play = blocks, blocks.player()
        self._state: Any = None
        self._events: list[Event] = [Joined(0, "")]

    def publish(self, message: bytes) -> Any:
        return message

    def send(self, worker: int, orders: Orders, message: Any) -> None:
        begun = time.monotonic()
        if message is not None:
            like = self._blocks.playable(self._shapes)
            self._state = messages.state_of(orders.kind, message, like, self._state, self._blocks.frozen_field)
        part = messages.unpack(orders.part, self._blocks.part_like(self._shapes, orders.end - orders.first))
        # The environment is the driver's own: it counts its faults there, and raises here.
        rows = messages.pack(self._play(self._state, part, orders.first, orders.end))
        self._events.append(Finished(worker, orders, Played(rows, "", "", 0, 0, b"", time.monotonic() - begun)))

    def replace(self, worker: int) -> None:
        self._events.append(Joined(worker, ""))

    def look(self) -> None:
        pass

    def events(self, seconds: float) -> list[Event]:
        found, self._events = self._events, []
        return found

    def close(self) -> None:
        pass
