"""A run's folder: recipe, metrics as JSON lines and TensorBoard events, checkpoints, learning curve.

Events need tensorboardX and the curve matplotlib, which `esrl[logs]` installs; without them a run does without.
"""

from __future__ import annotations

import contextlib
import os
import platform
import tomllib
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tomli_w

from esrl.core.options import FORMER_DEFAULTS, todays
from esrl.core.types import EsrlError, notice
from esrl.training.checkpoint import Checkpoints
from esrl.training.files import clear_parts, open_plain, read_bytes, replace_bytes, replacing
from esrl.training.logs import Events, Metrics, Row
from esrl.training.stopping import protected
from esrl.training.suite_defaults import ES
from esrl.training.trust import remember

_RECIPE = 1 << 16  # bytes of a recipe at most
_DOTS = 200  # dots of a line at most: what Python's reader takes for a dotted key grows with the square of its parts
_DRAWN = 20_000  # rows of a learning curve, beside those with a score


class RunFolder:
    """The files of one run.

    `recipe.toml` says how to run it again, `metrics.jsonl` has a line for each generation, `checkpoints/` has states.
    With `esrl[logs]`, `curve.png` is the learning curve, and TensorBoard reads the folder as it is.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = at(path)
        home = self.path.absolute()  # the program may go to another working folder while it trains
        self.checkpoints = Checkpoints(home / "checkpoints")
        self._metrics = Metrics(home / "metrics.jsonl")
        self.recipe = home / "recipe.toml"
        self._curve = home / "curve.png"
        self._opened = False
        self._events: Events | None = None
        self._lock: Any = None

    @classmethod
    def create(cls, path: str | os.PathLike[str], recipe: dict[str, Any]) -> RunFolder:
        """A new folder with its recipe.

        Raises:
          EsrlError: the path exists and is not an empty folder, or cannot be written.
        """
        run = cls(path)
        if run.path.exists() and (not run.path.is_dir() or _holds_files(run)):
            kind = "holds files" if run.path.is_dir() else "is a file"
            go_on = f"; to go on with the run in it: --resume {run.path}" if run.recipe.exists() else ""
            raise EsrlError(f"output folder {run.path} exists and {kind}; choose another --out{go_on}")
        text = tomli_w.dumps(recipe)  # before there is a folder, which would stand in the way of the next try
        try:
            run.checkpoints.folder.mkdir(parents=True, exist_ok=True)
            replace_bytes(run.recipe, text.encode())
        except OSError as error:
            raise EsrlError(f"output folder {run.path} cannot be written: {error.strerror or error}") from error
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
            why = "has no recipe.toml" if run.path.is_dir() else "does not exist"
            raise EsrlError(f"{run.path} is not the folder of a run: it {why}")
        folder = run.checkpoints.folder
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            what = "a link, and none is followed in a run's folder" if folder.is_symlink() else "no folder"
            raise EsrlError(f"{folder} is {what}, but must be the folder of the checkpoints; put that there")
        return run

    def hold(self) -> None:
        """Keeps other processes from training in this folder, until `release` or the end of this process, of any kind.

        Raises:
          EsrlError: another process holds it.
        """
        if self._lock is not None:
            return
        try:
            import fcntl
        except ImportError:  # Windows
            return
        path = self.checkpoints.folder / ".lock"
        with contextlib.suppress(OSError):  # what cannot be written says so when a checkpoint is to be
            path.parent.mkdir(exist_ok=True)
        while True:
            try:
                file = open_plain(path, os.O_RDWR | os.O_CREAT)
            except OSError:  # what cannot be written says so when a checkpoint is to be
                return
            try:
                # A lock of the process, not of the file: worker processes do not inherit it.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                who = os.read(file, 200).decode(errors="replace").strip()
                os.close(file)
                raise EsrlError(
                    f"{self.path} is being trained by another process{f' ({who})' if who else ''}; wait for it, or"
                    " stop it"
                ) from None
            except OSError:  # a file system without locks
                os.close(file)
                return
            if path.exists() and os.path.samestat(path.stat(), os.fstat(file)):
                break
            os.close(file)  # whoever held it has taken the file away since it was opened
        with contextlib.suppress(OSError):  # a full disk; who holds it is a courtesy
            os.ftruncate(file, 0)
            os.write(file, f"process {os.getpid()} on {platform.node()}\n".encode())
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
            with self._said():
                os.replace(self._metrics.path, aside)
            done = f"the rows of {last['generation']} generations are in {aside.name}"
            notice(f"{self.path} has no checkpoint, and begins anew; {done}")

    def go_on(self, recipe: dict[str, Any]) -> None:
        """Compares the run's recipe with that of the agent which is to go on with it, and writes down what may change.

        Raises:
          EsrlError: they differ in what shapes the training, which the checkpoint holds: new values would be ignored;
            or another process trains in the folder.
        """
        self.hold()
        try:
            self._go_on(recipe)
        except EsrlError:
            self.release()
            raise

    def _go_on(self, recipe: dict[str, Any]) -> None:
        old = read_table(self.recipe)
        if not all(isinstance(old.get(table, {}), dict) for table in ("policy", "options")):
            raise EsrlError(f"{self.recipe} cannot be read as a recipe: [policy] and [options] have to be tables")
        old = with_former_defaults(todays(old))
        fixed = [text for name in ("env", "agent", "seed") if (text := _differs(name, old, recipe))]
        fixed += [
            text
            for table in ("policy", "options")
            for name in dict.fromkeys([*old.get(table, {}), *recipe[table]])
            if (text := _differs(name, old.get(table, {}), recipe[table], optional=table == "policy"))
        ]
        if fixed:
            raise EsrlError(
                f"{self.path} goes on as it began, but {'; '.join(fixed)}. Give the run's own values, or another out:"
                " esrl.network(..., params=...) begins a new run from trained parameters"
            )
        changed = [
            f"{name} {recipe.get(name, 'its default')} (was {old.get(name, 'its default')})"
            for name in dict.fromkeys([*old, *recipe])
            if name not in ("env", "agent", "seed", "policy", "options") and old.get(name) != recipe.get(name)
        ]
        if changed:
            new = dict(recipe)
            new.update({name: old[name] for name in ("env", "policy", "options") if name in old})
            try:
                replace_bytes(self.recipe, tomli_w.dumps(new).encode())
            except OSError as error:
                raise EsrlError(f"{self.recipe} cannot be written: {error.strerror or error}") from error
            notice(f"{self.path} goes on with {', '.join(changed)}")

    def rows(self) -> list[Row]:
        """All rows written so far; a last line that a kill cut short is left out."""
        return self._metrics.rows()

    def last_row(self) -> Row:
        """The last row; empty where there is none. Reads the end of the file alone."""
        return self._metrics.last()

    def open(self, generation: int) -> Row | None:
        """Opens the logs to go on after a generation: what was written beyond it is cut off.

        Returns the last row that is kept, or None.
        """
        last = self._metrics.open(generation)
        self._opened = True
        clear_parts(self.path)
        clear_parts(self.checkpoints.folder)
        with contextlib.suppress(ImportError), self._said():
            self._events = Events(self.recipe.parent, generation)
        return last

    def write(self, row: Row) -> None:
        """Adds a generation's row to the JSON lines and the events.

        Raises:
          EsrlError: they cannot be written.
        """
        with protected(), self._said():
            self._metrics.write(row)
            if self._events is not None:
                self._events.write(row)

    @contextlib.contextmanager
    def _said(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise EsrlError(f"{self.path} cannot be written: {error.strerror or error}") from error

    def close(self) -> None:
        """Closes the logs and draws the learning curve.

        Raises:
          EsrlError: the curve cannot be written.
        """
        if not self._opened:
            return
        with protected(), self._said():
            self._close()

    def _close(self) -> None:
        self._metrics.close()
        events, self._opened, self._events = self._events, False, None
        if events is not None:
            events.close()
        with contextlib.suppress(ImportError):
            draw_curve(self._metrics.thinned(_DRAWN, "eval_return_mean"), self._curve, self.path.name)


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


def read_table(path: Path) -> dict[str, Any]:
    """A recipe as the tables that its file holds.

    Raises:
      EsrlError: there is none, or it is no TOML, too long, or nested too deeply.
    """
    try:
        text = read_bytes(path, _RECIPE).decode()
        if any(line.count(".") > _DOTS for line in text.splitlines()):
            raise EsrlError(f"{path} cannot be read as a recipe: a line has over {_DOTS} dots")
        return tomllib.loads(text)
    except FileNotFoundError as error:
        raise EsrlError(f"there is no recipe {path}") from error
    except OSError as error:
        raise EsrlError(f"{path} cannot be read as a recipe: {error.strerror or error}") from error
    except RecursionError as error:
        raise EsrlError(f"{path} cannot be read as a recipe: it is nested too deeply") from error
    except ValueError as error:  # TOML's own errors, other bytes than UTF-8, a number of thousands of digits
        raise EsrlError(f"{path} cannot be read as a recipe: {error}") from error


def with_former_defaults(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe in a run's folder; that of an older run with the defaults which it had then."""
    options = recipe.get("options", {})
    if recipe.get("agent", "eggroll") not in ES or "averaging" in options:
        return recipe
    own = dict(FORMER_DEFAULTS)
    if options.get("optimizer") == "sgd":  # whose rate was that of the others
        own["learning_rate"] = 0.02
    policy = recipe.get("policy", {})
    linear = {"skip": False} if policy.get("network", "mlp") == "mlp" else {}
    return recipe | {"policy": linear | policy, "options": own | options}


def _differs(name: str, old: dict[str, Any], new: dict[str, Any], optional: bool = False) -> str:
    """What two tables say of a value, where they differ; a value that `optional` tables lack is not compared."""
    if optional and not (name in old and name in new):
        return ""
    before, now = old.get(name), new.get(name)
    same = before == now or (name == "env" and _same_env(str(before), str(now)))
    return "" if same else f"{name}: the run has {_shown(before)}, you gave {_shown(now)}"


def _shown(value: Any) -> str:
    return "its default" if value is None else repr(value)


def _same_env(one: str, other: str) -> bool:
    """Whether two texts may name one class: with its file or module, or alone, as older recipes have it."""
    one, other = one.rpartition(":")[2], other.rpartition(":")[2]
    if "?" in one and "?" in other:
        return one == other
    return one.partition("?")[0].rpartition(".")[2] == other.partition("?")[0].rpartition(".")[2]


def draw_curve(rows: list[Row], path: Path, title: str) -> None:
    """The learning curve of a run as a PNG: returns of the population and of the unperturbed parameters over steps."""
    rows = [row for row in rows if row.get("env_steps") is not None and row.get("return_mean") is not None]
    if not rows:
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    steps = [row["env_steps"] for row in rows]
    axes.plot(steps, [row["return_mean"] for row in rows], color="#9aa7b8", lw=1, label="population mean")
    scored = [(row["env_steps"], row["eval_return_mean"]) for row in rows if row.get("eval_return_mean") is not None]
    if scored:
        axes.plot(*zip(*scored, strict=True), color="#d1495b", lw=2, marker="o", ms=3, label="unperturbed, held-out")
    axes.set(xlabel="environment steps", ylabel="return", title=title)
    axes.legend(frameon=False)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    with replacing(path) as part:
        figure.savefig(part, dpi=120)
