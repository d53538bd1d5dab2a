"""A run's folder: recipe, metrics as JSON lines and TensorBoard events, checkpoints, learning curve.

Events need tensorboardX and the curve matplotlib, which `esrl[logs]` installs; without them a run does without.
"""

from __future__ import annotations

import contextlib
import os
import time
import weakref
from collections.abc import Iterable, Set
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from esrl.core.types import EsrlError, notice
from esrl.training import stored_spaces
from esrl.training.checkpoint import Checkpoints
from esrl.training.curves import MOST, draw_run, figure
from esrl.training.events import Events
from esrl.training.files import clear_parts, read_bytes, replace_bytes, replacing, writing
from esrl.training.locks import locked
from esrl.training.logs import Metrics, Row
from esrl.training.recipe_file import LONGEST, read_table
from esrl.training.recipe_table import MADE, differences, with_former_defaults
from esrl.training.status import FILE, Status
from esrl.training.stopping import protected
from esrl.training.trust import remember

_DRAWN = 20_000  # rows of a learning curve, beside those with a score
_SHARE = 20  # seconds between two drawings, in multiples of what the last one took
_FIRST_DRAWING = 1.0  # seconds that the first is taken for: it imports matplotlib


class RunFolder:
    """The files of one run.

    `recipe.toml` says how to run it again, `spaces.json` what acting needs of the environment, `metrics.jsonl` has a
    line for each generation, `checkpoints/` has states.
    With `esrl[logs]`, `curve.png` is the learning curve, and TensorBoard reads the folder as it is.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = at(path)
        home = self.path.absolute()  # the program may go to another working folder while it trains
        self.checkpoints = Checkpoints(home / "checkpoints")
        self._metrics = Metrics(home / "metrics.jsonl")
        self.recipe = home / "recipe.toml"
        self.spaces = home / stored_spaces.NAME
        self.status = Status(home / FILE)
        self.films = home / "films"
        self._curve = home / "curve.png"
        self._drawn, self._drawing = time.monotonic(), _FIRST_DRAWING
        self._opened = False
        self._events: Events | None = None
        self._lock: Any = None

    @classmethod
    def create(cls, path: str | os.PathLike[str], recipe: dict[str, Any], env: Any) -> RunFolder:
        """A new folder with its recipe and the spaces of its environment.

        Raises:
          EsrlError: the path exists and is not an empty folder, or cannot be written.
        """
        check_new(path)
        run = cls(path)
        text = tomli_w.dumps(recipe)  # before there is a folder, which would stand in the way of the next try
        with writing(f"output folder {run.path}"):
            run.checkpoints.folder.mkdir(parents=True, exist_ok=True)
            replace_bytes(run.recipe, text.encode())
            run._keep_spaces(env)
        remember(recipe)  # who trains with code has named it
        return run

    @classmethod
    def existing(cls, path: str | os.PathLike[str]) -> RunFolder:
        """The folder of a run that was started before.

        Raises:
          EsrlError: there is none, or its checkpoints are elsewhere, by a link.
        """
        run = cls(path)
        if not run.recipe.is_file():
            why = "is a file" if run.path.is_file() else "does not exist"
            why = "has no recipe.toml" if run.path.is_dir() else why
            raise EsrlError(f"{run.path} is not the folder of a run: it {why}")
        folder = run.checkpoints.folder
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            what = "a link, and none is followed in a run's folder" if folder.is_symlink() else "no folder"
            raise EsrlError(f"{folder} is {what}, but must be the folder of the checkpoints; put that there")
        return run

    def _keep_spaces(self, env: Any) -> None:
        """Writes the spaces of the environment, where they can be and are not yet."""
        text = None if os.path.lexists(self.spaces) else stored_spaces.stored(env)
        if text is not None:
            with writing(self.spaces):
                replace_bytes(self.spaces, text)

    def hold(self) -> None:
        """Keeps other processes from training in this folder, until `release` or the end of this process, of any kind.

        Raises:
          EsrlError: another process holds it.
        """
        if self._lock is not None:
            return
        path = self.checkpoints.folder / ".lock"
        with contextlib.suppress(OSError):  # what cannot be written says so when a checkpoint is to be
            path.parent.mkdir(exist_ok=True)
            if (file := locked(path, f"{self.path} is being trained")) is not None:
                self._lock = weakref.finalize(self, os.close, file)  # also where this is dropped and never trained

    def release(self) -> None:
        """Lets other processes train in this folder."""
        if self._lock is not None:
            with contextlib.suppress(OSError):
                (self.checkpoints.folder / ".lock").unlink()
            self._lock()
        self._lock = None

    def begin_anew(self) -> None:
        """Before a run begins: rows without a checkpoint to go on from are set aside, not lost."""
        if (last := self.last_row()) and self._metrics.path.exists():
            aside = self._metrics.path.with_name("metrics.before.jsonl")
            with writing(self.path):
                os.replace(self._metrics.path, aside)
            done = f"the rows of {last['generation']} generations are in {aside.name}"
            notice(f"{self.path} has no checkpoint, and begins anew; {done}")

    def go_on(self, recipe: dict[str, Any], env: Any, left_out: Set[str] = frozenset()) -> None:
        """Compares the run's recipe with that of the agent which is to go on with it, and writes down what may change.

        Args:
          recipe: of that agent. env: its environment.
          left_out: what has its default in it; a recipe that does not say it has that as well.

        Raises:
          EsrlError: they differ in what shapes the training, which the checkpoint holds: new values would be ignored;
            or another process trains in the folder.
        """
        self.hold()
        try:
            self._go_on(recipe, left_out)
            self._keep_spaces(env)  # an older esrl did not
        except EsrlError:
            self.release()
            raise

    def _go_on(self, recipe: dict[str, Any], left_out: Set[str]) -> None:
        old = with_former_defaults(read_table(self.recipe))
        fixed, changed = differences(old, recipe, left_out)
        if fixed:
            raise EsrlError(
                f"{self.path} goes on as it began, but {'; '.join(fixed)}. Give the run's own values, or another out:"
                " esrl.network(..., params=...) begins a new run from trained parameters"
            )
        if changed:
            new = dict(recipe)
            new.update({name: old[name] for name in ("env", "policy", "options", MADE) if name in old})
            with writing(self.recipe):
                replace_bytes(self.recipe, tomli_w.dumps(new).encode())
            notice(f"{self.path} goes on with {', '.join(changed)}")

    def sizes(self, names: Iterable[str]) -> dict[str, Any]:
        """The sizes among these that the run's recipe has: of the blocks that it is played in."""
        found = read_table(self.recipe)
        return {name: found[name] for name in names if isinstance(found.get(name), int)}

    def last_row(self) -> Row:
        """The last row; empty where there is none. Reads the end of the file alone."""
        return self._metrics.last()

    def rows(self) -> list[Row]:
        """The first row and the last, those with a score, and about a thousand others, evenly spaced."""
        return self._metrics.thinned(MOST, "eval_return_mean")

    def say_if_best_is_gone(self) -> None:
        """Says so where another generation had a higher score than the best whose checkpoint was kept."""
        scores = {row["generation"]: score for row in self.rows() if (score := row.get("eval_return_mean")) is not None}
        best, kept = max(scores, key=lambda generation: scores[generation], default=None), self.checkpoints.best()
        if best is not None and kept in scores and scores[best] > scores[kept]:
            notice(
                f"the best evaluation was of generation {best}, whose checkpoint was not kept; this is generation"
                f" {kept}, the best of those that were (train with keep=best)"
            )

    def open(self, generation: int) -> Row | None:
        """Opens the logs to go on after a generation: what was written beyond it is cut off.

        Returns the last row that is kept, or None.
        """
        last = self._metrics.open(generation)
        self._opened = True
        clear_parts(self.path)
        clear_parts(self.checkpoints.folder)
        with contextlib.suppress(ImportError), writing(self.path):
            self._events = Events(self.recipe.parent, generation, int((last or {}).get("env_steps") or 0))
            if not generation:
                self._events.text("recipe", f"```toml\n{read_bytes(self.recipe, LONGEST).decode()}\n```")
        return last

    def write(self, row: Row, fitness: np.ndarray | None = None) -> None:
        """Adds a generation's row to the JSON lines and the events; to these the members' fitness as well.

        Raises:
          EsrlError: they cannot be written.
        """
        with protected(), writing(self.path):
            self._metrics.write(row)
            if self._events is not None:
                self._events.write(row, fitness)

    def film(self, gif: bytes, env_steps: int) -> None:
        """Adds a film of the policy to the events."""
        with protected(), contextlib.suppress(OSError):  # what cannot be written says so when a row is to be
            if self._events is not None:
                self._events.film("eval/film", gif, env_steps)

    def redraw(self) -> None:
        """Draws the learning curve, unless that takes more than a twentieth of the time since it was drawn last."""
        begun = time.monotonic()
        if not self._opened or begun - self._drawn < _SHARE * self._drawing:
            return
        with contextlib.suppress(OSError):  # what cannot be written says so when a row is to be
            self._draw()
        self._drawn = time.monotonic()
        self._drawing = self._drawn - begun

    def _draw(self) -> None:
        with contextlib.suppress(ImportError):
            import matplotlib  # noqa: F401

            draw_curve(self._metrics.thinned(_DRAWN, "eval_return_mean"), self._curve, self.path.name)

    def close(self) -> None:
        """Closes the logs and draws the learning curve.

        Raises:
          EsrlError: the curve cannot be written.
        """
        if not self._opened:
            return
        with protected(), writing(self.path):
            self._close()

    def _close(self) -> None:
        self._metrics.close()
        events, self._opened, self._events = self._events, False, None
        if events is not None:
            events.close()
        self._draw()


def check_new(path: str | os.PathLike[str]) -> None:
    """Raises an EsrlError where a new run cannot be put: a file, or a folder that holds files."""
    run = RunFolder(path)
    if run.path.exists() and (not run.path.is_dir() or _holds_files(run)):
        kind = "holds files" if run.path.is_dir() else "is a file"
        go_on = f"; to go on with the run in it: --resume {run.path}" if run.recipe.exists() else ""
        raise EsrlError(f"output folder {run.path} exists and {kind}; choose another{go_on}")


def _holds_files(run: RunFolder) -> bool:
    """Whether a folder holds anything but what a run leaves that was killed before it had a recipe."""
    try:
        clear_parts(run.path)
        there = [path.name for path in run.path.iterdir()]
        return there not in ([], ["checkpoints"]) or (bool(there) and any(run.checkpoints.folder.iterdir()))
    except OSError:
        return True


def at(path: str | os.PathLike[str]) -> Path:
    """A path with ~ as the home folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # ~someone of whom there is no home
        raise EsrlError(f"{path}: {error}") from error


def draw_curve(rows: list[Row], path: Path, title: str) -> None:
    """The learning curve of a run as a PNG: returns of the population and of the unperturbed parameters over steps."""
    rows = [row for row in rows if row.get("env_steps") is not None and row.get("return_mean") is not None]
    if not rows:
        return
    drawn = figure(lambda ax: draw_run(ax, rows, title))
    with replacing(path) as part:
        drawn.savefig(part, dpi=120)
