"""What Ray takes of the driver's time, for an order that is sent and an answer that comes back.

    python -m experiments.scaling.driver_cost --calls 2000

Orders go to one worker that does nothing, and answers with as many bytes as 4 pairs. Written: results/driver_cost.json.
"""

from __future__ import annotations

import json
import queue
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from esrl.cluster.player import Orders, Played
from esrl.cluster.ray_session import Session
from experiments import script
from experiments.lab.store import results


class Idle:
    """Answers at once."""

    def play(self, orders: Orders, message: bytes) -> Played:
        return Played(b"0" * 400, "", "", 0, 0, b"", 0.0)


RESULTS = results("scaling")


@dataclass
class Arguments:
    """The command line."""

    calls: int = 1000
    rounds: int = 5
    out: Path = RESULTS


def main() -> None:
    arguments = script.options(Arguments, __doc__)
    session = Session("local", 1)
    actor = session.ray.remote(Idle).remote()
    orders = Orders(0, 0, 4, "", 300.0, True)
    session.ray.get(actor.play.remote(orders, b""))
    rows = []
    for _ in range(arguments.rounds):
        done: queue.SimpleQueue = queue.SimpleQueue()
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(arguments.calls):
            actor.play.remote(orders, b"").future().add_done_callback(
                lambda future, done=done: done.put(future.result())
            )
        sent = time.process_time() - cpu
        for _ in range(arguments.calls):
            done.get()
        rows.append((sent, time.process_time() - cpu - sent, time.perf_counter() - wall))
    session.close()
    # Processor seconds of the driver's process, so that a busy machine makes little difference.
    send, receive, wall = (statistics.median(column) / arguments.calls for column in zip(*rows, strict=True))
    found = {"send": send, "receive": receive, "wall": wall, "calls": arguments.calls}
    print(json.dumps(found))
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "driver_cost.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
