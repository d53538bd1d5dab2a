"""Trials of a tuning study: who runs which, what one is, and how a study goes on after it was killed.

Started by tune.py as `python -m experiments.study.trials STORAGE TRIALS`, several processes for a study;
each runs whole trials on its own cores until none is left.

A study has numbered slots. tune.py puts a trial for each into Optuna's own queue (`enqueue_trial`), and the processes
take them from there. A slot's trial trains with the slot as its seed, and its sampler is seeded by the slot, so that
random search gives a slot the same parameters whoever runs it (TPE's also depend on which trials had ended before). A
trial that its process left unfinished is failed without a result, so that it does not count, and its slot is queued
again with the same parameters. Optuna's heartbeat would find such trials too, but only after a grace period, and only
with `Study.optimize`, which makes a new trial when the queue is empty, so that two processes would make too many.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

import esrl
from experiments.lab import pool, spaces
from experiments.lab.budget import Budget, train
from experiments.lab.store import Row, write_rows

WORLDS = 999  # seed of the held-out worlds that trials are scored in; no final run has it
FIRST_FINAL_SEED = 1000  # so a study may have as many trials
STARTUP = 8  # random trials before TPE begins, and trials before the first is pruned
CRASHES = 3  # times that a slot's process may end without a word before the slot counts as failed
KEPT = 16  # compiled agents in a process

optuna.logging.set_verbosity(optuna.logging.ERROR)


def export(database: Path, found: Sequence[FrozenTrial], chosen: FrozenTrial | None) -> None:
    """Writes a study's trials beside its storage as trials/<agent>.csv, which anything can read.

    A row for each trial: slot, state, value (the held-out return), its parameters, seconds of training, seconds of
    everything, the error if it failed, and whether it was chosen.
    """
    names = dict.fromkeys(name for trial in found for name in trial.params)
    rows = []
    for trial in found:
        used = trial.user_attrs.get("used", {})
        row = {"slot": trial.user_attrs["slot"], "state": trial.state.name.lower(), "value": trial.value}
        row |= {name: trial.params.get(name) for name in names}
        row |= {"env_steps": used.get("env_steps"), "seconds": used.get("seconds")}
        row |= {"seconds_all": round(used.get("wall", 0.0), 1), "error": trial.user_attrs.get("error", "")}
        rows.append(row | {"chosen": chosen is not None and trial.number == chosen.number})
    if rows:
        write_rows(database.parent / "trials" / f"{database.stem}.csv", rows)


def storage(database: Path) -> optuna.storages.RDBStorage:
    """The SQLite storage in a file."""
    return optuna.storages.RDBStorage(f"sqlite:///{database}", engine_kwargs={"connect_args": {"timeout": 120}})


def load(database: Path, agent: str, settings: dict[str, Any] | None = None) -> optuna.Study:
    """A study as it is in its file, or a new one with these settings."""
    if settings is None:
        return optuna.load_study(study_name=agent, storage=storage(database))
    database.parent.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(study_name=agent, storage=storage(database), direction="maximize", load_if_exists=True)
    if "settings" not in study.user_attrs:
        study.set_user_attr("settings", settings)
    return study


def begun(database: Path) -> bool:
    """Whether a storage has its study already, with its settings."""
    found = optuna.study.get_all_study_summaries(storage(database))
    return any("settings" in each.user_attrs for each in found)


def ended(study: optuna.Study, trials: int) -> list[FrozenTrial]:
    """The trials that count, by slot: complete, pruned or failed ones of the first so many slots.

    A failed trial without an error is one that was lost: it does not count.
    """
    found = {t.user_attrs["slot"]: t for t in study.get_trials(deepcopy=False) if t.state.is_finished() and _counts(t)}
    return [trial for slot, trial in sorted(found.items()) if slot < trials]


def _counts(trial: FrozenTrial) -> bool:
    return trial.state != TrialState.FAIL or "error" in trial.user_attrs


def queue(study: optuna.Study, settings: dict[str, Any], trials: int, crashed: bool = False) -> int:
    """Queues every slot that has not ended; call it when no process is at the study. Returns how many were lost.

    A trial that was under way is failed, and its slot is queued with its parameters.

    Args:
      crashed: the processes of lost trials ended by themselves. The third time, the slot counts as failed.
    """
    lost = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    for trial in lost:
        study.tell(trial.number, state=TrialState.FAIL)
    waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    if any(trial.user_attrs["slot"] >= trials for trial in waiting):  # more were wanted once
        for _ in waiting:
            study.tell(study.ask(), state=TrialState.FAIL)
        waiting = []
    everything, broken = study.get_trials(deepcopy=False), {trial.user_attrs["slot"] for trial in lost}
    there = {trial.user_attrs["slot"] for trial in [*waiting, *ended(study, trials)]}
    for slot in sorted(set(range(trials)) - there):
        before = [t for t in everything if t.user_attrs["slot"] == slot]
        crashes = max((t.user_attrs.get("crashes", 0) for t in before), default=0) + (crashed and slot in broken)
        own = {"slot": slot, "crashes": crashes}
        if crashes >= CRASHES:
            own["error"] = f"its process ended {crashes} times without a word"
            study.add_trial(optuna.trial.create_trial(state=TrialState.FAIL, user_attrs=own))
            continue
        parameters = next((t.params for t in reversed(before) if t.params), settings["default"] if slot == 0 else {})
        study.enqueue_trial(parameters, user_attrs=own)
    return len(lost)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Waits for a lock on a file and holds it. A killed holder's is free."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def claim(database: Path, study: optuna.Study, settings: dict[str, Any]) -> tuple[Trial, spaces.Space] | None:
    """Takes the next trial of the queue, with the configuration that it is to run; None when there is none."""
    with locked(database.with_suffix(".claim")):  # with an empty queue `ask` makes a new trial
        waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        if not waiting:
            return None
        seed = settings["seed"] * 1000 + waiting[0].user_attrs["slot"]
        if settings["sampler"] == "random":
            study.sampler = optuna.samplers.RandomSampler(seed=seed)
        else:
            study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP, constant_liar=True)
        trial = study.ask()
        return trial, spaces.suggest(trial, settings["space"], settings["env"], settings["agent"])


class Runner:
    """Runs trials in this process; agents that differ in traced values only are compiled once."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.budget = Budget(
            env_steps=settings["env_steps"],
            seconds=settings["seconds"],
            evaluations=settings["evaluations"],
            episodes=settings["episodes"],
        )
        self._agents: dict[str, esrl.Agent] = {}

    def agent(self, policy: dict[str, Any], structure: dict[str, Any]) -> esrl.Agent:
        """The agent with these options, compiled or new; the one that was longest unused makes room."""
        key = json.dumps([policy, structure], sort_keys=True)
        agent = self._agents.pop(key, None)
        if agent is None:
            s = self.settings
            agent = esrl.Recipe(env=s["env"], agent=s["agent"], policy=policy, options=structure).build()
        self._agents[key] = agent
        if len(self._agents) > KEPT:
            del self._agents[next(iter(self._agents))]
        return agent

    def run(self, study: optuna.Study, trial: Trial, chosen: spaces.Space, of: int) -> None:
        """Runs one trial to its end and tells the study: its return, that it was pruned, or why it failed."""
        slot, begun = trial.user_attrs["slot"], time.perf_counter()
        row: Row = {}
        state, value = TrialState.COMPLETE, None
        trial.set_user_attr("configuration", chosen)
        try:
            structure, values = spaces.split(self.settings["agent"], chosen["options"])
            agent = self.agent(chosen["policy"], structure)
            for row in train(agent, self.budget, seed=slot, values=values, worlds=WORLDS):
                pool.report(row["used"], f"trial {slot + 1} of {of}, return {row['return_mean']:.1f}")
                value = row["return_mean"] if math.isfinite(row["return_mean"]) else -math.inf
                if row["generation"] == 0:
                    continue
                trial.report(value, int(row["used"] * self.budget.evaluations))
                if self.settings["pruning"] and row["used"] < 1 and trial.should_prune():
                    state = TrialState.PRUNED
                    break
        except BrokenPipeError:  # whoever started this process is gone; the trial is lost
            raise
        except Exception as error:
            state = TrialState.FAIL
            kind = "" if isinstance(error, esrl.EsrlError) else f"{type(error).__name__}: "
            trial.set_user_attr("error", f"{kind}{error}")
        kept = ("env_steps", "seconds", "seconds_compile", "seconds_evaluate")
        trial.set_user_attr("used", {k: row[k] for k in kept if k in row} | {"wall": time.perf_counter() - begun})
        study.tell(trial, value if state == TrialState.COMPLETE else None, state=state)


def work(database: Path, trials: int) -> None:
    """Runs trials of a study until its queue is empty."""
    study = load(database, database.stem)
    study.pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP, n_warmup_steps=1)
    settings = study.user_attrs["settings"]
    runner = Runner(settings)
    while claimed := claim(database, study, settings):
        runner.run(study, *claimed, trials)


if __name__ == "__main__":
    try:
        work(Path(sys.argv[1]), int(sys.argv[2]))
    except KeyboardInterrupt:
        sys.exit(130)
