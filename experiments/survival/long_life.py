"""What grows in a process that trains for long: memory, files, threads, seconds a generation.

    python -m experiments.survival.long_life                    # 10,000 generations, then 12 trainings

A run saves its state after each generation and is looked at every thousand; then short trainings follow one another,
each with an agent of its own, and the process is looked at after each.
"""

from __future__ import annotations

import gc
import os
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import esrl
from experiments import script
from experiments.lab.store import Store, results

ENV = "gymnasium/phys2d/CartPole-v1"


@dataclass
class Arguments:
    """The command line."""

    generations: int = 10_000
    every: int = 1000  # generations between looks
    trainings: int = 12
    out: Path = results("survival") / "long_life.csv"


def looked(part: str, number: int, seconds: float) -> dict[str, Any]:
    """A row: what this process holds now."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "part": part,
        "number": number,
        "MiB": round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1),
        "files": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "tasks": len(os.listdir("/proc/self/task")),
        "milliseconds": round(1000 * seconds, 3),
    }


def main() -> None:
    arguments = script.options(Arguments, __doc__)
    rows = []
    with tempfile.TemporaryDirectory(prefix="esrl-long-") as folder:
        agent = esrl.eggroll(ENV, esrl.mlp((8,)), population=8)
        begun = time.perf_counter()
        out = Path(folder) / "long"
        run = esrl.iterate(agent, generations=arguments.generations, num_evals=0, checkpoint_every=1, out=out)
        for generation, _, _ in run:
            if generation % arguments.every == 0:
                rows.append(looked("generations", generation, (time.perf_counter() - begun) / arguments.every))
                begun = time.perf_counter()
        for number in range(1, arguments.trainings + 1):
            begun = time.perf_counter()
            own = esrl.eggroll(ENV, esrl.mlp((8,)), population=8)
            esrl.train(own, generations=20, num_evals=0, checkpoint_every=1, out=Path(folder) / str(number))
            rows.append(looked("trainings", number, time.perf_counter() - begun))
    Store(arguments.out, key=("part", "number")).add(rows, replace=True)
    print(script.table(list(rows[0]), [row.values() for row in rows]))


if __name__ == "__main__":
    main()
