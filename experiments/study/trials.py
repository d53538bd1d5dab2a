"""Trials of a tuning study: who runs which, what one is, and how a study goes on after it was killed.

Started by tune.py as `python -m experiments.study.trials STORAGE AGENT TRIALS`, several processes for a study;
each runs whole trials on its own cores until there are TRIALS of them.

A study has numbered slots. A slot's trial trains with the slot as its seed, and its sampler is seeded by the slot, so
that random search gives a slot the same parameters whoever runs it (TPE's also depend on which trials had ended
before). A trial that its process left unfinished is marked `lost` and failed, and its slot is run again with the same
parameters; lost trials do not count. A lock on a file keeps two processes from taking one slot.
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
from experiments.lab.record import write_rows

WORLDS = 999  # seed of the held-out worlds that trials are scored in; no final run has it
FIRST_FINAL_SEED = 1000  # so a study may have as many trials
STARTUP = 8  # random trials before TPE begins, and trials before the first is pruned
ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
CRASHES = 3  # times that a slot's process may end without a word before the slot counts as failed
KEPT = 16  # compiled agents in a process

optuna.logging.set_verbosity(optuna.logging.ERROR)


def export(database: Path, found: Sequence[FrozenTrial], chosen: FrozenTrial | None) -> Path:
    """Writes a study's trials beside its storage as trials/<agent>.csv, which anything can read; returns where.

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
    path = database.parent / "trials" / f"{database.stem}.csv"
    if rows:
        write_rows(path, rows)
    return path


@contextlib.contextmanager
def locked(path: Path, shared: bool = False, wait: bool = True) -> Iterator[bool]:
    """Holds a lock on a file; False where another process has it and `wait` is not set. A killed holder's is free."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


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


def slots(study: optuna.Study) -> dict[int, FrozenTrial]:
    """The trial of each slot that has one which is not lost."""
    found = study.get_trials(deepcopy=False)
    return {t.user_attrs["slot"]: t for t in found if "slot" in t.user_attrs and "lost" not in t.user_attrs}


def ended(study: optuna.Study, trials: int) -> list[FrozenTrial]:
    """The trials that count, by slot: complete, pruned or failed ones of the first so many slots."""
    return [trial for slot, trial in sorted(slots(study).items()) if slot < trials and trial.state in ENDED]


def release(study: optuna.Study, crashed: bool) -> int:
    """Gives back the slots of trials that nobody runs any more; call it when no process is at the study.

    Args:
      crashed: their processes ended by themselves. The third time, the slot counts as failed.
    """
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    for trial in running:
        slot = trial.user_attrs.get("slot")
        before = [t for t in study.get_trials(deepcopy=False) if t.user_attrs.get("slot") == slot]
        crashes = sum("crashed" in t.user_attrs for t in before) + crashed
        note = {"crashed": True} if crashed else {}
        if crashed and crashes >= CRASHES:
            note["error"] = f"its process ended {crashes} times without a word"
        else:
            note["lost"] = True
        for name, value in note.items():
            study._storage.set_trial_user_attr(trial._trial_id, name, value)
        study.tell(trial.number, state=TrialState.FAIL)
    return len(running)


def claim(study: optuna.Study, settings: dict[str, Any], trials: int) -> tuple[Trial, spaces.Space] | None:
    """Takes the next slot: its trial, and the configuration that it is to run; None when every slot is taken.

    The caller holds the lock.
    """
    everything = study.get_trials(deepcopy=False)
    waiting = [t for t in everything if t.state == TrialState.WAITING]
    if waiting:  # its process was killed before it could take what it had put there
        slot = waiting[0].user_attrs["slot"]
    else:
        taken = slots(study)
        slot = next((i for i in range(trials) if i not in taken), None)
        if slot is None:
            return None
        before = [t for t in everything if t.user_attrs.get("slot") == slot and t.params]
        parameters = settings["default"] if slot == 0 else {}
        study.enqueue_trial(before[-1].params if before else parameters, user_attrs={"slot": slot})
    seed = settings["seed"] * 1000 + slot
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
            env_steps=settings["env_steps"] or math.inf,
            seconds=settings["seconds"] or math.inf,
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
        slot, begun, row = trial.user_attrs["slot"], time.perf_counter(), {}
        state, value = TrialState.COMPLETE, None
        trial.set_user_attr("configuration", chosen)
        try:
            structure, values = spaces.split(self.settings["agent"], chosen["options"])
            agent = self.agent(chosen["policy"], structure)
            for row, _ in train(agent, self.budget, seed=slot, values=values, worlds=WORLDS):
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


def work(database: Path, agent: str, trials: int) -> None:
    """Runs trials of a study until all its slots are taken."""
    study = load(database, agent)
    study.pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP, n_warmup_steps=1)
    settings = study.user_attrs["settings"]
    runner = Runner(settings)
    with locked(database.with_suffix(".lock"), shared=True):
        while True:
            with locked(database.with_suffix(".claim")):
                claimed = claim(study, settings, trials)
            if claimed is None:
                return
            runner.run(study, *claimed, trials)


if __name__ == "__main__":
    try:
        work(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
    except KeyboardInterrupt:
        sys.exit(130)
