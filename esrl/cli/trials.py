"""A trial of a search: a run in a folder of its own, so that one which was stopped in the middle goes on from there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from esrl.algorithms.agent import Agent
from esrl.core.errors import EsrlError
from esrl.training.loop import Run, iterate
from esrl.training.recipe import Recipe, run_keys

FOLDER = "trials"  # in the folder of a search: those of its trials


class Step(NamedTuple):
    """A part of a trial, which ends with an evaluation, with the trial, or where it was asked to stop.

    Attributes:
      scores: held-out returns that were not told before, each with its place, 1 .. num_evals (0: at no new place).
      over: the trial's budget is used up. stopped: it was asked to stop; its folder has all of it.
      seconds: of the whole trial so far, of every process that has played it.
    """

    scores: list[tuple[int, float]]
    over: bool
    stopped: bool
    seconds: float


class Gone(NamedTuple):
    """A trial's process has ended, and why: in a few words."""

    why: str


Answer = Step | EsrlError | Gone


@runtime_checkable
class Players(Protocol):
    """Who plays trials, some at a time; each of them in a slot, by its number."""

    slots: int

    def begin(self, slot: int, params: dict[str, Any], folder: Path) -> None:
        """Begins a trial, or goes on with that of the folder; the first answer comes from `wait`."""

    def go_on(self, slot: int) -> None:
        """Goes on to the next evaluation, after an answer that was a step."""

    def rest(self, slot: int) -> None:
        """There is no trial for a slot: what it holds is free for others. Another trial may begin there later."""

    def wait(self) -> list[tuple[int, Answer]]:
        """What slots have answered; waits a little for that, or for as long as it takes."""

    def stop(self) -> None:
        """Asks all of them to stop after the generation under way. May be called again and again."""

    def close(self) -> None:
        """Ends them. What is under way is saved."""


class Player:
    """Plays one trial after the other in this process. Agents that differ in traced values alone are compiled once.

    Args:
      recipe: of all trials, but for what is searched. stopped: whether to stop, asked after each generation.
    """

    def __init__(self, recipe: Recipe, stopped: Callable[[], object]) -> None:
        self.recipe = recipe
        self._stopped = stopped
        self._agents: dict[str, Agent] = {}
        self._run: Run | None = None
        self._rows: Iterator[Any] = iter(())
        self._place, self._first, self._seconds = 0, True, 0.0

    def agent(self, options: dict[str, Any]) -> Agent:
        """The agent with these options: one for each, so that trials share what is compiled."""
        key = repr(sorted(options.items()))
        if key not in self._agents:
            self._agents[key] = self.recipe.override({}, None, options).build()
        return self._agents[key]

    def begin(self, params: dict[str, Any], folder: Path) -> None:
        """Begins a trial with these values, or goes on with the one in the folder.

        Raises:
          EsrlError: values that do not fit, or a folder that cannot be written or is of another run.
        """
        self.close()
        traced = {name: value for name, value in params.items() if name in self.agent({}).hyperparams}
        agent = self.agent({name: value for name, value in params.items() if name not in traced})
        keys = {name: getattr(self.recipe, name) for name in run_keys()} | {"films": False}
        resume = (folder / "recipe.toml").is_file()
        self._run = iterate(agent, hyperparams=traced, out=folder, resume=resume, **keys)
        self._rows = iter(self._run)
        self._place, self._first, self._seconds = 0, True, 0.0

    def advance(self) -> Step:
        """Trains up to the next evaluation.

        Raises:
          EsrlError: as training does; nothing is finite, or the environment has failed.
        """
        run = self._run
        if run is None or run.folder is None:
            raise EsrlError("no trial was begun; this is an error of esrl")
        for _, state, row in self._rows:
            # Of a trial that goes on, what was scored before is told once more: the trial is a new one to Optuna.
            rows = run.folder.rows() if self._first else [row]
            self._first, self._seconds = False, row["seconds"]
            scores = [self._placed(run, each) for each in rows if "eval_return_mean" in each]
            over = run.progress(state) >= 1
            if scores or over or self._stopped():
                stopped = bool(self._stopped()) and not over
                if over or stopped:
                    self.close()
                return Step(scores, over, stopped, self._seconds)
        return Step([], True, False, self._seconds)  # it has ended before its budget (stop_at_return)

    def close(self) -> None:
        """Ends the trial under way, if there is one, with everything saved."""
        rows, self._rows = self._rows, iter(())
        if hasattr(rows, "close"):
            rows.close()
        self._run = None

    def _placed(self, run: Run, row: dict[str, Any]) -> tuple[int, float]:
        used = run.budget.used(row["env_steps"], row["generation"], row["seconds_training"])
        place, score = round(used * self.recipe.num_evals), row["eval_return_mean"]
        score = math.nan if score is None else score  # JSON has no NaN
        if not math.isfinite(score) or place <= self._place:
            return 0, score
        self._place = place
        return place, score


class Here:
    """One trial at a time, in this process. See `Players`."""

    slots = 1

    def __init__(self, player: Player) -> None:
        self._player = player
        self._given: tuple[dict[str, Any], Path] | None = None
        self._waits = False

    def begin(self, slot: int, params: dict[str, Any], folder: Path) -> None:
        self._given, self._waits = (params, folder), True

    def go_on(self, slot: int) -> None:
        self._waits = True

    def rest(self, slot: int) -> None:
        pass

    def wait(self) -> list[tuple[int, Answer]]:
        given, self._given = self._given, None
        if not self._waits:
            return []
        self._waits = False
        try:
            if given is not None:
                self._player.begin(*given)
            return [(0, self._player.advance())]
        except EsrlError as error:
            return [(0, error)]

    def stop(self) -> None:
        pass  # the player looks for itself

    def close(self) -> None:
        self._player.close()
