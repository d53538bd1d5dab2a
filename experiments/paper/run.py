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

import importlib.metadata
import math
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tyro.conf import Positional

import esrl
from esrl.core.compile_time import compile_seconds
from esrl.core.types import seed_key
from esrl.envs.catalog import SUITES
from esrl.training import recipe as recipes
from experiments import script
from experiments.lab.store import ROOT, Row, Store, folder_name, plain, results
from experiments.paper.compare import table
from experiments.paper.recipes import DATA, FOLDER

WORLDS = 0  # the seed of the held-out worlds, the same for all
RESULTS = results("paper")


@dataclass(frozen=True)
class Options:
    envs: Positional[tuple[str, ...]] = ()
    agent: tuple[str, ...] = ("eggroll",)  # eggroll, open_es, ppo: one or several
    minutes: float = 20.0  # of training, for each run
    env_steps: float | None = None  # in place of the recipe's
    seed: int = 0  # the first one
    seeds: int = 1  # how many, one after another
    episodes: int = 256  # held-out ones of each evaluation
    evaluations: int = 20  # of each run, beside the start
    recipes: Path = FOLDER
    out: Path = RESULTS
    table: bool = False  # measure nothing; print the table of what is there
    paper: Path = DATA
    here: bool = False  # in this process


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


def train(agent: esrl.Agent, recipe: esrl.Recipe, seed: int, given: Options, save: Callable[..., None]) -> None:
    """One run; `save(rows, ended)` after every evaluation, with what ended it after the last one.

    Raises:
      EsrlError: a generation has not one finite return.
    """
    budget, minutes = recipe.env_steps or math.inf, given.minutes
    times = {"seconds": 0.0, "seconds_compile": 0.0, "seconds_evaluate": 0.0}
    due = list(np.geomspace(0.01, 1.0, given.evaluations))
    rows: list[Row] = []

    def score(ended: str = "") -> None:
        begun = time.perf_counter()
        found = esrl.evaluate(agent, state, given.episodes, WORLDS)
        times["seconds_evaluate"] += time.perf_counter() - begun
        values = {"return_mean": found.return_mean, "return_std": found.return_std, "length_mean": found.length_mean}
        done = {"generation": int(state.generation), "env_steps": int(state.env_steps)}
        common = {"env": recipe.env, "agent": recipe.agent, "seed": seed, **done}
        rows.append({**common, **{k: round(v, 3) for k, v in times.items()}, **values, "episodes": found.episodes})
        save(rows, ended)
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
            score(ended)
            due = [part for part in due if part > used]
        if ended:
            return


def suite_versions(env: str) -> dict[str, str]:
    """The version of the package that an environment comes from, by its name; empty for a user's own."""
    suite = env.partition("/")[0]
    module = SUITES[suite].module if suite in SUITES else ""
    names = importlib.metadata.packages_distributions().get(module, [])
    return {name: importlib.metadata.version(name) for name in dict.fromkeys(names)}


def measure(recipe: esrl.Recipe, folder: Path, seeds: list[int], given: Options) -> list[str]:
    """Runs a recipe with each seed in turn; notes and returns what fails."""
    agent, failed = None, []
    for seed in seeds:
        store = Store(folder / f"{recipe.agent}-{seed}.csv", ("seed",), plain(recipe))
        store.forget()
        run: Row = {"minutes": given.minutes, "worlds": WORLDS, "suite": suite_versions(recipe.env)}

        def save(rows: list[Row], ended: str, store: Store = store, run: Row = run) -> None:
            last = {k: v for k, v in rows[-1].items() if k.startswith("seconds") or k == "env_steps"}
            store.add(rows, replace=True, about={"run": {**run, "ended": ended, **last}})

        try:
            agent = agent or recipe.build()
            run |= {"devices": agent.plan.devices, "lanes": agent.plan.lanes}
            train(agent, recipe, seed, given, save)
        except Exception as error:
            traceback.print_exc()
            store.failed([seed], f"{type(error).__name__}: {error}", replace=True)
            failed.append(f"{recipe.env}, {recipe.agent}, seed {seed}: {error}")
    return failed


def measure_random(recipe: esrl.Recipe, folder: Path, episodes: int) -> None:
    """The random policy in the held-out worlds, unless it is there with as many episodes."""
    squash = recipe.options.get("squash", "tanh")
    store = Store(folder / "random.csv", ("env", "episodes"), {"env": recipe.env, "agent": "random", "squash": squash})
    store.merge()
    if not store.missing([(recipe.env, episodes)]):
        return
    store.forget()
    agent = esrl.random(recipe.env, squash=squash)
    found = esrl.evaluate(agent, agent.init(seed_key(0)), episodes, WORLDS)
    values = {"return_mean": found.return_mean, "return_std": found.return_std, "length_mean": found.length_mean}
    row = {"env": recipe.env, "agent": "random", **values, "episodes": episodes}
    store.add([row], about={"run": {"episodes": episodes, "worlds": WORLDS}})
    print(f"{recipe.env}: random policy {found.return_mean:.4g} +- {found.return_std:.4g}", flush=True)


def run(env: str, name: str, given: Options) -> list[str]:
    """One environment and agent in this process; returns what failed."""
    path = given.recipes / env.partition("?")[0] / f"{name}.toml"
    try:
        recipe = recipes.read(path)
        own: Row = {"num_evals": given.evaluations, "eval_episodes": given.episodes}
        own |= {"env": env} if "?" in env else {}
        own |= {"env_steps": given.env_steps} if given.env_steps else {}
        recipe = recipe.override(own)
        folder = given.out / folder_name(recipe.env)
        measure_random(recipe, folder, given.episodes)
    except esrl.EsrlError as error:
        return [f"{env}, {name}: {error}"]
    print(f"{recipe.env}, {name}: {given.minutes:g} minutes of training at most", flush=True)
    return measure(recipe, folder, list(range(given.seed, given.seed + given.seeds)), given)


def in_process(env: str, name: str, options: list[str]) -> list[str]:
    """The same in a process of its own."""
    status = subprocess.run(
        [sys.executable, "-m", "experiments.paper.run", env, "--agent", name, *options, "--here"], cwd=ROOT
    ).returncode
    return [f"{env}, {name}: the process ended with status {status}"] if status else []


def main() -> None:
    given = script.options(Options, __doc__)
    if given.table:
        print(table(given.out, given.paper))
        return
    if not given.envs:
        script.wrong("name an environment, or --table")
    names = ("minutes", "env_steps", "seed", "seeds", "episodes", "evaluations", "recipes", "out")
    values = {name: getattr(given, name) for name in names if getattr(given, name) is not None}
    options = [text for name, value in values.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    failed = []
    for env in given.envs:
        for name in given.agent:
            failed += run(env, name, given) if given.here else in_process(env, name, options)
    if failed:
        sys.exit("failed: " + "; ".join(failed))


if __name__ == "__main__":
    main()
