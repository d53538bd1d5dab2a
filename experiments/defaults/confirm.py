"""The new defaults against the old ones and PPO's, also on environments that the search never saw.

    python -m experiments.defaults.confirm --agents now before   # whatever is missing; several may run at once
    python -m experiments.defaults.confirm --table               # what was found, as Markdown
    python -m experiments.defaults.confirm --sizes               # steps that wait for ties, fixed populations

Nothing is tuned for an environment: what a suite says of network and sampling stays, and the rest is a default. Each
run is scored seven to twelve times by 64 or 128 held-out episodes, with the averaged parameters (`now`, `open_es`) or
the unperturbed ones (`before`, `ppo`). Rows are one for each evaluation, in results/confirm.csv. `seconds` are those
that one core was at work on training, without compiling and evaluating: the clock's, less what other processes had.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

import esrl
from esrl.training.suite_defaults import suite_defaults
from experiments import script
from experiments.defaults import worlds
from experiments.lab import curves, pool
from experiments.lab.curves import at, better, cell
from experiments.lab.stats import interquartile_mean, interval
from experiments.lab.store import Row, Store, results


class Defaults(NamedTuple):
    """Somebody's defaults: the agent's name and the keys of [policy] and [options] that are not today's."""

    agent: str
    policy: dict[str, Any] = {}  # noqa: RUF012
    options: dict[str, Any] = {}  # noqa: RUF012


WITHOUT = {"weight_decay": None, "horizon": None}  # what the robots' defaults had not until later
AGENTS = {
    "now": Defaults("eggroll"),
    "open_es": Defaults("open_es"),
    "ppo": Defaults("ppo"),
    "ppo before": Defaults(  # PPO's until version 0.2
        "ppo",
        {"hidden": [256, 256, 256]},
        {"num_envs": 64, "num_steps": 64, "learning_rate": 3e-4, "entropy_coef": 0.0},
    ),
    "before": Defaults(  # EGGROLL's until version 0.2
        "eggroll",
        {"hidden": [256, 256, 256], "activation": "layernorm_relu", "output_scale": 1.0, "skip": False},
        {"population": 512, "episodes_per_member": 1, "optimizer": "adam", "learning_rate": 0.02, "averaging": 0.0}
        | WITHOUT,
    ),
}
SIZES, SIZED, SIZED_8 = (8, 32, 128, 512), "sized", "sized from 8"
PARTS = {  # today's defaults with one thing changed
    "Adam 0.02": Defaults("eggroll", options={"optimizer": "adam", "learning_rate": 0.02}),
    "RMSprop 0.02": Defaults("eggroll", options={"optimizer": "rmsprop", "learning_rate": 0.02}),
    "SGD, momentum 0.9, 0.2": Defaults("eggroll", options={"optimizer": "sgd", "momentum": 0.9, "learning_rate": 0.2}),
    "ClipUp 0.1": Defaults("eggroll", options={"learning_rate": 0.1}),
    "no suite defaults": Defaults(
        "eggroll",
        {"hidden": [64, 64], "activation": "layernorm_relu", "output_scale": 0.1, "skip": True},
        {"population": 8, "episodes_per_member": 2, "optimizer": "clipup", "learning_rate": 0.2, "averaging": 0.97}
        | WITHOUT,
    ),
    "sigma does not follow": Defaults("eggroll", options={"signal_sigma": False}),
    "rate follows": Defaults("eggroll", options={"signal_rate": True}),
    "decay 0.01": Defaults("eggroll", options={"weight_decay": 0.01}),
    "decay 0.03": Defaults("eggroll", options={"weight_decay": 0.03}),
    "no decay": Defaults("eggroll", options={"weight_decay": None}),
    "sampled actions": Defaults("eggroll", options={"deterministic": False}),
    "no averaging": Defaults("eggroll", options={"averaging": 0.0}),
    **{f"population {n}": Defaults("eggroll", options={"population": n}) for n in SIZES},
    SIZED: Defaults("eggroll", options={"max_population": 512}),
    SIZED_8: Defaults("eggroll", options={"population": 8, "max_population": 512, "episodes_per_member": 2}),
    "one-hot, 64 x 4": Defaults(
        "eggroll",
        {"hidden": [64, 64], "output_scale": 0.1, "skip": False, "one_hot": True},
        {"population": 64, "episodes_per_member": 4, "sigma": 0.2, "learning_rate": 0.05, "averaging": 0.97},
    ),
    "gamma 0.97": Defaults("eggroll", options={"gamma": 0.97}),
    "one-hot": Defaults("eggroll", {"one_hot": True}),
    "ppo, one-hot": Defaults("ppo", {"one_hot": True}),
    "no skip": Defaults("eggroll", {"skip": False}),
    "outputs 1": Defaults("eggroll", {"output_scale": 1.0}),
    "32x32 tanh": Defaults("eggroll", {"hidden": [32, 32], "activation": "tanh"}),
    "32x32 tanh, outputs 1, no skip": Defaults(
        "eggroll",
        {"hidden": [32, 32], "activation": "tanh", "output_scale": 1.0, "skip": False},
        {"episodes_per_member": 2, "learning_rate": 0.2},
    ),
    "32x32 tanh, 8 x 1, ClipUp 0.1": Defaults(  # of the search on Brax alone: its second, which robots had, its first
        "eggroll",
        {"hidden": [32, 32], "activation": "tanh"},
        {"population": 8, "episodes_per_member": 1, "learning_rate": 0.1} | WITHOUT,
    ),
    "32x32 tanh, 32 x 1, sigma 0.075": Defaults(
        "eggroll",
        {"hidden": [32, 32], "activation": "tanh", "skip": False},
        {"population": 32, "episodes_per_member": 1, "learning_rate": 0.2, "sigma": 0.075, "averaging": 0.9} | WITHOUT,
    ),
    "32x32 tanh, 16 x 1": Defaults(
        "eggroll",
        {"hidden": [32, 32], "activation": "tanh", "output_scale": 1.0, "skip": False},
        {"population": 16, "episodes_per_member": 1, "learning_rate": 0.2, "averaging": 0.9} | WITHOUT,
    ),
    "linear": Defaults("eggroll", {"hidden": [], "skip": False}),
    "warm statistics": Defaults("eggroll", options={"warm_statistics": 3}),
    "fan-in sigma": Defaults("eggroll", options={"layer_sigma": "fan_in"}),
}
OF_MLP = ("hidden", "skip")
EVALUATIONS, EARLY, EPISODES = 8, 3, 128
BRAX_EVALUATIONS, BRAX_EARLY, BRAX_EPISODES = 4, 2, 64  # where scoring takes as long as training
PPO_SECONDS = 60  # and then PPO stops: longer than EGGROLL takes in all but two environments
LONGER = {"brax/hopper": 2e6, "brax/inverted_double_pendulum": 5e5, "gymnasium/phys2d/Pendulum-v0": 1e6}
SEEN = (*(world._replace(env_steps=LONGER.get(world.env, 1e6)) for world in worlds.SEEN), *worlds.ROBOTS)
ALL = (*worlds.UNSEEN, *worlds.LATER, *SEEN)


@dataclass
class Arguments:
    """The command line."""

    agents: tuple[str, ...] = tuple(AGENTS)
    envs: tuple[str, ...] = ()  # only these
    seeds: int = 5
    parts: bool = False  # today's defaults with one thing changed, in place of agents
    table: bool = False  # only print what is there
    sizes: bool = False  # only print steps that wait for ties beside fixed populations


def store() -> Store:
    """The table of all runs."""
    return Store(results("defaults") / "confirm.csv", key=("agent", "env", "seed"))


def recipe(env: str, agent: str) -> esrl.Recipe:
    """Somebody's defaults on an environment."""
    found = (AGENTS | PARTS)[agent]
    policy, options = suite_defaults(env, found.agent)
    own = {k: v for k, v in found.policy.items() if policy.get("network", "mlp") == "mlp" or k not in OF_MLP}
    return esrl.Recipe(env, found.agent, policy=policy | own, options=options | found.options)


def measure(world: worlds.World, agent: str, seed: int) -> list[Row]:
    """One run's evaluations."""
    dear = world.env.startswith("brax/")
    found = curves.measure(
        recipe(world.env, agent).build(),
        env_steps=world.env_steps,
        seconds=PPO_SECONDS if agent in ("ppo", "ppo before") else None,
        seed=seed,
        num_evals=BRAX_EVALUATIONS if dear else EVALUATIONS,
        early_evals=BRAX_EARLY if dear else EARLY,
        eval_episodes=BRAX_EPISODES if dear else EPISODES,
    )
    return [{"agent": agent, "env": world.env, "seed": seed, **row} for row in found]


# ---- reading --------------------------------------------------------------------------------------------------------


def show() -> None:
    """Tables at equal steps and at equal seconds: each agent as far as it was trained, two as both were."""
    frame = pd.DataFrame(store().read())
    for column, title in (("env_steps", "environment steps"), ("seconds", "seconds of one core")):
        print(f"\nAt equal {title}:\n")
        print(script.table(["", title, *AGENTS, "now beats before", "now beats ppo"]))
        beaten: dict[str, list[float]] = {"seen": [], "unseen": [], "unseen, the first nine": []}
        for world in ALL:
            here = frame[frame["env"] == world.env]
            runs = {name: rows for name in AGENTS if len(rows := here[here["agent"] == name])}
            if "now" not in runs:
                continue
            ends = {name: float(rows.groupby("seed")[column].max().min()) for name, rows in runs.items()}
            common = ends["now"]
            cells = []
            for name in AGENTS:
                if name not in runs:
                    cells.append("–")
                    continue
                end = min(common, ends[name])
                cells.append(cell(at(runs[name], column, end)) + (f" at {end:.2g}" if end < 0.97 * common else ""))
            chances = []
            for other in ("before", "ppo"):
                if other not in runs:
                    chances.append("–")
                    continue
                end = min(common, ends[other])
                chance = better(at(runs["now"], column, end), at(runs[other], column, end))
                chances.append(f"{chance:.2f}")
                if other == "before":
                    beaten["seen" if world in SEEN else "unseen"].append(chance)
                    if world in worlds.UNSEEN:
                        beaten["unseen, the first nine"].append(chance)
            print(script.line([world.env, f"{common:.3g}", *cells, *chances]))
        for name, found in beaten.items():
            if found:
                print(f"\nP(now beats before), {name}: {np.mean(found):.2f}, mean over {len(found)}")


def show_parts() -> None:
    """A table of today's defaults with one thing changed, at equal steps."""
    frame = pd.DataFrame(store().read())
    frame = frame[frame["agent"].isin(["now", *PARTS])]
    envs = [w.env for w in ALL if frame[frame["agent"] != "now"]["env"].eq(w.env).any()]
    print(script.table(["", *envs, "beats now"]))
    for name in ("now", *PARTS):
        cells, chances = [], []
        for env in envs:
            here = frame[frame["env"] == env]
            own, now = (here[here["agent"] == who] for who in (name, "now"))
            if own.empty:
                cells.append("–")
                continue
            end = min(rows.groupby("seed")["env_steps"].max().min() for rows in (own, now))
            found = at(own, "env_steps", end)
            cells.append(cell(found))
            chances.append(better(found, at(now, "env_steps", end)))
        if chances:
            print(script.line([name, *cells, "" if name == "now" else f"{np.mean(chances):.2f}"]))


def show_sizes() -> None:
    """Generations that wait for pairs without a tie beside fixed populations, at equal steps, and what is level.

    Level: an interquartile mean lies above the lower end of the interval of the best fixed population.
    """
    frame = pd.DataFrame(store().read())
    fixed = [f"population {n}" for n in SIZES]
    print(script.table(["", "steps", SIZED, SIZED_8, *fixed, "level"]))
    counts = dict.fromkeys((SIZED, SIZED_8, *fixed), 0)
    for world in ALL:
        here = frame[frame["env"] == world.env]
        runs = {name: rows for name in counts if len(rows := here[here["agent"] == name])}
        if SIZED not in runs or not set(fixed) & set(runs):
            continue
        end = min(float(rows.groupby("seed")["env_steps"].max().min()) for rows in runs.values())
        found = {name: at(rows, "env_steps", end) for name, rows in runs.items()}
        best = max((found[name] for name in fixed if name in found), key=interquartile_mean)
        level = [name for name, values in found.items() if interquartile_mean(values) >= interval(best)[0]]
        counts.update({name: counts[name] + 1 for name in level})
        cells = [cell(found[name]) if name in found else "–" for name in counts]
        print(script.line([world.env, f"{end:.2g}", *cells, ", ".join(level)]))
    print("\nlevel on: " + ", ".join(f"{name} {count}" for name, count in counts.items()))


def main() -> None:
    """The script."""
    arguments = script.options(Arguments, __doc__)
    for name in arguments.agents:
        if name not in AGENTS | PARTS:
            script.wrong(f"--agents has {name!r}, but they are {', '.join(AGENTS | PARTS)}")
    if arguments.parts:
        arguments.agents = tuple(PARTS)
    if arguments.sizes:
        show_sizes()
        return
    if arguments.table:
        show_parts() if arguments.parts else show()
        return
    wanted = [
        (agent, world.env, seed)
        for agent in arguments.agents
        for world in ALL
        if not arguments.envs or world.env in arguments.envs
        for seed in range(arguments.seeds)
    ]
    steps = {world.env: world for world in ALL}
    with pool.stoppable("what was measured is kept"):
        for agent, env, seed in store().missing(wanted):
            begun = time.perf_counter()
            rows = measure(steps[env], agent, seed)
            store().add(rows)
            last = rows[-1]
            print(
                f"{agent} {env} {seed}: {last['return_mean']:.4g} after {last['seconds']:.0f} s"
                f" ({time.perf_counter() - begun:.0f} s)",
                flush=True,
            )


if __name__ == "__main__":
    main()
