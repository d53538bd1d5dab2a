"""The command that searches an agent's options with Optuna."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json as jsons
import math
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import tomli_w

from esrl.cli.output import plain_name, tell
from esrl.cli.recipes import PLAYERS
from esrl.cli.remote_trials import Everywhere, of_trials
from esrl.cli.trials import FOLDER, Answer, Gone, Here, Player, Players, Step
from esrl.core.brief import options_text
from esrl.core.errors import EsrlError, reason_of
from esrl.core.extras import import_extra
from esrl.core.tables import Rows, aligned
from esrl.core.types import seed_key
from esrl.envs.base import on_device
from esrl.training.files import replace_bytes, writing
from esrl.training.locks import locked
from esrl.training.recipe import Recipe
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
_ENDS = 3  # times that a trial's process may end by itself; then the trial has failed


def tune(
    recipe: Recipe, given: tuple[str, ...] = (), *, trials: int = 20, out: str | None = None, json: bool = False
) -> int:
    """Search an agent's options on an environment, and write the best as a recipe.

    Evolution strategies: sigma, learning rate and population. PPO and EGGROLL-AC: learning rate, entropy bonus and
    epochs. What is given by a flag is kept and not searched. Each trial is a run with the flags of train; its value is
    the last held-out return. The first trial has the defaults, the next ones come from Optuna's TPE, and one that is
    below the median of those before at the same part of the budget is given up. A search that was stopped goes on, with
    the trials that were under way from where they were. With --ray-address, trials on environments that JAX steps run
    at once on the cluster, one for a core (--workers: so many); every node has to see the folder of the search.

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
        status, table, best = search.run(trials, folder, stream), search.table(), search.best()
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


class Under(NamedTuple):
    """A trial under way.

    Attributes:
      trial: Optuna's. params: its values. score: its last held-out return, NaN before.
    """

    trial: Any
    params: dict[str, Any]
    score: float = math.nan


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
        self._address, self._workers = recipe.ray_address, recipe.workers
        self._stop: Stop | None = None
        self._player = Player(recipe, lambda: self._stop is not None and self._stop.asked)
        agent = self._player.agent({})
        # Several processes play a trial only where Python steps it: there an episode takes as long as many trials here.
        self._spread = recipe.ray_address is not None and on_device(agent.env)
        self.recipe = of_trials(recipe) if self._spread else recipe
        self._ends: dict[str, int] = {}
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
        # Who plays changes no number of a trial that one process plays, and little of one that workers do.
        now, before = ({k: v for k, v in each.items() if k not in PLAYERS} for each in (now, before))
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

    def run(self, number: int, folder: Path, stream: Any) -> int:
        """Makes the trials that are missing, in their folders. Returns the exit status: 0, or that of an interrupt."""
        for trial in self.study.get_trials(deepcopy=False, states=(self.states.RUNNING,)):  # its process was killed
            self._again(trial, trial.params, trial.user_attrs.get("folder"))
        if not self.study.get_trials(deepcopy=False):
            self.study.enqueue_trial(self.start)
        with Stop(lambda text: print(text, file=stream, flush=True)) as stop:
            self._stop = stop
            if len(self.done()) < number:
                self._play(number, folder, stop, stream)
        return 128 + stop.asked if stop.asked else 0

    def _play(self, number: int, folder: Path, stop: Stop, stream: Any) -> None:
        under: dict[int, Under] = {}
        players = self._players(folder, number - len(self.done()), stream)
        try:
            while True:
                if stop.asked:
                    players.stop()
                idle = [slot for slot in range(players.slots) if slot not in under]
                while idle and not stop.asked and len(self.done()) + len(under) < number:
                    slot = idle.pop(0)
                    trial = self.study.ask()
                    under[slot] = Under(trial, self._suggested(trial))
                    players.begin(slot, under[slot].params, self._folder(trial, folder))
                for slot in idle:
                    players.rest(slot)
                if not under:
                    return
                for slot, answer in players.wait():
                    now = under.pop(slot)
                    if (goes_on := self._heard(now, answer, number, stream)) is not None:
                        under[slot] = goes_on
                        players.go_on(slot)
        finally:
            players.close()

    def _players(self, folder: Path, most: int, stream: Any) -> Players:
        """Who plays: this process, or a cluster's."""
        if not self._spread:
            return Here(self._player)
        tell = partial(print, file=stream, flush=True)
        return Everywhere(self.recipe, folder, self._address or "", self._workers, most, tell=tell)

    def _folder(self, trial: Any, folder: Path) -> Path:
        """The folder of a trial: a new one, or that in which it was begun."""
        if (name := trial.user_attrs.get("folder")) is None:
            name = next(f"{i:04d}" for i in itertools.count() if not (folder / FOLDER / f"{i:04d}").exists())
            trial.set_user_attr("folder", name)
        found = folder / FOLDER / name
        with writing(found):
            found.mkdir(parents=True, exist_ok=True)  # at once: no other trial is to take its name
        return found

    def _again(self, trial: Any, params: dict[str, Any], folder: str | None) -> None:
        """A trial that was broken off is to go on: as another one of the study, in its folder."""
        self.study.tell(trial.number, state=self.states.FAIL)
        where = {} if folder is None else {"folder": folder}
        self.study.enqueue_trial(params, {"instead": trial.number, **where})

    def _heard(self, now: Under, answer: Answer, number: int, stream: Any) -> Under | None:
        """What follows from an answer: the trial goes on, or has ended."""
        name = now.trial.user_attrs["folder"]
        if isinstance(answer, Gone):
            self._ends[name] = self._ends.get(name, 0) + 1
            if self._ends[name] < _ENDS:
                self._again(now.trial, now.params, name)
                return None
            answer = EsrlError(f"its process has ended {_ENDS} times ({answer.why})")
        if isinstance(answer, EsrlError):  # as values with which nothing is finite
            if not self.done() and now.params == self.start:
                raise answer  # not even the defaults can be trained
            self._tell(now, self.states.FAIL, f"failed: {answer}", None, number, stream)
            return None
        for place, score in answer.scores:
            now = now._replace(score=score)
            if place:
                now.trial.report(score, place)
                if place < self.recipe.num_evals and now.trial.should_prune():
                    self._tell(now, self.states.PRUNED, f"return {score:.1f}, given up", answer, number, stream)
                    return None
        if answer.stopped:
            self._again(now.trial, now.params, name)
            return None
        if not answer.over:
            return now
        sound = math.isfinite(now.score)
        state = self.states.COMPLETE if sound else self.states.FAIL
        said = f"return {now.score:.1f}" if sound else "failed: no finite return"
        self._tell(now, state, said, answer, number, stream)
        return None

    def _tell(self, now: Under, state: Any, said: str, last: Step | None, number: int, stream: Any) -> None:
        """Tells the study, and who looks on, how a trial has ended."""
        trial, sound = now.trial, math.isfinite(now.score) and last is not None
        trial.set_user_attr("last", now.score if sound else None)
        if last is not None:
            trial.set_user_attr("seconds", last.seconds)
        trial.set_user_attr("used", now.params)
        self.study.tell(trial, now.score if state == self.states.COMPLETE else None, state=state)
        took = "" if last is None else f"  ({last.seconds:.0f} s)"
        print(f"[{len(self.done())}/{number}] {said}  {options_text(now.params)}{took}", file=stream, flush=True)

    def _suggested(self, trial: Any) -> dict[str, Any]:
        """The values of a trial."""
        found = {}
        for name, space in self.space.items():
            if isinstance(space, list):
                found[name] = trial.suggest_categorical(name, space)
            else:
                found[name] = _short(trial.suggest_float(name, space["low"], space["high"], log=True))
        return found

    def done(self) -> list[Any]:
        """The trials that came to an end of their own, in their order."""
        every = self.study.get_trials(deepcopy=False)
        # One whose process was killed before the study was told of its end is made once more.
        replaced = {trial.user_attrs.get("instead") for trial in every}
        return [trial for trial in every if "used" in trial.user_attrs and trial.number not in replaced]

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
            seconds = trial.user_attrs.get("seconds")
            if seconds is None:  # it failed, or an older esrl made it
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
