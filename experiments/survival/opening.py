"""Kills aimed at the moment when a run of 100,000 rows is opened to be gone on with: is a row ever lost?

    python -m experiments.survival.opening

A process opens the metrics again and again, each time to go on a few generations before the end and to write those
again, as a run does that goes on from a checkpoint; it is killed after some milliseconds. Afterwards the rows must be
those of generations 1, 2, 3, ... without a hole, and at least all those before the generation that was gone on from.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from esrl.training.logs import Metrics
from experiments import script
from experiments.lab.store import Store, results

BACK = 20  # generations that are written again


@dataclass
class Arguments:
    """The command line."""

    kills: int = 200
    rows: int = 100_000
    seed: int = 0
    out: Path = results("survival") / "opening.csv"


def row_of(generation: int) -> dict[str, float]:
    """A row as long as those of a run."""
    return {"generation": generation, **{f"value_{i}": generation / (i + 1) for i in range(20)}}


def reopen(path: Path, rows: int) -> None:
    """Opens the metrics and writes the last generations again, for ever."""
    while True:
        metrics = Metrics(path)
        metrics.open(rows - BACK)
        for generation in range(rows - BACK + 1, rows + 1):
            metrics.write(row_of(generation))
        metrics.close()


def main() -> None:
    arguments = script.options(Arguments, __doc__)
    draw, lost, begun = random.Random(arguments.seed), 0, time.monotonic()
    with tempfile.TemporaryDirectory(prefix="esrl-opening-") as folder:
        path = Path(folder) / "metrics.jsonl"
        path.write_text("".join(json.dumps(row_of(g)) + "\n" for g in range(1, arguments.rows + 1)))
        for kill in range(arguments.kills):
            child = os.fork()
            if not child:
                try:
                    reopen(path, arguments.rows)
                finally:
                    os._exit(1)
            time.sleep(draw.uniform(0.0005, 0.02))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            # All rows are read now and then; the last ones each time.
            last = Metrics(path).last()["generation"]
            whole = kill % 20 == 19 or kill == arguments.kills - 1
            found = [row["generation"] for row in Metrics(path).rows()] if whole else []
            if last < arguments.rows - BACK or (whole and found != list(range(1, last + 1))):
                lost += 1
    seconds = round(time.monotonic() - begun, 1)
    row = {"kills": arguments.kills, "rows": arguments.rows, "seed": arguments.seed, "lost": lost, "seconds": seconds}
    Store(arguments.out, key=("rows", "seed")).add([row], replace=True)
    print(script.table(list(row), [row.values()]))
    if lost:
        sys.exit("rows were lost")


if __name__ == "__main__":
    main()
