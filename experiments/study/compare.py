"""Agents on the same environments, over several seeds: held-out return against env steps, episodes and seconds.

    python -m experiments.study.compare --out runs/compare              # a laptop's: LAPTOP below, 10 s of a run
    python -m experiments.study.compare --full --out runs/compare       # every recipe in agents/, its own budget
    python -m experiments.study.compare brax/hopper gymnasium/Acrobot-v1 --agents eggroll open_es ppo --seeds 5
    python -m experiments.study.compare brax/hopper --env-steps 2e7     # one budget for every agent
    python -m experiments.study.compare --seconds 60 --processes 2 --recipes agents/study --out runs/study

Each agent runs its recipe agents/<environment>/<agent>.toml with the recipe's budget, or with that of --seconds,
--env-steps or both, whichever is used up first. With --recipes every environment of that folder is compared. Seconds
are those of training alone: compiling and scoring are counted beside them. Runs are in processes of their own,
--processes at a time, each on cores of its own, with an empty compilation cache; seeds in one process run in turn and
share what the first one compiles. Returns are those of the unperturbed parameters on held-out episodes, worlds that an
agent never trains in and that are the same for all agents and for the random policy, which is scored as well.

Written after every seed to study/results/compare/<environment>/<agent>.csv, a row for each run and evaluation, the
start included, with a JSON beside it (recipe, commit, versions, machine, what failed); random.csv has a row for the
worlds of each seed. Seeds that are there already are left out, so that a comparison that broke off goes on. `seconds`,
`seconds_compile` and `seconds_evaluate` are a run's so far; `episodes` are those finished in training; `return_std` is
over held-out episodes. CSVs of other agents in the same folder, with the same columns, are read by everything that
reads results.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import itertools
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

import esrl
from esrl.training import recipe as recipes
from experiments import script
from experiments.lab import pool
from experiments.lab.run import RANDOM, TIMED, Cell, Run, failures, measure_cells, work
from experiments.lab.stats import COMPARE
from experiments.lab.store import ROOT, Store, folder_name, plain, read_rows

AGENTS = ("eggroll", "eggroll_ac", "open_es", "ppo")
AGENTS_FOLDER = ROOT / "agents"
OTHERS = ("paper", "study")  # folders of agents/ with the recipes of other experiments
LAPTOP = ("gymnasium/phys2d/CartPole-v1", "gymnasium/phys2d/Pendulum-v0", "brax/inverted_pendulum")
LAPTOP_SECONDS = 10.0
PEERS = {"stable-baselines3": "stable_baselines3", "evosax": "evosax", "rejax": "rejax"}


@dataclass
class Arguments:
    """The command line."""

    envs: tyro.conf.Positional[tuple[str, ...]] = ()  # three small ones unless given, in full all that have recipes
    agents: tuple[str, ...] = AGENTS
    seeds: int = 5  # how many
    first_seed: int = 0
    seconds: float | None = None  # budget of every run, of training alone; replaces the recipe's
    env_steps: float | None = None  # budget of every run; replaces the recipe's
    evaluations: int = 20  # of each run, beside the start
    early: int = 8  # further ones before the first, with --seconds: each halfway
    episodes: int = 128  # held-out ones of each evaluation
    processes: int | None = None  # at a time, each on its share of the cores; 1, and a laptop's one for each core
    full: bool = False  # every environment that has recipes
    random: bool = True  # score a random policy
    peers: bool = False  # say which other agents' results are there
    again: bool = False  # measure anew what is there already
    recipes: Path = AGENTS_FOLDER
    out: Path = COMPARE
    cache: str = ""  # folder of a compilation cache; none unless given
    here: bool = False  # in this process, rather than in others

    def fill(self) -> None:
        """What was not given: a laptop's environments, budget and processes where nothing is named."""
        laptop = not (self.envs or self.full) and self.recipes == AGENTS_FOLDER
        if laptop:
            self.envs = LAPTOP
            self.seconds = self.seconds or (None if self.env_steps else LAPTOP_SECONDS)
        self.processes = self.processes or (pool.cores() if laptop else 1)

    def check(self) -> None:
        """Leaves with a sentence where something makes no sense."""
        for agent in self.agents:
            if agent not in (*recipes.AGENTS, RANDOM):
                script.wrong(f"{agent} is no agent; environments come before --agents")
        for env in self.envs:
            if not (self.recipes / env.partition("?")[0]).is_dir():
                script.wrong(f"{env} has no recipes in {self.recipes}")
        script.at_least(self, 0, "early")
        script.at_least(self, 0, "seeds", "processes", "evaluations", "episodes", "seconds", "env_steps", strict=True)
        if self.full and self.envs:
            script.wrong("--full is every environment that has recipes; give it, or environments")


def prepare(arguments: Arguments, env: str, agent: str) -> Cell | str:
    """An agent in an environment, all its seeds; or why it cannot be measured."""
    folder = arguments.recipes / env.partition("?")[0]
    path = folder / f"{agent}.toml"
    if agent == RANDOM:  # acts within the bounds as the first agent does
        path = next((p for p in (folder / f"{a}.toml" for a in AGENTS) if p.exists()), path)
    if not path.exists():
        return "no recipe"
    try:
        recipe = recipes.read(path)
    except esrl.EsrlError as error:
        return str(error)
    own: dict[str, Any] = {"env": env} if "?" in env else {}
    own |= {"num_evals": arguments.evaluations, "eval_episodes": arguments.episodes}
    if arguments.env_steps or arguments.seconds:
        own["env_steps"] = arguments.env_steps
    recipe, seconds = recipe.override(own), arguments.seconds
    if agent == RANDOM:
        options = {"squash": recipe.options.get("squash", "tanh")}
        recipe = esrl.Recipe(recipe.env, RANDOM, eval_episodes=arguments.episodes, options=options)
        seconds = None
    if not (recipe.generations or recipe.env_steps or seconds):
        recipe = dataclasses.replace(recipe, env_steps=1e6)
    timed = {"seconds": seconds} if seconds else {}
    settings = plain(recipe) | timed | ({"early": arguments.early} if seconds and arguments.early else {})
    limits = {"env_steps": recipe.env_steps, "generations": recipe.generations, **timed}
    limits = {name: value for name, value in limits.items() if value}
    limits |= {"evaluations": recipe.num_evals, "episodes": recipe.eval_episodes}
    limits |= {"early": arguments.early} if seconds else {}
    store = Store(arguments.out / folder_name(env) / f"{agent}.csv", ("seed",), settings, order="seed")
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    return Cell(f"{recipe.env}, {agent}", store, [Run(recipe, seed) for seed in seeds], TIMED, limits)


def misfit(store: Store, again: bool) -> str:
    """Why what is measured already cannot be gone on with; empty if it can, or if there is nothing."""
    if again:
        store.forget()
    rows = read_rows(store.path)
    if rows and "seconds_evaluate" not in rows[0]:
        return f"{store.path} is an older version's; --again measures anew"
    if not store.fits():
        return f"{store.path} was measured with another recipe, budget or evaluations; --again measures anew"
    return ""


def split(cells: list[Cell], processes: int) -> list[Cell]:
    """What is missing, a cell for each process; few agents are split into several."""
    absent = [(cell, cell.store.missing(run.seed for run in cell.runs)) for cell in cells]
    wanted = [(cell, [run for run in cell.runs if run.seed in seeds]) for cell, seeds in absent if seeds]
    learning = sum(cell.runs[0].recipe.agent != RANDOM for cell, _ in wanted)
    groups = 1 if processes == 1 else math.ceil(2 * processes / max(learning, 1))
    made = []
    for cell, runs in wanted:
        count = 1 if runs[0].recipe.agent == RANDOM else min(groups, len(runs))
        made += [cell._replace(runs=runs[i::count]) for i in range(count)]
    return made


def compare(cells: list[Cell], arguments: Arguments) -> list[str]:
    """Measures what is missing, in processes or here; returns a sentence for each run that failed."""
    failed: list[str] = []
    with contextlib.ExitStack() as held:
        for cell in cells:
            held.enter_context(cell.store.alone())
        wanted = split(cells, arguments.processes or 1)
        for cell in cells:
            if all(cell.name != other.name for other in wanted):
                print(f"{cell.name}: there already", flush=True)
        if not arguments.here:
            os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
            return measure_cells(wanted, arguments.processes, {"ESRL_CACHE_DIR": arguments.cache})
        for cell in wanted:
            print(cell.name, flush=True)
            work(cell, lambda *_: None)
            failed += failures(cell)
    return failed


def environments(folder: Path) -> list[str]:
    """Every environment with a recipe in the folder, but for the recipes of other experiments in folders of it."""
    found = {path.parent.relative_to(folder).as_posix() for path in folder.rglob("*.toml")}
    return sorted(env for env in found if env.partition("/")[0] not in OTHERS)


def peers(folder: Path, envs: list[str]) -> str:
    """Which further agents' results are in the folder, and which of the libraries they come from are not installed."""
    found = sorted({path.stem for env in envs for path in (folder / folder_name(env)).glob("*.csv")})
    others = [name for name in found if name not in (*AGENTS, RANDOM)]
    absent = [name for name, module in PEERS.items() if importlib.util.find_spec(module) is None]
    text = f"results of other agents: {', '.join(others) or 'none'}"
    return text + (f"; not installed: {', '.join(absent)}" if absent else "")


def main() -> None:
    arguments = script.options(Arguments, __doc__)
    arguments.check()
    arguments.fill()
    agents = dict.fromkeys([RANDOM] * arguments.random + list(arguments.agents))
    envs = list(arguments.envs) or environments(arguments.recipes)
    cells, failed = [], []
    for env, agent in itertools.product(envs, agents):
        cell = prepare(arguments, env, agent)
        why = cell if isinstance(cell, str) else misfit(cell.store, arguments.again)
        if why:
            print(f"{env}, {agent}: {why}", flush=True)
            failed += [f"{env}, {agent}"] * (why != "no recipe")
        elif isinstance(cell, Cell):
            cells.append(cell)
    with pool.stoppable(f"stopped; what is done is in {arguments.out}, and the same command goes on"):
        failed += compare(cells, arguments)
    if arguments.peers:
        print(peers(arguments.out, envs))
    if failed:
        sys.exit("failed: " + "; ".join(failed))


if __name__ == "__main__":
    main()
