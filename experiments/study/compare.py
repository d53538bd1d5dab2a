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

import argparse
import dataclasses
import importlib.util
import itertools
import math
import os
import sys
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import esrl
from esrl.training import recipe as recipes
from experiments.lab import pool
from experiments.lab.budget import Budget, train
from experiments.lab.parts import forget, gather, missing, part, tidy
from experiments.lab.random_policy import random_agent
from experiments.lab.record import ROOT, About, Row, folder_name, plain, read_rows, results, write_rows

AGENTS = ("eggroll", "open_es", "ppo")
AGENTS_FOLDER = ROOT / "agents"
RANDOM = "random"
OTHERS = ("paper", "study")  # folders of agents/ with the recipes of other experiments
LAPTOP = ("gymnasium/phys2d/CartPole-v1", "gymnasium/phys2d/Pendulum-v0", "brax/inverted_pendulum")
LAPTOP_SECONDS = 10.0
PEERS = {"stable-baselines3": "stable_baselines3", "evosax": "evosax", "rejax": "rejax"}


class Pair(NamedTuple):
    """An agent in an environment: its recipe with the comparison's evaluations, its budget, and where rows go."""

    recipe: esrl.Recipe
    budget: Budget
    csv: Path

    @property
    def name(self) -> str:
        return f"{self.recipe.env}, {self.recipe.agent}"

    @property
    def settings(self) -> dict[str, Any]:
        """What decides a run, apart from its seed."""
        seconds = {"seconds": self.budget.seconds} if self.budget.seconds < math.inf else {}
        return plain(self.recipe) | seconds | ({"early": self.budget.early} if self.budget.early else {})


def run(agent: esrl.Agent, pair: Pair, seed: int, show: bool = False) -> list[Row]:
    """One run's rows: the start, then every evaluation; of the random policy the start alone."""
    common = {"env": pair.recipe.env, "agent": pair.recipe.agent}
    rows = []
    for row, _ in train(agent, pair.budget, seed):
        rows.append({**common, **row})
        if pair.recipe.agent == RANDOM:
            break
        if show:
            pool.report(row["used"], f"{row['return_mean']:.4g} at {row['env_steps']:,} steps")
    return rows


def measure(pair: Pair, seeds: list[int], show: bool) -> None:
    """Runs seeds in turn in this process, each into a part of its own; what fails is noted there."""
    agent = None
    for seed in seeds:
        own = part(pair.csv, seed)
        own.with_suffix(".json").unlink(missing_ok=True)
        about = About(own.with_suffix(".json"), pair.settings)
        try:
            agent = agent or build(pair.recipe)
            rows = run(agent, pair, seed, show)
        except Exception as error:
            traceback.print_exc()
            about.failed(seed, f"{type(error).__name__}: {error}")
            continue
        write_rows(own, rows)
        about.ran([seed])
        first, last = rows[0], rows[-1]
        print(
            f"  seed {seed}: return {first['return_mean']:.1f} -> {last['return_mean']:.1f} +- {last['return_std']:.1f}"
            f", {last['env_steps']:,} steps, {last['seconds']:.1f} s, {last['seconds_compile']:.1f} s compiling",
            flush=True,
        )


def build(recipe: esrl.Recipe) -> esrl.Agent:
    """The agent of a recipe, the random policy included."""
    return random_agent(recipe.env, **recipe.options) if recipe.agent == RANDOM else recipe.build()


def prepare(arguments: argparse.Namespace, env: str, agent: str) -> Pair | str:
    """What is to be measured; or why it cannot be."""
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
    own |= {"evaluations": arguments.evaluations, "evaluate_episodes": arguments.episodes}
    if arguments.env_steps or arguments.seconds:
        own["env_steps"] = arguments.env_steps
    recipe, seconds = recipe.override(own), arguments.seconds or math.inf
    if agent == RANDOM:
        options = {"squash": recipe.options.get("squash", "tanh")}
        recipe, seconds = (
            esrl.Recipe(recipe.env, RANDOM, evaluate_episodes=arguments.episodes, options=options),
            math.inf,
        )
    if not recipe.generations and not recipe.env_steps and seconds == math.inf:
        recipe = dataclasses.replace(recipe, env_steps=1e6)
    limits = recipe.env_steps or math.inf, seconds, recipe.evaluations, recipe.evaluate_episodes
    early = 0 if seconds == math.inf else arguments.early
    budget = Budget(*limits, generations=recipe.generations or math.inf, early=early)
    return Pair(recipe, budget, arguments.out / folder_name(env) / f"{agent}.csv")


def misfit(pair: Pair, again: bool) -> str:
    """Why what is measured already cannot be gone on with; empty if it can, or if there is nothing."""
    if again:
        forget(pair.csv)
    gather(pair.csv)
    about, rows = pair.csv.with_suffix(".json"), read_rows(pair.csv)
    if not rows:
        about.unlink(missing_ok=True)
    elif "seconds_evaluate" not in rows[0]:
        return f"{pair.csv} is an older version's; --again measures anew"
    elif About(about, {}).values["recipe"] != pair.settings:
        return f"{pair.csv} was measured with another recipe, budget or evaluations; --again measures anew"
    return ""


def seeds_of(arguments: argparse.Namespace) -> list[int]:
    return list(range(arguments.first_seed, arguments.first_seed + arguments.seeds))


def jobs(pairs: list[Pair], arguments: argparse.Namespace) -> dict[str, tuple[pool.Job, Pair, list[int]]]:
    """By name: processes, with the pair and the seeds that each measures; few pairs are split into several."""
    wanted = [(pair, missing(pair.csv, seeds_of(arguments))) for pair in pairs]
    wanted = [(pair, seeds) for pair, seeds in wanted if seeds]
    learning = sum(pair.recipe.agent != RANDOM for pair, _ in wanted)
    groups = 1 if arguments.processes == 1 else math.ceil(2 * arguments.processes / max(learning, 1))
    names = ("seconds", "env_steps", "evaluations", "early", "episodes", "recipes", "out")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    options = [text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    made = {}
    for pair, seeds in wanted:
        count = 1 if pair.recipe.agent == RANDOM else min(groups, len(seeds))
        for few in (seeds[i::count] for i in range(count)):
            only, env = list(map(str, few)), pair.recipe.env
            command = ["python", "-m", "experiments.study.compare", env, "--agents", pair.recipe.agent]
            command += [*options, "--only", *only]
            name = f"{pair.name}, seed{'s' * (len(few) > 1)} {', '.join(only)}"
            made[name] = pool.Job(name, command, {"ESRL_CACHE_DIR": arguments.cache}), pair, few
    return made


def compare(pairs: list[Pair], arguments: argparse.Namespace) -> None:
    """Measures what is missing, in processes or here, and gathers it as it comes."""
    for pair in pairs:
        seeds = missing(pair.csv, seeds_of(arguments))
        print(pair.name + (": there already" if not seeds else ""), flush=True)
        if arguments.here:
            measure(pair, seeds, show=False)
            gather(pair.csv)
    wanted = {} if arguments.here else jobs(pairs, arguments)
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)

    def finished(job: pool.Job, status: int) -> None:
        _, pair, seeds = wanted[job.name]
        gather(pair.csv)
        about = About(pair.csv.with_suffix(".json"), pair.settings)
        lost = [seed for seed in missing(pair.csv, seeds) if str(seed) not in about.values["failed"]]
        if status and lost:
            about.failed(lost[0], f"the process ended with status {status}")

    if wanted:
        pool.run([job for job, _, _ in wanted.values()], arguments.processes, finished)


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


def fill(arguments: argparse.Namespace) -> None:
    """What was not given: a laptop's environments, budget and processes where nothing is named, else one process."""
    laptop = not (arguments.envs or arguments.full) and arguments.recipes == AGENTS_FOLDER
    if laptop:
        arguments.envs = list(LAPTOP)
        arguments.seconds = arguments.seconds or (None if arguments.env_steps else LAPTOP_SECONDS)
    arguments.processes = arguments.processes or (pool.cores() if laptop else 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("envs", nargs="*", help="three small ones unless given, in full all that have recipes")
    parser.add_argument("--agents", nargs="+", default=AGENTS)
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, help="budget of every run, of training alone; replaces the recipe's")
    parser.add_argument("--env-steps", type=float, help="budget of every run; replaces the recipe's")
    parser.add_argument("--evaluations", type=int, default=20, help="of each run, beside the start")
    parser.add_argument(
        "--early", type=int, default=8, help="further ones before the first, with --seconds: each halfway"
    )
    parser.add_argument("--episodes", type=int, default=128, help="held-out ones of each evaluation")
    parser.add_argument(
        "--processes", type=int, help="at a time, each on its share of the cores; 1, and a laptop's one for each core"
    )
    parser.add_argument("--full", action="store_true", help="every environment that has recipes")
    parser.add_argument("--random", action=argparse.BooleanOptionalAction, default=True, help="score a random policy")
    parser.add_argument("--peers", action="store_true", help="say which other agents' results are there")
    parser.add_argument("--again", action="store_true", help="measure anew what is there already")
    parser.add_argument("--recipes", type=Path, default=AGENTS_FOLDER)
    parser.add_argument("--out", type=Path, default=results("study") / "compare")
    parser.add_argument("--cache", default="", help="folder of a compilation cache; none unless given")
    parser.add_argument("--here", action="store_true", help="in this process, rather than in others")
    parser.add_argument("--only", type=int, nargs="+", help=argparse.SUPPRESS)  # in a process of `compare`
    arguments = parser.parse_args()
    for agent in arguments.agents:
        if agent not in (*recipes.AGENTS, RANDOM):
            parser.error(f"{agent} is no agent; environments come before --agents")
    for env in arguments.envs:
        if not (arguments.recipes / env.partition("?")[0]).is_dir():
            parser.error(f"{env} has no recipes in {arguments.recipes}")
    if arguments.early < 0:
        parser.error("--early must not be negative")
    for name in ("seeds", "processes", "evaluations", "episodes", "seconds", "env_steps"):
        if getattr(arguments, name) is not None and getattr(arguments, name) <= 0:
            parser.error(f"--{name.replace('_', '-')} must be more than 0")
    if arguments.full and arguments.envs:
        parser.error("--full is every environment that has recipes; give it, or environments")
    fill(arguments)
    agents = [RANDOM] * (arguments.random and not arguments.only) + list(arguments.agents)
    envs, pairs, failed = arguments.envs or environments(arguments.recipes), [], []
    for env, agent in itertools.product(envs, dict.fromkeys(agents)):
        pair = prepare(arguments, env, agent)
        if arguments.only and isinstance(pair, Pair):
            with pool.stoppable(f"{pair.name}: stopped"):
                measure(pair, arguments.only, show=True)
            return
        why = pair if isinstance(pair, str) else misfit(pair, arguments.again)
        if why:
            print(f"{env}, {agent}: {why}", flush=True)
            failed += [f"{env}, {agent}"] * (why != "no recipe")
        elif isinstance(pair, Pair):
            pairs.append(pair)
    with pool.stoppable(f"stopped; what is done is in {arguments.out}, and the same command goes on"):
        compare(pairs, arguments)
    for pair in pairs:
        failed += [f"{pair.name}, seed {seed}" for seed in About(pair.csv.with_suffix(".json"), {}).values["failed"]]
        tidy(pair.csv)
    if arguments.peers:
        print(peers(arguments.out, envs))
    if failed:
        sys.exit("failed: " + "; ".join(failed))


if __name__ == "__main__":
    main()
