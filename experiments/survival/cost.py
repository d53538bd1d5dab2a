"""What a checkpoint after every generation costs: the speed with, over the speed without, in one process.

    python -m experiments.survival.cost
    python -m experiments.survival.cost --env brax/hopper --population 64

Two runs of the same agent take turns, a window of generations each: one saves its whole state after each generation,
the other saves nothing; both write their metrics.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import esrl
from experiments import script
from experiments.lab.store import Store, results


@dataclass
class Arguments:
    """The command line."""

    env: str = "gymnax/CartPole-v1"
    agent: str = "eggroll"
    population: int = 2048
    window: int = 10  # generations of a turn
    turns: int = 30
    out: Path = results("survival") / "cost.csv"


def main() -> None:
    arguments = script.options(Arguments, __doc__)
    options = {} if arguments.agent in ("ppo", "eggroll_ac") else {"population": arguments.population}
    agent = esrl.Recipe(arguments.env, arguments.agent, options=options).build()
    with tempfile.TemporaryDirectory(prefix="esrl-cost-") as folder:
        runs = {
            name: iter(esrl.iterate(agent, generations=10**9, num_evals=0, out=Path(folder) / name, checkpoint_every=n))
            for name, n in (("every", 1), ("none", 10**9))
        }
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(arguments.turns + 1):
            for name, run in runs.items():
                begun = time.perf_counter()
                for _ in range(arguments.window):
                    next(run)
                if turn:  # the first one compiles
                    seconds[name].append((time.perf_counter() - begun) / arguments.window)
        state = max((Path(folder) / "every" / "checkpoints").glob("*.safetensors")).stat().st_size
        for run in runs.values():
            run.close()  # type: ignore[attr-defined]
    ratios = sorted(without / each for without, each in zip(seconds["none"], seconds["every"], strict=True))
    low, middle, high = (ratios[int(q * (len(ratios) - 1))] for q in (0.25, 0.5, 0.75))
    row = {
        "env": arguments.env,
        "agent": arguments.agent,
        "population": options.get("population", ""),
        "milliseconds": round(1000 * statistics.median(seconds["none"]), 2),
        "checkpoint_bytes": state,
        "ratio": round(middle, 3),
        "ratio_lower": round(low, 3),
        "ratio_upper": round(high, 3),
    }
    Store(arguments.out, key=("env", "agent", "population")).add([row], replace=True)
    print(script.table(list(row), [row.values()]))


if __name__ == "__main__":
    main()
