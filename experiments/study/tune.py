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
trials/<agent>.csv, its trials as a table; <agent>.csv and .json, the final runs (a table of lab/store.py); and
<recipes-out>/<environment>/<agent>.toml. Everything goes on where it was: a trial that was killed is run again with
the same parameters, other trials and seeds are not. --trials may grow later. Needs flock (Linux, macOS).
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import optuna
import tyro
from optuna.trial import TrialState

import esrl
from esrl.training import recipe as recipes
from experiments import script
from experiments.lab import pool, spaces
from experiments.lab.run import measure_cells
from experiments.lab.store import Store, folder_name, results
from experiments.lab.words import bounded
from experiments.lab.words import number as shown
from experiments.study import finals, trials

DEFAULTS = {"trials": 20, "seconds": 8.0, "sampler": "tpe", "space": "esrl", "final_seeds": 5}
FULL = {"trials": 64, "seconds": 120.0, "final_seeds": 10}
PAPER = {"trials": 20, "sampler": "random", "space": "paper"}
OUT = results("study") / "tune"
HEAD: tuple[str, ...] = (
    "environment",
    "agent",
    "trials",
    "complete",
    "pruned",
    "failed",
    "a trial's budget",
    "sampler, space",
)
HEAD += ("best in tuning worlds", "final seeds", "final return, IQM [95 %]", "lowest seed", "training s", "all s")


@dataclass
class Arguments:
    """The command line."""

    envs: tyro.conf.Positional[tuple[str, ...]] = ()
    agents: tuple[str, ...] = ("eggroll", "eggroll_ac", "open_es", "ppo")
    trials: int | None = None  # of each agent in each environment (20)
    seconds: float | None = None  # budget of a trial, of training (8, unless --env-steps is given)
    env_steps: float | None = None  # budget of a trial
    sampler: Literal["tpe", "random"] | None = None  # (tpe)
    space: str | None = None  # "esrl", "paper", or a TOML file (esrl)
    protocol: Literal["paper"] | None = None  # random search, 20 trials, the paper's space, no pruning
    full: bool = False  # 64 trials of 120 s, 10 final seeds
    pruning: bool = True
    evaluations: int = 5  # of a trial
    episodes: int = 128  # held-out ones of each evaluation
    seed: int = 0  # of the samplers
    processes: int | None = None  # at once, each on its own cores; one for each core unless given
    ray_address: str | None = None  # of a Ray cluster whose nodes run trials and final runs (lab/remote.py)
    final_seeds: int | None = None  # (5)
    final_seconds: float | None = None  # budget of a final run; three times a trial's unless given
    final_env_steps: float | None = None
    final_evaluations: int = 20
    final_early: int = 0  # further ones before the first, each halfway
    recipes_out: Path | None = None  # where recipes go; OUT/recipes unless given
    out: Path = OUT
    again: bool = False  # tune anew what is there already
    table: bool = False  # only print what is there

    def fill(self) -> None:
        """What was not given: the protocol's, the full version's, or the laptop's; leaves with a sentence if wrong."""
        paper = self.protocol == "paper"
        self.envs, self.agents = tuple(dict.fromkeys(self.envs)), tuple(dict.fromkeys(self.agents))
        self.pruning = self.pruning and not paper
        for name, value in {**DEFAULTS, **(FULL if self.full else {}), **(PAPER if paper else {})}.items():
            if getattr(self, name) is None and not (name == "seconds" and self.env_steps is not None):
                setattr(self, name, value)
        if self.final_seconds is None and self.final_env_steps is None:
            self.final_seconds = self.seconds and 3 * self.seconds
            self.final_env_steps = self.env_steps and 3 * self.env_steps
        if self.ray_address is None:
            self.processes = self.processes or pool.cores()
        self.recipes_out = self.recipes_out or self.out / "recipes"
        for agent in self.agents:
            if agent not in recipes.AGENTS:
                script.wrong(f"{agent} is no agent; environments come before --agents")
        if not (self.envs or self.table):
            script.wrong("give at least one environment, as brax/hopper")
        if not 1 <= self.number <= trials.FIRST_FINAL_SEED:
            script.wrong(f"--trials is {self.trials}, but must be 1 to {trials.FIRST_FINAL_SEED}")
        names = ("seconds", "env_steps", "final_seconds", "final_env_steps", "evaluations", "episodes", "processes")
        script.at_least(self, 0, *names, "final_seeds", "final_evaluations", strict=True)
        script.at_least(self, 0, "final_early")

    @property
    def number(self) -> int:
        """How many trials."""
        return self.trials or 0


@dataclass
class Task:
    """A study and what belongs to it: its settings, Optuna's storage, and the table of its final runs."""

    settings: dict[str, Any]
    database: Path
    store: Store = field(init=False)

    def __post_init__(self) -> None:
        self.store = Store(self.database.with_suffix(".csv"), ("seed",), order="seed")

    @property
    def name(self) -> str:
        return f"{self.settings['env']}, {self.settings['agent']}"

    def study(self) -> optuna.Study:
        return trials.load(self.database, self.settings["agent"], self.settings)

    def ended(self, number: int) -> list[optuna.trial.FrozenTrial]:
        return trials.ended(self.study(), number)

    def queue(self, number: int, crashed: bool = False) -> int:
        return trials.queue(self.study(), self.settings, number, crashed)


def prepare(arguments: Arguments, env: str, agent: str) -> Task:
    """The study's settings, once an agent could be built from its first trial.

    Raises:
      EsrlError: no such space or environment, or a first trial that makes no sense.
    """
    name = arguments.space or ""
    space = spaces.read(name, agent)
    default = spaces.default(space, env, agent)
    chosen = spaces.suggest(optuna.trial.FixedTrial(default), space, env, agent)
    spaces.split(agent, chosen["options"])
    esrl.Recipe(env=env, agent=agent, policy=chosen["policy"], options=chosen["options"]).build()
    kept = ("sampler", "seconds", "env_steps", "evaluations", "episodes", "pruning", "seed")
    settings = {
        "env": env,
        "agent": agent,
        "space_name": name if name == "paper" else Path(name).stem,
        "space": space,
        "default": {} if arguments.protocol == "paper" else default,
        **{k: getattr(arguments, k) for k in kept},
    }
    return Task(json.loads(json.dumps(settings)), arguments.out / folder_name(env) / f"{agent}.db")


def admit(task: Task, arguments: Arguments) -> None:
    """Makes a study that this process holds ready: its settings are these, and what is missing is in its queue."""
    if arguments.again:
        task.database.unlink(missing_ok=True)
        task.store.forget()
    there = task.study().user_attrs["settings"]
    differ = [k for k, v in task.settings.items() if there.get(k) != v]
    if differ:
        sys.exit(
            f"{task.database} was tuned with another {', '.join(differ)};"
            " give another --out, or --again to tune anew (what is there will be gone)"
        )
    task.queue(arguments.number)


def tune(tasks: Sequence[Task], number: int, processes: int | None, ray_address: str | None = None) -> list[str]:
    """Runs the missing trials of some studies; returns what is missing still."""

    def left() -> list[int]:
        return [number - len(task.ended(number)) for task in tasks]

    before = math.inf
    while any(absent := left()):
        jobs = []
        for task, count in zip(tasks, absent, strict=True):
            words = ("python", "-m", "experiments.study.trials", str(task.database), str(number))
            jobs += [pool.Job(task.name, words)] * min(processes or (1 if ray_address is None else count), count)
        pool.run(jobs, processes, ray_address=ray_address)
        lost = sum(task.queue(number, crashed=True) for task in tasks)
        if sum(left()) >= before and not lost:
            both = zip(tasks, left(), strict=True)
            return [f"{task.name}: {count} of {number} trials are missing" for task, count in both if count]
        before = sum(left())
    return []


def finish(tasks: Sequence[Task], arguments: Arguments) -> list[str]:
    """Runs the missing final seeds of some studies, and writes their recipes; returns what went wrong."""
    cells, wrong, whole = [], [], []
    final = {"seconds": arguments.final_seconds, "env_steps": arguments.final_env_steps}
    final |= {"evaluations": arguments.final_evaluations, "episodes": arguments.episodes}
    final |= {"early": arguments.final_early} if arguments.final_early else {}
    for task in tasks:
        chosen = finals.best(task.ended(arguments.number))
        if chosen is None:
            wrong.append(f"{task.name}: no trial came to an end with a finite return")
            continue
        whole.append(task)
        recipe = finals.recipe_of(task.settings, chosen)
        finals.ready(task.store, recipe, final)
        cells += finals.cells(task.name, task.store, recipe, final, arguments.final_seeds or 0)
    wrong += measure_cells(cells, arguments.processes, ray_address=arguments.ray_address)
    for task in whole:
        found = task.ended(arguments.number)
        trials.export(task.database, found, finals.best(found))
        path = finals.write_recipe(arguments.recipes_out or arguments.out, task.settings, found, task.store.path)
        if path:
            print(f"{task.name}: {path} written", flush=True)
    return wrong


def line(database: Path, number: int) -> tuple[list[Any], list[str]]:
    """One line of the summary, and the failed trials' reasons."""
    study = trials.load(database, database.stem)
    settings, found = study.user_attrs["settings"], trials.ended(study, number)
    counts = [sum(t.state == s for t in found) for s in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)]
    chosen, final = finals.best(found), finals.scores(database.with_suffix(".csv"))
    used = [t.user_attrs.get("used", {}) for t in found]
    cells = [f"`{settings['env']}`", settings["agent"], len(found), *counts]
    cells += [finals.budget_words(settings["seconds"], settings["env_steps"])]
    cells += [f"{settings['sampler']}, {settings['space_name']}"]
    cells += [shown(chosen.value) if chosen and chosen.value is not None else "–"]
    cells += (
        [len(final["seeds"]), bounded(final["iqm"], final["interval"]), shown(final["lowest"])]
        if final
        else [0, "–", "–"]
    )
    cells += [f"{sum(x.get(k, 0) for x in used):.0f}" for k in ("seconds", "wall")]
    name = f"`{settings['env']}`, {settings['agent']}"
    bad = [t.user_attrs for t in found if "error" in t.user_attrs]
    return cells, [f"{name}, trial {each['slot'] + 1} failed: {each['error']}" for each in bad]


def show(databases: Sequence[Path], number: int) -> None:
    """Prints the summary of some studies as Markdown. Seconds are of all trials: of training, and of everything."""
    lines = [line(path, number) for path in databases if path.exists() and trials.begun(path)]
    print(script.table(HEAD, [cells for cells, _ in lines]))
    reasons = [reason for _, reasons in lines for reason in reasons]
    if reasons:
        print("\n" + "\n".join(reasons))


def main() -> None:
    arguments = script.options(Arguments, __doc__)
    arguments.fill()
    if arguments.table:
        folders = [arguments.out / folder_name(env) for env in arguments.envs] or sorted(arguments.out.glob("*"))
        found = [path for folder in folders for path in sorted(folder.glob("*.db"))]
        if not found:
            sys.exit(f"{arguments.out} has no studies{' of ' + ', '.join(arguments.envs) if arguments.envs else ''}")
        return show(found, sys.maxsize)
    wrong: list[str] = []
    done = f"stopped; what is done is in {arguments.out}, and the same command goes on"
    with pool.stoppable(done), contextlib.ExitStack() as held:
        groups = [[prepare(arguments, env, agent) for agent in arguments.agents] for env in arguments.envs]
        tasks = [task for group in groups for task in group]
        for task in tasks:
            held.enter_context(task.store.alone())
        for task in tasks:
            admit(task, arguments)
        for group in groups:  # an environment's recipes are there before the next one begins
            wrong += tune(group, arguments.number, arguments.processes, arguments.ray_address)
            wrong += finish(group, arguments)
    show([task.database for task in tasks], arguments.number)
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
