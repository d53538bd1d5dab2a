"""Trackers of experiments beside a run's own files: Weights & Biases, MLflow, Trackio, or an object of the user's.

A tracker gets what `metrics.jsonl` gets, by the same grouped names as TensorBoard, over environment steps. It is a
courtesy: what it raises is said once, and the run goes on.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from esrl.core.errors import EsrlError, nearest, notice, reason_of
from esrl.core.extras import import_extra

_EVALUATION = ("eval_", "start_")
_GROUPS = {
    "time": ("seconds", "env_steps_per_second", "padded_steps", "env_steps"),
    "population": (
        "fitness", "sigma", "agreement", "tied", "signal", "nonfinite", "noise_floats", "dense_floats", "members",
        "population", "generation_steps",
    ),
    "losses": ("loss", "entropy", "kl", "approx_kl", "clip_fraction", "explained_variance"),
}  # fmt: skip


def tag(name: str) -> str:
    """A metric's name in its group: eval/, train/, population/, time/ or losses/.

    Example:
      >>> tag("eval_return_mean"), tag("fitness_max"), tag("seconds_compile"), tag("return_mean")
      ('eval/return_mean', 'population/fitness_max', 'time/seconds_compile', 'train/return_mean')
    """
    for prefix in _EVALUATION:
        if name.startswith(prefix):
            return f"eval/{name.removeprefix('eval_')}"
    for group, starts in _GROUPS.items():
        if name.startswith(starts) or (group == "losses" and name.endswith("_loss")):
            return f"{group}/{name}"
    return f"train/{name}"


def grouped(row: dict[str, Any]) -> dict[str, float]:
    """The numbers of a row by their grouped names; what is not finite is left out."""
    numbers = {name: value for name, value in row.items() if isinstance(value, (int, float)) and name != "generation"}
    return {tag(name): value for name, value in numbers.items() if value == value and abs(value) != float("inf")}


@runtime_checkable
class Tracker(Protocol):
    """What `track=` takes beside a name: an object with these three methods."""

    def start(self, name: str, recipe: dict[str, Any], folder: Path | None) -> None:
        """The run begins: its name, its recipe as tables, its folder or None."""

    def log(self, values: dict[str, float], step: int) -> None:
        """A generation's numbers by their grouped names, at a number of environment steps."""

    def end(self, finished: bool) -> None:
        """The run ends: by its budget (finished), or by an interrupt or an error."""


class WandB:
    """Weights & Biases. Without an account: WANDB_MODE=offline."""

    def start(self, name: str, recipe: dict[str, Any], folder: Path | None) -> None:
        wandb = import_extra("wandb", "wandb", "--track wandb")
        place = {} if folder is None else {"dir": str(folder)}
        self._run = wandb.init(project="esrl", name=name, config=recipe, **place)

    def log(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def end(self, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


class MLflow:
    """MLflow, at MLFLOW_TRACKING_URI, or in a local database. A run that the caller has begun is the parent of this."""

    def start(self, name: str, recipe: dict[str, Any], folder: Path | None) -> None:
        self._mlflow = import_extra("mlflow", "mlflow", "--track mlflow")
        self._mlflow.set_experiment("esrl")
        self._run = self._mlflow.start_run(run_name=name, nested=self._mlflow.active_run() is not None)
        self._mlflow.log_params({key: str(value)[:500] for key, value in flat(recipe).items()})

    def log(self, values: dict[str, float], step: int) -> None:
        self._mlflow.log_metrics(values, step=step, run_id=self._run.info.run_id)

    def end(self, finished: bool) -> None:
        self._mlflow.end_run("FINISHED" if finished else "KILLED")


class Trackio:
    """Trackio, whose dashboard reads a local database."""

    def start(self, name: str, recipe: dict[str, Any], folder: Path | None) -> None:
        self._trackio = import_extra("trackio", "trackio", "--track trackio")
        self._trackio.init(project="esrl", name=name, config=flat(recipe))

    def log(self, values: dict[str, float], step: int) -> None:
        self._trackio.log(values, step=step)

    def end(self, finished: bool) -> None:
        self._trackio.finish()


TRACKERS: dict[str, Callable[[], Tracker]] = {"wandb": WandB, "mlflow": MLflow, "trackio": Trackio}


def flat(table: dict[str, Any], before: str = "") -> dict[str, Any]:
    """A recipe's tables as one, with dots in the names.

    Example:
      >>> flat({"env": "brax/hopper", "options": {"sigma": 0.1}})
      {'env': 'brax/hopper', 'options.sigma': 0.1}
    """
    found: dict[str, Any] = {}
    for key, value in table.items():
        found |= flat(value, f"{before}{key}.") if isinstance(value, dict) else {f"{before}{key}": value}
    return found


class Tracking:
    """A tracker that cannot stop a run.

    Args:
      track: a name of `TRACKERS`, or a `Tracker`.

    Raises:
      EsrlError: neither.
    """

    def __init__(self, track: Any) -> None:
        self._packaged = isinstance(track, str)
        if isinstance(track, str):
            if track not in TRACKERS:
                near = nearest(track, TRACKERS)
                raise EsrlError(f"track is {track!r}; yours is an object with start, log and end{near}")
            track = TRACKERS[track]()
        if not isinstance(track, Tracker):
            raise EsrlError(f"track is {track!r}, but must be {', '.join(TRACKERS)}, or an object with start, log, end")
        self._tracker, self._works = track, True

    def start(self, name: str, recipe: dict[str, Any], folder: Path | None) -> None:
        """Begins.

        Raises:
          EsrlError: its package is missing.
        """
        self._try(lambda: self._tracker.start(name, recipe, folder))

    def log(self, row: dict[str, Any]) -> None:
        """Hands a generation's row on."""
        self._try(lambda: self._tracker.log(grouped(row), int(row.get("env_steps") or 0)))

    def end(self, finished: bool) -> None:
        """Ends."""
        self._try(lambda: self._tracker.end(finished))

    def _try(self, call: Callable[[], Any]) -> None:
        if not self._works:
            return
        try:
            # Trackio and others print to standard output, which `--json` keeps for one object; what an object of the
            # user's prints is meant.
            with contextlib.redirect_stdout(sys.stderr) if self._packaged else contextlib.nullcontext():
                call()
        except EsrlError:
            raise
        except Exception as error:
            self._works = False
            with contextlib.suppress(Exception):
                notice(f"{type(self._tracker).__name__} failed ({reason_of(error)}); the run goes on without it")
