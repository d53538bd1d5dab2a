"""What robots need: one thing changed in the defaults that Brax's search gave them, over robots and seeds.

    python -m experiments.defaults.robots --config '{"population": 16}' --envs brax/hopper --seeds 3
    python -m experiments.defaults.robots --table      # what was measured, as Markdown

A configuration is laid over `BASE`, which no suite's defaults touch. Rows are one for each evaluation, in
results/robots.csv: held-out return of the averaged parameters, over 64 episodes (16 for robots that are dear).
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

import esrl
from esrl.training.recipe import NETWORK_KEYS
from experiments import script
from experiments.lab import curves, pool
from experiments.lab.store import Row, Store, results

BASE: dict[str, Any] = {  # what `esrl train` gave robots before
    "hidden": [32, 32],
    "activation": "tanh",
    "population": 8,
    "episodes_per_member": 1,
    "optimizer": "clipup",
    "learning_rate": 0.1,
}
STEPS = {  # of a run
    "brax/inverted_double_pendulum": 5e5,
    "brax/hopper": 2e6,
    "brax/reacher": 1e6,
    "brax/halfcheetah": 1e6,
    "brax/ant": 1.5e6,
}
CHEAP = ("brax/inverted_double_pendulum", "brax/reacher")


@dataclass
class Arguments:
    """The command line."""

    config: tuple[str, ...] = ()  # configurations as JSON, over BASE
    envs: tuple[str, ...] = tuple(STEPS)
    seeds: int = 3
    times: float = 1.0  # the steps of STEPS
    table: bool = False  # only print what is there


def store() -> Store:
    """The table of all runs."""
    return Store(results("defaults") / "robots.csv", key=("config", "env", "seed"))


def measure(config: dict[str, Any], env: str, seed: int, env_steps: float) -> list[Row]:
    """One run's evaluations."""
    wanted = BASE | config
    policy = {name: value for name, value in wanted.items() if name in NETWORK_KEYS}
    options = {name: value for name, value in wanted.items() if name not in NETWORK_KEYS}
    agent = esrl.Recipe(env, "eggroll", policy=policy, options=options).build()
    episodes = 64 if env in CHEAP else 16
    found = curves.measure(agent, env_steps, seed, num_evals=4, early_evals=0, eval_episodes=episodes)
    key = {"config": json.dumps(config), "env": env, "seed": seed}
    return [{**key, "env_steps": row["env_steps"], "return_mean": row["return_mean"]} for row in found]


def show() -> None:
    """A line for each configuration: what its seeds have at the ends of their runs, after how many steps."""
    frame = pd.DataFrame(store().read())
    envs = [env for env in STEPS if (frame["env"] == env).any()]
    print(script.table([f"over {json.dumps(BASE)}", *(env.removeprefix("brax/") for env in envs)]))
    for config, rows in frame.groupby("config", sort=False):
        cells = []
        for env in envs:
            here = rows[rows["env"] == env]
            ends = here.loc[here.groupby("seed")["env_steps"].idxmax()] if len(here) else here
            steps = f" after {np.median(ends['env_steps']):.2g}" if len(here) else "–"
            cells.append(", ".join(f"{value:.0f}" for value in ends["return_mean"]) + steps)
        print(script.line([str(config), *cells]))


def main() -> None:
    """The script."""
    arguments = script.options(Arguments, __doc__)
    if arguments.table:
        show()
        return
    for env in arguments.envs:
        if env not in STEPS:
            script.wrong(f"--envs has {env!r}, but they are {', '.join(STEPS)}")
    try:
        given = [json.dumps(json.loads(text)) for text in arguments.config]
    except json.JSONDecodeError as error:
        script.wrong(f"--config is no JSON: {error}")
    wanted = itertools.product(given, arguments.envs, range(arguments.seeds))
    with pool.stoppable("what was measured is kept"):
        for config, env, seed in store().missing(list(wanted)):
            rows = measure(json.loads(config), env, seed, arguments.times * STEPS[env])
            store().add(rows)
            print(f"{config} {env} {seed}: {rows[-1]['return_mean']:.4g}", flush=True)


if __name__ == "__main__":
    main()
