"""Policies without a derivative: trained by `eggroll_ac`, by whole-episode EGGROLL, and by PPO.

    python -m experiments.credit.hard           # whatever runs are missing, and the table

The policies are those of policies.py, of which PPO trains the last layer alone. All have the same environment steps,
held-out episodes and their own defaults, but `eggroll_ac` four pairs of larger noise, and all of what feedback misses:
noise has to flip a unit to be felt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

import esrl
from experiments import script
from experiments.credit import policies
from experiments.lab import curves, pool
from experiments.lab.store import Store, results

ENVS = ("gymnasium/phys2d/CartPole-v1", "gymnasium/phys2d/Pendulum-v0")
POLICIES = {"threshold": policies.threshold, "lookup": policies.lookup}
AGENTS: dict[str, dict[str, Any]] = {
    "eggroll_ac": {"sigma": 0.3, "pairs": 4, "residual": 1.0},
    "eggroll": {},
    "ppo": {},
}


@dataclass
class Arguments:
    """The command line."""

    env_steps: float = 3e5
    seeds: int = 5


def main() -> None:
    """The script."""
    arguments = script.options(Arguments, __doc__)
    table = Store(results("credit") / "hard.csv", key=("env", "policy", "agent", "seed"))
    wanted = [(e, p, a, s) for e in ENVS for p in POLICIES for a in AGENTS for s in range(arguments.seeds)]
    with pool.stoppable("what was measured is kept"):
        for env, policy, name, seed in table.missing(wanted):
            agent = getattr(esrl, name)(env, POLICIES[policy], **AGENTS[name])
            found = curves.measure(agent, arguments.env_steps, seed, num_evals=4, early_evals=0, eval_episodes=128)
            table.add([{"env": env, "policy": policy, "agent": name, "seed": seed, **row} for row in found])
            print(f"{env} {policy} {name} {seed}: {found[-1]['return_mean']:.4g}", flush=True)
    frame = pd.DataFrame(table.read())
    print(script.table(["", "policy", *AGENTS]))
    for env in ENVS:
        for policy in POLICIES:
            here = frame[(frame["env"] == env) & (frame["policy"] == policy)]
            runs = [here[here["agent"] == name] for name in AGENTS]
            cells = [curves.cell(curves.at(r, "env_steps", arguments.env_steps)) if len(r) else "–" for r in runs]
            print(script.line([env, policy, *cells]))


if __name__ == "__main__":
    main()
