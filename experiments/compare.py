"""Agents on the same environments, over several seeds: held-out return against environment steps and seconds.

    python experiments/compare.py                                     # every recipe in agents/, five seeds
    python experiments/compare.py brax/hopper gymnasium/Acrobot-v1 --agents eggroll open_es ppo --seeds 5
    python experiments/compare.py brax/hopper --env-steps 2e7         # one budget for every agent

Each agent runs its recipe agents/<environment>/<agent>.toml. Every pair of environment and agent is a process of its
own, one after another, with an empty compilation cache; its seeds run in turn and share what the first one compiles, so
that `seconds_compile` of the first is what compiling costs. Returns are those of the unperturbed parameters on held-out
episodes, worlds that an agent never trains in and that are the same for all agents.

Written after every seed to experiments/results/compare/<environment>/<agent>.csv, a row for each run and evaluation,
the start included, with a JSON beside it (recipe, commit, versions, machine, what failed). Seeds that are there already
are left out, so that a comparison that broke off goes on. `seconds` are wall-clock since the run's beginning, compiling
and earlier evaluations included; `return_std` is over episodes.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path

from record import RESULTS, ROOT, About, Row, folder_name, plain, read_rows, write_rows

import esrl
from esrl import recipe as recipes
from esrl.types import seed_key

AGENTS = ("eggroll", "open_es", "ppo")


def run(agent: esrl.Agent, recipe: esrl.Recipe, seed: int) -> list[Row]:
    """One run's rows: the start, then every evaluation."""
    common = {"env": recipe.env, "agent": recipe.agent, "seed": seed}
    rows = []
    for generation, _, metrics in dataclasses.replace(recipe, seed=seed).train(agent, out=None):
        if "eval_return_mean" in metrics:
            times = {k: metrics[k] for k in ("env_steps", "seconds", "seconds_compile")}
            scores = {k: metrics[f"eval_{k}"] for k in ("return_mean", "return_std")}
            rows.append({**common, "generation": generation, **times, **scores})
    start = esrl.evaluate(agent, agent.init(seed_key(seed)), recipe.evaluate_episodes, seed)
    nothing = {"generation": 0, "env_steps": 0, "seconds": 0.0, "seconds_compile": 0.0}
    return [{**common, **nothing, "return_mean": start.return_mean, "return_std": start.return_std}, *rows]


def missing(csv: Path, seeds: int) -> list[int]:
    """The seeds that the CSV does not have yet."""
    return sorted(set(range(seeds)) - {int(row["seed"]) for row in read_rows(csv)})


def measure(recipe: esrl.Recipe, csv: Path, seeds: int) -> list[str]:
    """Runs the missing seeds of one recipe in turn in this process; notes and returns those that fail."""
    about, rows, agent = About(csv.with_suffix(".json"), plain(recipe)), read_rows(csv), None
    print(f"{recipe.env}, {recipe.agent}", flush=True)
    for seed in missing(csv, seeds):
        begun = time.perf_counter()
        try:
            agent = agent or recipe.build()
            new = run(agent, recipe, seed)
        except Exception as error:
            about.failed(seed, f"{type(error).__name__}: {error}")
            traceback.print_exc()
            continue
        rows = sorted(rows + new, key=lambda row: int(row["seed"]))
        write_rows(csv, rows)
        about.ran([seed])
        last = new[-1]
        print(
            f"  seed {seed}: return {new[0]['return_mean']:.1f} -> {last['return_mean']:.1f}"
            f" +- {last['return_std']:.1f}, {last['env_steps']:,} steps, {time.perf_counter() - begun:.1f} s"
            f" ({last['seconds_compile']:.1f} s compiling)",
            flush=True,
        )
    return list(about.values["failed"])


def prepare(arguments: argparse.Namespace, env: str, agent: str) -> tuple[esrl.Recipe, Path] | str:
    """The recipe with the comparison's evaluations, and the CSV; or why it cannot be measured."""
    path = arguments.recipes / env.partition("?")[0] / f"{agent}.toml"
    if not path.exists():
        return "no recipe"
    try:
        recipe = recipes.read(path)
    except esrl.EsrlError as error:
        return str(error)
    run = {"env": env} if "?" in env else {}
    run |= {"evaluations": arguments.evaluations, "evaluate_episodes": arguments.episodes}
    if arguments.env_steps:
        run["env_steps"] = arguments.env_steps
    recipe = recipe.override(run)
    csv = arguments.out / folder_name(env) / f"{agent}.csv"
    about = csv.with_suffix(".json")
    if arguments.again:
        csv.unlink(missing_ok=True)
    if not csv.exists():
        about.unlink(missing_ok=True)
    elif About(about, {}).values["recipe"] != plain(recipe):
        return f"{csv} was measured with another recipe, budget or evaluations; --again measures anew"
    return recipe, csv


def in_process(arguments: argparse.Namespace, env: str, recipe: esrl.Recipe, csv: Path) -> list[str]:
    """Measures what a pair misses in a process of its own, and returns the seeds that failed."""
    if not missing(csv, arguments.seeds):
        print(f"{env}, {recipe.agent}: there already", flush=True)
        return []
    options = ["--seeds", arguments.seeds, "--evaluations", arguments.evaluations, "--episodes", arguments.episodes]
    options += ["--env-steps", arguments.env_steps] if arguments.env_steps else []
    options += ["--recipes", arguments.recipes, "--out", arguments.out, "--here"]
    environment = {**os.environ, "ESRL_CACHE_DIR": arguments.cache}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    command = [sys.executable, __file__, env, "--agents", recipe.agent, *map(str, options)]
    status = subprocess.run(command, env=environment).returncode
    about = About(csv.with_suffix(".json"), plain(recipe))
    unexplained = [seed for seed in missing(csv, arguments.seeds) if str(seed) not in about.values["failed"]]
    if status and unexplained:
        about.failed(unexplained[0], f"the process ended with status {status}")
    return list(about.values["failed"])


def environments(folder: Path) -> list[str]:
    """Every environment with a recipe in the folder, but for the paper's own, which are for larger machines."""
    found = {path.parent.relative_to(folder).as_posix() for path in folder.rglob("*.toml")}
    return sorted(env for env in found if not env.startswith("paper/"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("envs", nargs="*", help="all that have recipes unless given")
    parser.add_argument("--agents", nargs="+", default=AGENTS)
    parser.add_argument("--seeds", type=int, default=5, help="0 to SEEDS - 1")
    parser.add_argument("--env-steps", type=float, help="budget of every run; the recipe's unless given")
    parser.add_argument("--evaluations", type=int, default=20, help="of each run, beside the start")
    parser.add_argument("--episodes", type=int, default=128, help="held-out ones of each evaluation")
    parser.add_argument("--again", action="store_true", help="measure anew what is there already")
    parser.add_argument("--recipes", type=Path, default=ROOT / "agents")
    parser.add_argument("--out", type=Path, default=RESULTS / "compare")
    parser.add_argument("--cache", default="", help="folder of a compilation cache; none unless given")
    parser.add_argument("--here", action="store_true", help="in this process, rather than one for each pair")
    arguments = parser.parse_args()
    for agent in arguments.agents:
        if agent not in recipes.AGENTS:
            parser.error(f"{agent} is no agent; environments come before --agents")
    for env in arguments.envs:
        if not (arguments.recipes / env.partition("?")[0]).is_dir():
            parser.error(f"{env} has no recipes in {arguments.recipes}")
    failed = []
    for env in arguments.envs or environments(arguments.recipes):
        for agent in arguments.agents:
            prepared = prepare(arguments, env, agent)
            if isinstance(prepared, str):
                print(f"{env}, {agent}: {prepared}", flush=True)
                failed += [f"{env}, {agent}"] * (prepared != "no recipe")
                continue
            recipe, csv = prepared
            here = measure(recipe, csv, arguments.seeds) if arguments.here else in_process(arguments, env, recipe, csv)
            failed += [f"{env}, {agent}, seed {seed}" for seed in here]
    if failed:
        sys.exit("failed: " + "; ".join(failed))


if __name__ == "__main__":
    main()
