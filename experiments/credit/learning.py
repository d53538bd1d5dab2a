"""EGGROLL with credit for every step beside its control by backpropagation, PPO, and whole-episode EGGROLL.

    python -m experiments.credit.learning                          # whatever runs are missing; several may run at once
    python -m experiments.credit.learning --agents eggroll_ac --envs jumanji/Snake-v1
    python -m experiments.credit.learning --table                  # what was found, as Markdown

Everybody has its own defaults, and nothing is tuned for an environment. `control` is `eggroll_ac` with the gradient of
the actor by backpropagation, and nothing else changed: what lies between the two is the price of going without. Rows
are one for each evaluation, in results/learning.csv, by held-out episodes with the unperturbed parameters (`eggroll`:
the averaged ones). Seconds are those of one core. `ppo` and `eggroll` are those of experiments/defaults where it has
them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import pandas as pd

import esrl
from esrl.training.suite_defaults import suite_defaults
from experiments import script
from experiments.defaults import confirm
from experiments.lab import curves, pool
from experiments.lab.curves import at, better, cell
from experiments.lab.store import Row, Store, results

ENVS = {  # and how long a run is, in environment steps
    "gymnasium/phys2d/Pendulum-v0": 3e5,
    "navix/Navix-Dynamic-Obstacles-6x6-Random-v0": 5e5,
    "navix/Navix-Dynamic-Obstacles-8x8-v0": 5e5,
    "jumanji/Snake-v1": 3e5,
    "jumanji/Knapsack-v1": 5e5,
    "brax/inverted_double_pendulum": 6e5,
    "jumanji/Game2048-v1": 1e6,
    "brax/hopper": 1e6,
    "brax/halfcheetah": 1e6,
    "navix/Navix-DoorKey-8x8-v0": 1e6,
}
AGENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "eggroll_ac": ("eggroll_ac", {}),
    "control": ("eggroll_ac", {"gradient": "backprop"}),
    "eggroll_ac, ridge": ("eggroll_ac", {"critic": "ridge"}),
    "eggroll_ac, policy_ridge": ("eggroll_ac", {"critic": "policy_ridge"}),
    "eggroll_ac, weights": ("eggroll_ac", {"noise_space": "weights", "sigma": 0.05, "learning_rate": 1e-3}),
    "eggroll_ac, residual 0": ("eggroll_ac", {"residual": 0.0}),
    "eggroll_ac, no feedback": ("eggroll_ac", {"feedback": False}),
    "ppo": ("ppo", {}),
    "eggroll": ("eggroll", {}),
}
COMPARED = ("control", "ppo", "eggroll")


@dataclass
class Arguments:
    """The command line."""

    agents: tuple[str, ...] = tuple(AGENTS)
    envs: tuple[str, ...] = tuple(ENVS)
    seeds: int = 5
    table: bool = False  # only print what is there


def store() -> Store:
    """The table of all runs."""
    return Store(results("credit") / "learning.csv", key=("agent", "env", "seed"))


def recipe(env: str, agent: str) -> esrl.Recipe:
    """An agent's defaults on an environment."""
    name, options = AGENTS[agent]
    policy, own = suite_defaults(env, name)
    return esrl.Recipe(env, name, policy=policy, options=own | options)


def measure(env: str, agent: str, seed: int) -> list[Row]:
    """One run's evaluations."""
    found = curves.measure(
        recipe(env, agent).build(), ENVS[env], seed=seed, num_evals=6, early_evals=2, eval_episodes=128
    )
    return [{"agent": agent, "env": env, "seed": seed, **row} for row in found]


def _before() -> pd.DataFrame:
    """Runs of EGGROLL's and PPO's defaults that the comparison of defaults has already (experiments/defaults)."""
    frame = pd.DataFrame(confirm.store().read())
    frame = frame[frame["agent"].isin(["now", "ppo"]) & frame["env"].isin(list(ENVS))]
    return frame.replace({"agent": {"now": "eggroll"}})


def show() -> None:
    """Two tables: at the end of the runs, and at the seconds that `eggroll_ac` took."""
    frame = pd.concat([pd.DataFrame(store().read()), _before()])
    names = [name for name in AGENTS if frame["agent"].eq(name).any()]
    for column, title in (("env_steps", "environment steps"), ("seconds", "seconds of one core")):
        print(f"\nAt equal {title}:\n")
        print(script.table(["", title, *names, *(f"beats {name}" for name in COMPARED)]))
        for env in ENVS:
            here = frame[frame["env"] == env]
            runs = {name: rows for name in names if len(rows := here[here["agent"] == name])}
            if "eggroll_ac" not in runs:
                continue
            ends = {name: float(rows.groupby("seed")[column].max().min()) for name, rows in runs.items()}
            common = ends["eggroll_ac"]
            cells, chances = [], []
            for name in names:
                end = min(common, ends.get(name, common))
                short = f" at {end:.2g}" if end < 0.97 * common else ""
                cells.append(cell(at(runs[name], column, end)) + short if name in runs else "–")
            for name in COMPARED:
                end = min(common, ends.get(name, common))
                known = name in runs
                pair = (at(runs[who], column, end) for who in ("eggroll_ac", name)) if known else ()
                chances.append(f"{better(*pair):.2f}" if known else "–")
            print(script.line([env, f"{common:.3g}", *cells, *chances]))


def main() -> None:
    """The script."""
    arguments = script.options(Arguments, __doc__)
    for given, known, flag in ((arguments.agents, AGENTS, "agents"), (arguments.envs, ENVS, "envs")):
        for name in given:
            if name not in known:
                script.wrong(f"--{flag} has {name!r}, but they are {', '.join(known)}")
    if arguments.table:
        show()
        return
    wanted = [
        (agent, env, seed) for env in arguments.envs for agent in arguments.agents for seed in range(arguments.seeds)
    ]
    with pool.stoppable("what was measured is kept"):
        for agent, env, seed in store().missing(wanted):
            begun = time.perf_counter()
            rows = measure(env, agent, seed)
            store().add(rows)
            last, took = rows[-1], time.perf_counter() - begun
            found = f"{last['return_mean']:.4g} after {last['seconds']:.0f} s ({took:.0f} s)"
            print(f"{agent} {env} {seed}: {found}", flush=True)


if __name__ == "__main__":
    main()
