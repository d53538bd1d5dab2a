"""The paper's recipes on the paper's environments, for as many minutes as there are, and a table beside its figures.

    python -m experiments.paper.run gymnax/CartPole-v1 navix/Navix-DoorKey-8x8-v0 --agent eggroll ppo --minutes 20
    python -m experiments.paper.run brax/ant --agent eggroll --minutes 60 --seed 0 --seeds 3
    python -m experiments.paper.run --table

Each agent runs its recipe agents/paper/<environment>/<agent>.toml until its budget of environment steps is used up or,
more often, `--minutes` of training are. Minutes are those of generations only: compiling and evaluating are timed
apart. A generation is not begun when, taking as long as the one before, it would end too late; the first one is always
run. Environments and agents are processes of their own, one after another, and seeds run in turn in one of them.

Returns are those of the unperturbed parameters on held-out episodes, acting as the recipe says (by the mode or by
sampling), in the same worlds for every agent and seed: at the start, on a logarithmic grid of the budget from a
hundredth on, and at the end. Written after every evaluation to experiments/paper/results/<environment>/
<agent>-<seed>.csv, with a JSON beside it (recipe, commit, versions, machine, seconds, how it ended). The random policy
of an environment is measured once, in the same worlds, to random.csv.

`--table` reads the result files alone, and what the paper reached from experiments/paper/rl.toml.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import math
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

import esrl
from esrl.core.compile_time import compile_seconds
from esrl.core.types import seed_key
from esrl.envs.registry import SUITES
from esrl.training import recipe as recipes
from experiments.lab.random_policy import random_agent
from experiments.lab.record import ROOT, About, Row, folder_name, plain, read_rows, results, write_rows
from experiments.paper.table import table

WORLDS = 0  # the seed of the held-out worlds, the same for all


def generation(agent: esrl.Agent, state: Any) -> tuple[Any, float, float]:
    """The state after a generation, seconds that it ran, and seconds that it compiled before.

    Raises:
      EsrlError: it has not one finite return.
    """
    begun, before = time.perf_counter(), compile_seconds()
    state, metrics = jax.block_until_ready(agent.step(state))
    if metrics["all_nonfinite"]:
        raise esrl.EsrlError(f"generation {int(state.generation)} has not one finite return")
    compiled = compile_seconds() - before
    return state, time.perf_counter() - begun - compiled, compiled


def train(
    agent: esrl.Agent, recipe: esrl.Recipe, seed: int, arguments: argparse.Namespace, save: Callable[..., None]
) -> str:
    """One run; `save(rows)` after every evaluation. Returns what ended it.

    Raises:
      EsrlError: a generation has not one finite return.
    """
    budget, minutes = recipe.env_steps or math.inf, arguments.minutes
    times = {"seconds": 0.0, "seconds_compile": 0.0, "seconds_evaluate": 0.0}
    due = list(np.geomspace(0.01, 1.0, arguments.evaluations))
    rows: list[Row] = []

    def score() -> None:
        begun = time.perf_counter()
        found = esrl.evaluate(agent, state, arguments.episodes, WORLDS)
        times["seconds_evaluate"] += time.perf_counter() - begun
        values = {"return_mean": found.return_mean, "return_std": found.return_std, "length_mean": found.length_mean}
        done = {"generation": int(state.generation), "env_steps": int(state.env_steps)}
        common = {"env": recipe.env, "agent": recipe.agent, "seed": seed, **done}
        rows.append({**common, **{k: round(v, 3) for k, v in times.items()}, **values, "episodes": found.episodes})
        save(rows)
        where = f"{times['seconds']:.0f} s, generation {done['generation']}, {done['env_steps']:,} steps"
        print(f"  seed {seed}: {where}: return {found.return_mean:.4g} +- {found.return_std:.4g}", flush=True)

    compile_seconds()
    state = agent.init(seed_key(seed))
    score()
    while True:
        state, last, compiled = generation(agent, state)
        times["seconds"] += last
        times["seconds_compile"] += compiled
        steps = int(state.env_steps)
        used = max(times["seconds"] / (60 * minutes), steps / budget)
        ended = "env_steps" if steps >= budget else "minutes" if times["seconds"] + last > 60 * minutes else ""
        if ended or used >= due[0]:
            score()
            due = [part for part in due if part > used]
        if ended:
            return ended


def suite_versions(env: str) -> dict[str, str]:
    """The version of the package that an environment comes from, by its name; empty for a user's own."""
    suite = env.partition("/")[0]
    module = SUITES[suite].module if suite in SUITES else ""
    names = importlib.metadata.packages_distributions().get(module, [])
    return {name: importlib.metadata.version(name) for name in dict.fromkeys(names)}


def measure(recipe: esrl.Recipe, folder: Path, seeds: list[int], arguments: argparse.Namespace) -> list[str]:
    """Runs a recipe with each seed in turn; notes and returns what fails."""
    agent, failed = None, []
    for seed in seeds:
        csv = folder / f"{recipe.agent}-{seed}.csv"
        for old in (csv, csv.with_suffix(".json")):
            old.unlink(missing_ok=True)
        about = About(csv.with_suffix(".json"), plain(recipe))
        run = {"minutes": arguments.minutes, "worlds": WORLDS, "suite": suite_versions(recipe.env), "ended": ""}
        about.values["run"] = run
        about.ran([seed])

        def save(rows: list[Row], csv: Path = csv, about: About = about) -> None:
            write_rows(csv, rows)
            last = {k: v for k, v in rows[-1].items() if k.startswith("seconds") or k == "env_steps"}
            about.values["run"].update(last)
            about.ran([])

        try:
            agent = agent or recipe.build()
            run["devices"], run["lanes"] = agent.plan.devices, agent.plan.lanes
            run["ended"] = train(agent, recipe, seed, arguments, save)
            about.ran([])
        except Exception as error:
            traceback.print_exc()
            about.failed(seed, f"{type(error).__name__}: {error}")
            failed.append(f"{recipe.env}, {recipe.agent}, seed {seed}: {error}")
    return failed


def measure_random(recipe: esrl.Recipe, folder: Path, episodes: int) -> None:
    """The random policy in the held-out worlds, unless it is there with as many episodes."""
    csv = folder / "random.csv"
    there = [(row["env"], int(row["episodes"])) for row in read_rows(csv)]
    if there == [(recipe.env, episodes)]:
        return
    squash = recipe.options.get("squash", "tanh")
    agent = random_agent(recipe.env, squash=squash)
    found = esrl.evaluate(agent, agent.init(seed_key(0)), episodes, WORLDS)
    values = {"return_mean": found.return_mean, "return_std": found.return_std, "length_mean": found.length_mean}
    write_rows(csv, [{"env": recipe.env, "agent": "random", **values, "episodes": episodes}])
    csv.with_suffix(".json").unlink(missing_ok=True)
    about = About(csv.with_suffix(".json"), {"env": recipe.env, "agent": "random", "squash": squash})
    about.values["run"] = {"episodes": episodes, "worlds": WORLDS}
    about.ran(["random"])
    print(f"{recipe.env}: random policy {found.return_mean:.4g} +- {found.return_std:.4g}", flush=True)


def run(env: str, name: str, arguments: argparse.Namespace) -> list[str]:
    """One environment and agent in this process; returns what failed."""
    path = arguments.recipes / env.partition("?")[0] / f"{name}.toml"
    try:
        recipe = recipes.read(path)
        own = {"evaluations": arguments.evaluations, "evaluate_episodes": arguments.episodes}
        own |= {"env": env} if "?" in env else {}
        own |= {"env_steps": arguments.env_steps} if arguments.env_steps else {}
        recipe = recipe.override(own)
        folder = arguments.out / folder_name(recipe.env)
        measure_random(recipe, folder, arguments.episodes)
    except esrl.EsrlError as error:
        return [f"{env}, {name}: {error}"]
    print(f"{recipe.env}, {name}: {arguments.minutes:g} minutes of training at most", flush=True)
    return measure(recipe, folder, list(range(arguments.seed, arguments.seed + arguments.seeds)), arguments)


def in_process(env: str, name: str, options: list[str]) -> list[str]:
    """The same in a process of its own."""
    status = subprocess.run(
        [sys.executable, "-m", "experiments.paper.run", env, "--agent", name, *options, "--here"], cwd=ROOT
    ).returncode
    return [f"{env}, {name}: the process ended with status {status}"] if status else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("envs", nargs="*")
    parser.add_argument("--agent", nargs="+", default=["eggroll"], help="eggroll, open_es, ppo: one or several")
    parser.add_argument("--minutes", type=float, default=20.0, help="of training, for each run")
    parser.add_argument("--env-steps", type=float, help="in place of the recipe's")
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--seeds", type=int, default=1, help="how many, one after another")
    parser.add_argument("--episodes", type=int, default=256, help="held-out ones of each evaluation")
    parser.add_argument("--evaluations", type=int, default=20, help="of each run, beside the start")
    parser.add_argument("--recipes", type=Path, default=ROOT / "agents" / "paper")
    parser.add_argument("--out", type=Path, default=results("paper"))
    parser.add_argument("--table", action="store_true", help="measure nothing; print the table of what is there")
    parser.add_argument("--paper", type=Path, default=ROOT / "experiments" / "paper" / "rl.toml")
    parser.add_argument("--here", action="store_true", help="in this process")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(arguments.out, arguments.paper))
        return
    names = ("minutes", "env_steps", "seed", "seeds", "episodes", "evaluations", "recipes", "out")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    options = [text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    failed = []
    for env in arguments.envs or parser.error("name an environment, or --table"):
        for name in arguments.agent:
            failed += run(env, name, arguments) if arguments.here else in_process(env, name, options)
    if failed:
        sys.exit("failed: " + "; ".join(failed))


if __name__ == "__main__":
    main()
