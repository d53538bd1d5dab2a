"""The command that searches an agent's options with Optuna."""

from __future__ import annotations

import contextlib
import dataclasses
import json as jsons
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import tomli_w

from esrl.algorithms.agent import Agent
from esrl.cli.output import plain_name, tell
from esrl.core.brief import options_text
from esrl.core.errors import EsrlError, reason_of
from esrl.core.extras import import_extra
from esrl.core.tables import Rows, aligned
from esrl.core.types import seed_key
from esrl.training.files import replace_bytes, writing
from esrl.training.locks import locked
from esrl.training.loop import iterate
from esrl.training.recipe import Recipe, run_keys
from esrl.training.run_folder import at
from esrl.training.stopping import Stop
from esrl.training.suite_defaults import ES

_DIGITS = 4  # significant ones of a sampled number, so that the recipe holds exactly what was run
_LANES = {"learning_rate": 10.0, "entropy_coef": (0.0, 0.001, 0.003, 0.01, 0.03), "num_epochs": (1, 2, 4, 8)}
_EVOLUTION = {"sigma": 5.0, "learning_rate": 10.0, "population": (8, 16, 32, 64, 128)}
# What is searched: choices, or a factor by which a number may be below and above that of the recipe.
SPACES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(ES, _EVOLUTION),
    "ppo": _LANES,
    "eggroll_ac": _LANES,
}
_STARTUP = 5  # trials before one may be given up
_WARM = 0.3  # part of a trial's budget before it may be given up


def tune(
    recipe: Recipe, given: tuple[str, ...] = (), *, trials: int = 20, out: str | None = None, json: bool = False
) -> int:
    """Search an agent's options on an environment, and write the best as a recipe.

    Evolution strategies: sigma, learning rate and population. PPO and EGGROLL-AC: learning rate, entropy bonus and
    epochs. What is given by a flag is kept and not searched. Each trial is a run with the flags of train; its value is
    the last held-out return. The first trial has the defaults, the next ones come from Optuna's TPE, and one that is
    below the median of those before at the same part of the budget is given up. A search that was stopped goes on.

    Args:
      trials: trials in all, those of before too.
      out: folder of the search. Without it: runs/tune-ENV-AGENT.
      json: end with one JSON object on standard output.
    """
    if not recipe.env:
        raise EsrlError("say what to train on: an environment as brax/hopper, or a recipe file")
    if recipe.agent not in SPACES:
        raise EsrlError(f"there is nothing to search of the agent {recipe.agent}; give {', '.join(SPACES)}")
    if trials < 1 or not recipe.num_evals:
        raise EsrlError("a search needs --trials and --num-evals of at least 1")
    optuna = import_extra("optuna", "experiments", "esrl tune")
    folder = at(out or f"runs/tune-{plain_name(recipe.env)}-{recipe.agent}")
    stream = sys.stderr if json else sys.stdout
    search = Search(recipe, [name for name in SPACES[recipe.agent] if name not in given])
    with held(folder), search.opened(optuna, folder / "study.db"):
        status, table, best = search.run(trials, stream), search.table(), search.best()
        said = f"\n{aligned(table)}"
        if best is not None:
            path = folder / "best.toml"
            with writing(path):
                replace_bytes(path, search.recipe_text(*best).encode())
            said += f"\ntrain the best, with another seed: esrl train {path} --seed {recipe.seed + 1}"
    if status:
        said += f"\nstopped; the same command goes on with {folder}"
    value, params = (None, None) if best is None else best
    tell({"out": str(folder), "best": value, "params": params, "trials": list(table)}, said, json)
    return status


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keeps other processes from searching in a folder.

    Raises:
      EsrlError: another process does, or the folder cannot be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = locked(folder / ".lock", f"{folder} is being searched")
    try:
        yield
    finally:
        if file is not None:
            os.close(file)


class Trial(NamedTuple):
    """How a trial went: its last held-out return (NaN without one), and whether it was given up."""

    score: float
    given_up: bool


class Search:
    """A study of Optuna over a recipe's options.

    Args:
      recipe: what is not searched. names: options that are searched.

    Raises:
      EsrlError: nothing is left to search, or a recipe that does not fit.
    """

    def __init__(self, recipe: Recipe, names: list[str]) -> None:
        if not names:
            raise EsrlError("every option that could be searched is given by a flag; leave one out")
        self.recipe = recipe
        self._agents: dict[str, Agent] = {}
        agent = self._agent({})
        state = agent.init(seed_key(recipe.seed))
        center = {n: getattr(state, n) if n in agent.hyperparams else agent.in_force[n] for n in names}
        self.start = {name: value if isinstance(value, int) else _short(float(value)) for name, value in center.items()}
        self.space = {name: _range(SPACES[recipe.agent][name], self.start[name]) for name in names}

    @contextlib.contextmanager
    def opened(self, optuna: Any, path: Path) -> Iterator[None]:
        """Inside, the study is that of a file, new or to go on with.

        Args:
          optuna: the module. path: of the file.

        Raises:
          EsrlError: the file has a search of something else, or cannot be used.
        """
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.states = optuna.trial.TrialState
        if path.is_symlink():
            raise EsrlError(f"{path} is a link, and none is followed; put the file itself there")
        evaluations = math.ceil(_WARM * self.recipe.num_evals)
        try:
            storage = optuna.storages.RDBStorage(f"sqlite:///{path.absolute()}")
            study = optuna.create_study(
                storage=storage,
                study_name="esrl",
                direction="maximize",
                load_if_exists=True,
                pruner=optuna.pruners.MedianPruner(_STARTUP, n_warmup_steps=evaluations),
            )
        except Exception as error:  # SQLAlchemy's own
            raise EsrlError(f"{path} cannot be used as a search: {reason_of(error)}") from error
        self.study = study
        try:
            self._go_on(optuna, path)
            yield
        finally:
            storage.remove_session()
            storage.engine.dispose()

    def _go_on(self, optuna: Any, path: Path) -> None:
        """Compares a study's settings with these, and seeds its sampler."""
        now = jsons.loads(jsons.dumps({**plain(self.recipe), "space": self.space}))
        before = self.study.user_attrs.get("settings", now)
        defaults = {field.name: field.default for field in dataclasses.fields(Recipe)}  # of keys that are younger
        before = {name: before.get(name, defaults.get(name)) for name in {**before, **now}}
        if differ := [name for name in before if before[name] != now.get(name, defaults.get(name))]:
            raise EsrlError(
                f"{path.parent} has a search with another {', '.join(differ)}; give what it had, or another --out"
            )
        self.study.set_user_attr("settings", now)
        # Seeded anew where the search goes on, or what the first process drew would be drawn once more.
        drawn = len(self.study.get_trials(deepcopy=False))
        self.study.sampler = optuna.samplers.TPESampler(n_startup_trials=_STARTUP, seed=self.recipe.seed + drawn)

    def run(self, number: int, stream: Any) -> int:
        """Makes the trials that are missing. Returns the exit status: 0, or that of an interrupt."""
        for trial in self.study.get_trials(deepcopy=False, states=(self.states.RUNNING,)):  # its process was killed
            self.study.tell(trial.number, state=self.states.FAIL)
            self.study.enqueue_trial(trial.params)
        if not self.study.get_trials(deepcopy=False):
            self.study.enqueue_trial(self.start)
        with Stop(lambda text: print(text, file=stream, flush=True)) as stop:
            while not stop.asked and len(self.done()) < number:
                trial = self.study.ask()
                self._try(trial, stop, f"[{len(self.done()) + 1}/{number}]", stream)
        return 128 + stop.asked if stop.asked else 0

    def _try(self, trial: Any, stop: Stop, called: str, stream: Any) -> None:
        params, begun = self._suggested(trial), time.monotonic()
        try:
            found = self._trained(trial, params, stop)
        except EsrlError as error:  # as values with which nothing is finite
            if not self.done():
                raise
            found, wrong = Trial(math.nan, False), f"failed: {error}"
        else:
            wrong = "failed: no finite return"
        if stop.asked:
            self.study.tell(trial, state=self.states.FAIL)
            self.study.enqueue_trial(params)
            return
        sound = math.isfinite(found.score)
        trial.set_user_attr("used", params)
        trial.set_user_attr("last", found.score if sound else None)
        state = self.states.PRUNED if found.given_up else self.states.COMPLETE if sound else self.states.FAIL
        self.study.tell(trial, found.score if state == self.states.COMPLETE else None, state=state)
        said = f"return {found.score:.1f}{', given up' * found.given_up}" if sound else wrong
        print(f"{called} {said}  {options_text(params)}  ({time.monotonic() - begun:.0f} s)", file=stream, flush=True)

    def _suggested(self, trial: Any) -> dict[str, Any]:
        """The values of a trial."""
        found = {}
        for name, space in self.space.items():
            if isinstance(space, list):
                found[name] = trial.suggest_categorical(name, space)
            else:
                found[name] = _short(trial.suggest_float(name, space["low"], space["high"], log=True))
        return found

    def _trained(self, trial: Any, params: dict[str, Any], stop: Stop) -> Trial:
        agent = self._agent({})
        traced = {name: value for name, value in params.items() if name in agent.hyperparams}
        agent = self._agent({name: value for name, value in params.items() if name not in traced})
        keys = {name: getattr(self.recipe, name) for name in run_keys()}
        run = iterate(agent, hyperparams=traced, **keys | {"films": False, "checkpoint_every": None})
        score, reported = math.nan, 0
        with contextlib.closing(iter(run)) as generations:  # type: ignore[type-var]
            for _, state, row in generations:
                if stop.asked:
                    break
                if "eval_return_mean" in row:
                    score = row["eval_return_mean"]
                    place = round(run.progress(state) * self.recipe.num_evals)
                    if math.isfinite(score) and place > reported:
                        reported = place
                        trial.report(score, place)
                        if run.progress(state) < 1 and trial.should_prune():
                            return Trial(score, True)
        return Trial(score, False)

    def _agent(self, options: dict[str, Any]) -> Agent:
        """The agent with these options: one for each, so that trials share what is compiled."""
        key = repr(sorted(options.items()))
        if key not in self._agents:
            self._agents[key] = self.recipe.override({}, None, options).build()
        return self._agents[key]

    def done(self) -> list[Any]:
        """The trials that came to an end of their own, in their order."""
        return [trial for trial in self.study.get_trials(deepcopy=False) if "used" in trial.user_attrs]

    def best(self) -> tuple[float, dict[str, Any]] | None:
        """The highest return and its values; None without one."""
        whole = [trial for trial in self.done() if trial.state == self.states.COMPLETE]
        if not whole:
            return None
        best = max(whole, key=lambda trial: trial.value)
        return best.value, best.user_attrs["used"]

    def table(self) -> Rows:
        """The trials, best first."""
        rows = Rows()
        for number, trial in enumerate(self.done(), 1):
            seconds = (trial.datetime_complete - trial.datetime_start).total_seconds()
            ended = {self.states.COMPLETE: "", self.states.PRUNED: "given up", self.states.FAIL: "failed"}[trial.state]
            told = {"trial": number, "last return": trial.user_attrs["last"], "": ended}
            rows.append({**told, **trial.user_attrs["used"], "seconds": seconds})
        rows.sort(key=lambda row: (row[""] != "", -math.inf if row["last return"] is None else -row["last return"]))
        return rows

    def recipe_text(self, value: float, params: dict[str, Any]) -> str:
        """A recipe with a trial's values, which trains as the trial did."""
        number, episodes = len(self.done()), self.recipe.eval_episodes
        head = (
            f"# The best of {number} trials of `esrl tune`: held-out return {value:.1f} ({episodes} episodes, seed"
            f" {self.recipe.seed}).\n# The highest of many flatters itself: other seeds say what it is worth.\n"
        )
        return head + tomli_w.dumps(plain(self.recipe.override({}, None, params)))


def plain(recipe: Recipe) -> dict[str, Any]:
    """A recipe as the tables of its file."""
    found = {name: value for name, value in dataclasses.asdict(recipe).items() if value not in (None, {})}
    return jsons.loads(jsons.dumps(found))


def _range(space: Any, center: Any) -> Any:
    """Choices, the recipe's own too, or a range around it."""
    if isinstance(space, tuple):
        return sorted({*space, center})
    return {"low": _short(center / space), "high": _short(center * space)}


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
