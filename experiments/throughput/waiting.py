"""How many steps a second do lanes of a waiting simulator play, by lanes and processes, and in how much memory?

    python -m experiments.throughput.waiting

Steps of `slow.py:Slow`, which sleeps 5 ms, without an agent: the median of 60 steps of all lanes. Memory is what the
processes have for themselves, with their part of what they share.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

import esrl
from experiments import script
from experiments.throughput.slow import Slow

SHAPES = ((16, 16), (32, 16), (32, 32), (64, 16), (64, 64))  # lanes, processes
STEPS = 60


def mebibytes(pid: int) -> float:
    """A process's own memory and its part of what it shares."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def measured(lanes: int, processes: int) -> list[Any]:
    """A row of the table."""
    begun = time.perf_counter()
    made = esrl.make(Slow, workers=processes).make_lanes((lanes,))
    making = time.perf_counter() - begun
    every = np.ones(lanes, bool)
    made.begin(every, np.arange(lanes, dtype=np.uint32))
    actions, seconds = np.zeros((lanes, 2), np.float32), []
    for _ in range(STEPS):
        begun = time.perf_counter()
        made.step(actions, every)
        seconds.append(time.perf_counter() - begun)
    memory: Any = made._pool
    used = sum(mebibytes(process.pid) for process in memory._processes)
    made.close()
    step = statistics.median(seconds)
    return [lanes, processes, f"{making:.2f}", f"{1000 * step:.1f}", f"{lanes / step:,.0f}", f"{used:.0f}"]


def main() -> None:
    rows = [measured(*shape) for shape in SHAPES]
    print(script.table(["lanes", "processes", "s to make", "ms a step", "steps/s", "MiB"], rows))


if __name__ == "__main__":
    main()
