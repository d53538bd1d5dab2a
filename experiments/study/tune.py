"""Hyper-parameters for each agent in each environment, by Optuna, with the same number of trials and budget for all.

    python -m experiments.study.tune gymnasium/phys2d/CartPole-v1                 # EGGROLL, OpenES and PPO
    python -m experiments.study.tune brax/hopper --trials 20 --seconds 10 --final-seconds 30 --recipes-out agents/study
    python -m experiments.study.tune brax/ant --env-steps 1e6 --sampler random --space my_space.toml
    python -m experiments.study.tune brax/ant --protocol paper --env-steps 1e7    # random search in the paper's space
    python -m experiments.study.tune --table                                      # what is there already
    python -m experiments.study.tune brax/hopper --full                           # 64 trials of 120 s, 10 final seeds

A trial trains one configuration of a search space on one core with one seed (the trial's number), and its value is the
held-out return at its end: of the unperturbed parameters, in worlds that all trials share and no final run has. A trial
that is then below the median of the others is pruned (not with --no-pruning); pruned and failed trials count as trials,
so every agent has as many. Settings that make no sense, and generations without a finite return, are failed trials with
their reason noted; a return that is no number is the worst. The first trial is the space's configuration nearest to the
agent's defaults, so that in the tuning worlds nothing tuned is below them (the paper's protocol has no such trial).

Seconds are those of training: compiling and scoring are not counted. They are fair where the clock is what costs: each
agent may turn its core's time into as many steps as it can; but results depend on the machine. Environment steps are
fair where the world is what costs, and come out the same anywhere, but an agent may take any time over them. Either way
a run ends with the generation that uses up its budget, so that large populations may use more; `used` in the storage
says how much. The spaces of agents differ in dimensions; their numbers of trials and budgets do not.

Then the best trial's configuration (of equals, the one whose evaluations on the way were best) trains on fresh seeds
(from 1000 on; no trial had them), each in its own process on its own core and scored in worlds of its own, and becomes
a recipe whose header says how it was chosen and what it reached.

Written: <out>/<environment>/<agent>.db, Optuna's storage in SQLite (the study has the agent's name);
trials/<agent>.csv, its trials as a table; <agent>.csv and .json, the final runs; and
<recipes-out>/<environment>/<agent>.toml. Everything goes on where it was: a trial that was killed is run again with
the same parameters, other trials and seeds are not. --trials may grow later. Needs flock (Linux, macOS).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from optuna.trial import TrialState

import esrl
from esrl.training import recipe as recipes
from experiments.lab import pool, spaces
from experiments.lab.record import folder_name, plain, results
from experiments.study import finals, trials
from experiments.study.recipe_headers import number as shown

AGENTS = ("eggroll", "open_es", "ppo")
DEFAULTS = {"trials": 20, "seconds": 8.0, "sampler": "tpe", "space": "esrl", "final_seeds": 5, "pruning": True}
FULL = {"trials": 64, "seconds": 120.0, "final_seeds": 10}
PAPER = {"trials": 20, "sampler": "random", "space": "paper", "pruning": False}


class Task(NamedTuple):
    """A study and what belongs to it."""

    settings: dict[str, Any]
    database: Path

    @property
    def name(self) -> str:
        return f"{self.settings['env']}, {self.settings['agent']}"

    @property
    def csv(self) -> Path:
        return self.database.with_suffix(".csv")

    def study(self) -> optuna.Study:
        return trials.load(self.database, self.settings["agent"], self.settings)


def prepare(arguments: argparse.Namespace, env: str, agent: str) -> Task:
    """The study's settings, once an agent could be built from its first trial; leaves with a sentence otherwise."""
    space = spaces.read(arguments.space, agent)
    default = spaces.default(space, env, agent)
    chosen = spaces.suggest(optuna.trial.FixedTrial(default), space, env, agent)
    spaces.split(agent, chosen["options"])
    esrl.Recipe(env=env, agent=agent, **chosen).build()
    settings = {
        "env": env,
        "agent": agent,
        "space_name": arguments.space if arguments.space == "paper" else Path(arguments.space).stem,
        "space": space,
        "default": {} if arguments.protocol == "paper" else default,
        **{k: getattr(arguments, k) for k in ("sampler", "seconds", "env_steps", "evaluations", "episodes", "pruning")},
        "seed": arguments.seed,
    }
    return Task(json.loads(json.dumps(settings)), arguments.out / folder_name(env) / f"{agent}.db")


def alone(task: Task, held: contextlib.ExitStack) -> None:
    """Keeps other processes from tuning a study until `held` is closed; leaves with a sentence if one does."""
    if not held.enter_context(trials.locked(task.database.with_suffix(".tuning"), wait=False)):
        sys.exit(f"another process is tuning {task.name} in {task.database}; wait for its end")


def admit(task: Task, again: bool) -> None:
    """Makes a study ready: no worker of a killed process is at it, its settings are these, no trial is half done."""
    begun = time.monotonic()
    while True:
        with trials.locked(task.database.with_suffix(".lock"), wait=False) as alone:
            if alone:
                if again:
                    for ending in (".db", ".csv", ".json"):
                        task.database.with_suffix(ending).unlink(missing_ok=True)
                study = task.study()
                there = study.user_attrs["settings"]
                differ = [k for k, v in task.settings.items() if there.get(k) != v]
                if differ:
                    sys.exit(
                        f"{task.database} was tuned with another {', '.join(differ)};"
                        " give another --out, or --again to tune anew (what is there will be gone)"
                    )
                trials.release(study, crashed=False)
                return
        if time.monotonic() - begun > 60:
            sys.exit(f"a process of another tune.py is still at {task.name} in {task.database}; wait for its end")
        time.sleep(0.5)


def tune(tasks: Sequence[Task], number: int, processes: int) -> list[str]:
    """Runs the missing trials of some studies; returns what is missing still."""

    def left(task: Task) -> int:
        return number - len(trials.ended(task.study(), number))

    before = math.inf
    while True:
        jobs = []
        for task in tasks:
            command = ["python", "-m", "experiments.study.trials", str(task.database)]
            command += [task.settings["agent"], str(number)]
            jobs += [pool.Job(task.name, command)] * min(processes, left(task))
        if not jobs:
            return []
        pool.run(jobs, processes)
        lost = sum(trials.release(task.study(), crashed=True) for task in tasks)
        after = sum(left(task) for task in tasks)
        if after >= before and not lost:
            return [f"{task.name}: {left(task)} of {number} trials are missing" for task in tasks if left(task)]
        before = after


def finish(tasks: Sequence[Task], arguments: argparse.Namespace) -> list[str]:
    """Runs the missing final seeds of some studies, and writes their recipes; returns what went wrong."""
    jobs, wrong, whole = [], [], []
    for task in tasks:
        chosen = finals.best(trials.ended(task.study(), arguments.trials))
        if chosen is None:
            wrong.append(f"{task.name}: no trial came to an end with a finite return")
            continue
        budget = {"seconds": arguments.final_seconds, "env_steps": arguments.final_env_steps}
        budget |= {"evaluations": arguments.final_evaluations, "episodes": arguments.episodes}
        budget |= {"early": arguments.final_early} if arguments.final_early else {}
        about = {**plain(finals.recipe_of(task.settings, chosen)), "final": budget}
        whole.append((task, about))
        for seed in finals.missing(task.csv, about, arguments.final_seeds):
            given = json.dumps({"csv": str(task.csv), "about": about, "seed": seed})
            jobs.append(pool.Job(f"{task.name}, seed {seed}", ["python", "-m", "experiments.study.finals", given]))
    if jobs:
        pool.run(jobs, arguments.processes)
    for task, about in whole:
        absent = finals.missing(task.csv, about, arguments.final_seeds)
        if absent:
            wrong.append(f"{task.name}: final seeds {', '.join(map(str, absent))} have no result")
        found = trials.ended(task.study(), arguments.trials)
        trials.export(task.database, found, finals.best(found))
        path = finals.write_recipe(arguments.recipes_out, task.settings, found, task.csv)
        if path:
            print(f"{task.name}: {path} written", flush=True)
    return wrong


HEAD = ("environment", "agent", "trials", "complete", "pruned", "failed", "a trial's budget", "sampler, space")
HEAD += ("best in tuning worlds", "final seeds", "final return, IQM [95 %]", "lowest seed", "training s", "all s")


def line(database: Path, number: int | None) -> list[str]:
    """One line of the summary, and the failed trials' reasons."""
    study = trials.load(database, database.stem)
    settings = study.user_attrs["settings"]
    found = trials.ended(study, number or sys.maxsize)
    counts = [sum(t.state == s for t in found) for s in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)]
    chosen, final = finals.best(found), finals.scores(database.with_suffix(".csv"))
    used = [t.user_attrs.get("used", {}) for t in found]
    cells = [f"`{settings['env']}`", settings["agent"], len(found), *counts]
    cells += [finals.budget_words(settings["seconds"], settings["env_steps"])]
    cells += [f"{settings['sampler']}, {settings['space_name']}", shown(chosen.value) if chosen else "–"]
    if final:
        low, high = final["interval"]
        limits = f" [{shown(low)}, {shown(high)}]" if math.isfinite(low) else ""
        cells += [len(final["seeds"]), shown(final["iqm"]) + limits, shown(final["lowest"])]
    else:
        cells += [0, "–", "–"]
    cells += [f"{sum(x.get(k, 0) for x in used):.0f}" for k in ("seconds", "wall")]
    reasons = [f"`{settings['env']}`, {settings['agent']}, trial {t.user_attrs['slot'] + 1} failed: "
               f"{t.user_attrs['error']}" for t in found if "error" in t.user_attrs]  # fmt: skip
    return ["| " + " | ".join(map(str, cells)) + " |", *reasons]


def show(databases: Sequence[Path], number: int | None) -> None:
    """Prints the summary of some studies as Markdown. Seconds are of all trials: of training, and of everything."""
    begun = [path for path in databases if path.exists() and trials.begun(path)]
    lines = [line(path, number) for path in begun]
    print("| " + " | ".join(HEAD) + " |\n" + "|---" * len(HEAD) + "|")
    print("\n".join(found[0] for found in lines))
    reasons = [reason for found in lines for reason in found[1:]]
    if reasons:
        print("\n" + "\n".join(reasons))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("envs", nargs="*")
    parser.add_argument("--agents", nargs="+", default=AGENTS)
    parser.add_argument("--trials", type=int, help="of each agent in each environment (20)")
    parser.add_argument("--seconds", type=float, help="budget of a trial, of training (8, unless --env-steps is given)")
    parser.add_argument("--env-steps", type=float, help="budget of a trial")
    parser.add_argument("--sampler", choices=("tpe", "random"), help="(tpe)")
    parser.add_argument("--space", help='"esrl", "paper", or a TOML file (esrl)')
    parser.add_argument(
        "--protocol", choices=("paper",), help="random search, 20 trials, the paper's space, no pruning"
    )
    parser.add_argument("--full", action="store_true", help="64 trials of 120 s, 10 final seeds")
    parser.add_argument("--no-pruning", dest="pruning", action="store_false", default=None)
    parser.add_argument("--evaluations", type=int, default=5, help="of a trial")
    parser.add_argument("--episodes", type=int, default=128, help="held-out ones of each evaluation")
    parser.add_argument("--seed", type=int, default=0, help="of the samplers")
    parser.add_argument("--processes", type=int, help="at once, each on its own cores; one for each core unless given")
    parser.add_argument("--final-seeds", type=int, help="(5)")
    parser.add_argument("--final-seconds", type=float, help="budget of a final run; three times a trial's unless given")
    parser.add_argument("--final-env-steps", type=float)
    parser.add_argument("--final-evaluations", type=int, default=20)
    parser.add_argument("--final-early", type=int, default=0, help="further ones before the first, each halfway")
    parser.add_argument("--recipes-out", type=Path, help="where recipes go; OUT/recipes unless given")
    parser.add_argument("--out", type=Path, default=results("study") / "tune")
    parser.add_argument("--again", action="store_true", help="tune anew what is there already")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    arguments = parser.parse_args()
    arguments.envs, arguments.agents = (list(dict.fromkeys(x)) for x in (arguments.envs, arguments.agents))
    _fill(arguments)
    _check(parser, arguments)
    return arguments


def _fill(arguments: argparse.Namespace) -> None:
    """What was not given: the protocol's, the full version's, or the laptop's."""
    steps = arguments.env_steps is not None
    defaults = DEFAULTS | (FULL if arguments.full else {}) | (PAPER if arguments.protocol == "paper" else {})
    for name, value in defaults.items():
        if getattr(arguments, name) is None and not (name == "seconds" and steps):
            setattr(arguments, name, value)
    if arguments.final_seconds is None and arguments.final_env_steps is None:
        arguments.final_seconds = arguments.seconds and 3 * arguments.seconds
        arguments.final_env_steps = arguments.env_steps and 3 * arguments.env_steps
    arguments.processes = arguments.processes or pool.cores()
    arguments.recipes_out = arguments.recipes_out or arguments.out / "recipes"


def _check(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    for agent in arguments.agents:
        if agent not in recipes.AGENTS:
            parser.error(f"{agent} is no agent; environments come before --agents")
    if not (arguments.envs or arguments.table):
        parser.error("give at least one environment, as brax/hopper")
    if not 1 <= arguments.trials <= trials.FIRST_FINAL_SEED:
        parser.error(f"--trials is {arguments.trials}, but must be 1 to {trials.FIRST_FINAL_SEED}")
    budgets = ("seconds", "env_steps", "final_seconds", "final_env_steps")
    for name in (*budgets, "evaluations", "episodes", "processes", "final_seeds", "final_evaluations"):
        value = getattr(arguments, name)
        if value is not None and not value > 0:
            parser.error(f"--{name.replace('_', '-')} is {value:g}, but must be above 0")
    if arguments.final_early < 0:
        parser.error(f"--final-early is {arguments.final_early}, but must not be negative")


def main() -> None:
    arguments = parse()
    if arguments.table:
        folders = [arguments.out / folder_name(env) for env in arguments.envs] or sorted(arguments.out.glob("*"))
        found = [path for folder in folders for path in sorted(folder.glob("*.db"))]
        if not found:
            sys.exit(f"{arguments.out} has no studies{' of ' + ', '.join(arguments.envs) if arguments.envs else ''}")
        return show(found, None)
    try:
        tasks = [[prepare(arguments, env, agent) for agent in arguments.agents] for env in arguments.envs]
    except esrl.EsrlError as error:
        sys.exit(str(error))
    wrong, everything = [], [task for group in tasks for task in group]
    done = f"stopped; what is done is in {arguments.out}, and the same command goes on"
    with pool.stoppable(done), contextlib.ExitStack() as held:
        for task in everything:
            alone(task, held)
        for task in everything:
            admit(task, arguments.again)
        for group in tasks:  # an environment's recipes are there before the next one begins
            wrong += tune(group, arguments.trials, arguments.processes)
            wrong += finish(group, arguments)
    show([task.database for task in everything], arguments.trials)
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
