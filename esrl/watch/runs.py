"""The runs below some folders: where they are, what each one does, how far it is, and what it reached."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from esrl.core.errors import EsrlError, reason_of
from esrl.training.files import open_plain
from esrl.training.films import FOLDER, NAME, read_films
from esrl.training.recipe_file import read_table
from esrl.training.status import COMPILING, FINISHED, STOPPED, TRAINING, is_held, read_status
from esrl.watch.table import Score, Table

_DEPTH = 6  # folders below a given one in which runs are looked for
_FOLDERS = 20_000  # that are looked into
_MOST = 2_000  # runs that are shown
_EPISODE = re.compile(r"episode\.(html|mp4|gif)")
_LOOK = 0.5  # seconds between two looks at the disk
_FIND = 2.0  # seconds between two searches for runs
_LONGEST = 1 << 16  # bytes of a recipe at most
_TEXT = 300  # characters of a name at most
_KEYS = (
    "key", "name", "env", "agent", "seed", "group", "state", "progress", "seconds_left", "sentence", "updated", "began",
    "rows", "generation", "env_steps", "seconds", "env_steps_per_second", "start", "last", "last_std", "best",
    "best_generation", "films", "wrong",
)  # fmt: skip


def find_runs(folder: Path) -> Iterator[Path]:
    """The folders of runs in a folder, or the folder itself. No link below it is followed.

    Example:
      >>> (tmp_path / "sweep" / "first").mkdir(parents=True)
      >>> _ = (tmp_path / "sweep" / "first" / "recipe.toml").write_text("seed = 0")
      >>> [run.name for run in find_runs(tmp_path)]
      ['first']
    """
    waiting, seen = [(folder, 0)], 0
    while waiting and seen < _FOLDERS:
        path, depth = waiting.pop()
        seen += 1
        try:
            with os.scandir(path) as entries:
                there = sorted(entries, key=lambda entry: entry.name)
        except OSError:  # gone, or another user's
            continue
        if any(entry.name in ("recipe.toml", "metrics.jsonl") and _is_file(entry) for entry in there):
            yield path
        elif depth < _DEPTH:
            below = [Path(entry.path) for entry in there if not entry.name.startswith(".") and _is_folder(entry)]
            waiting += [(each, depth + 1) for each in reversed(below)]


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file(follow_symlinks=False)
    except OSError:
        return False


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False


class WatchedRun:
    """One run.

    Attributes:
      key: names it in addresses. path: of its folder. name: for people. table: its metrics.
      changed: when its summary was last another, in the numbers of `Runs`.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self.key = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:16]
        self.table = Table(path / "metrics.jsonl")
        self.changed = 0
        self.summary: dict[str, Any] = {}
        self._best: tuple[list[Score], int, Score | None] = ([], 0, None)  # the best of so many scores
        self._recipe_seen: Any = None
        self._recipe: dict[str, Any] = {}
        self._wrong = ""

    def look(self) -> bool:
        """Reads what is new. Returns whether the summary is another."""
        try:
            self.table.refresh()
            self._read_recipe()
            new = self._summary()
        except (ArithmeticError, LookupError, TypeError, ValueError, RecursionError) as error:
            # What nobody thought of in a stranger's folder: no other run is lost by it.
            empty = dict.fromkeys(_KEYS) | {"state": STOPPED, "env": "", "agent": "", "rows": 0, "films": []}
            new = empty | {
                "key": self.key,
                "name": self.name[-_TEXT:],
                "wrong": f"its files are odd: {reason_of(error)}",
            }
        changed = new != self.summary
        self.summary = new
        return changed

    def recipe_text(self) -> str:
        """The recipe as it is written, or what is wrong with it."""
        try:
            with os.fdopen(open_plain(self.path / "recipe.toml"), "rb") as file:
                return file.read(_LONGEST).decode(errors="replace")
        except FileNotFoundError:
            return "there is no recipe.toml"
        except (OSError, EsrlError) as error:
            return str(error)

    def open_film(self, name: str) -> int:
        """A descriptor of one of the run's films, or of the episode that `esrl render` wrote.

        Raises:
          OSError, EsrlError: it is none of these, or cannot be opened.
        """
        if _EPISODE.fullmatch(name):
            return open_plain(self.path / name)
        if not NAME.fullmatch(name) or (self.path / FOLDER).is_symlink():
            raise EsrlError(f"{name} is no film of this run")
        return open_plain(self.path / FOLDER / name)

    def _read_recipe(self) -> None:
        path = self.path / "recipe.toml"
        try:
            found = path.lstat()
            seen = (found.st_ino, found.st_size, found.st_mtime_ns)
        except OSError:
            seen = None
        if seen == self._recipe_seen and (seen is not None or self._wrong):
            return
        self._recipe_seen, self._recipe, self._wrong = seen, {}, ""
        try:
            self._recipe = read_table(path)
        except EsrlError as error:
            self._wrong = str(error)

    def _summary(self) -> dict[str, Any]:
        recipe, table, last = self._recipe, self.table, self.table.last
        status = read_status(self.path)
        scores = table.scores
        best = self._best_score()
        return {
            "key": self.key,
            "name": self.name[-_TEXT:],
            "env": _text(recipe.get("env")),
            "agent": _text(recipe.get("agent", "eggroll" if recipe else None)),
            "seed": recipe["seed"] if type(recipe.get("seed")) is int else None,
            "group": self._group(),
            **self._state(status),
            "began": status.get("began") or self._began(),
            "rows": table.rows,
            **{name: last.get(name) for name in ("generation", "env_steps", "seconds", "env_steps_per_second")},
            "start": scores[0].mean if scores and scores[0].generation == 0 else None,
            "last": scores[-1].mean if scores else None,
            "last_std": scores[-1].std if scores else None,
            "best": None if best is None else best.mean,
            "best_generation": None if best is None else best.generation,
            "films": self._films(),
            "wrong": self._wrong or table.sentence,
        }

    def _best_score(self) -> Score | None:
        """The highest score, the first of equal ones."""
        scores, (owner, looked, best) = self.table.scores, self._best
        if owner is not scores:  # the table was read anew
            looked, best = 0, None
        for score in scores[looked:]:
            best = score if best is None or score.mean > best.mean else best
        self._best = scores, len(scores), best
        return best

    def _state(self, status: dict[str, Any]) -> dict[str, Any]:
        keys = ("state", "progress", "seconds_left", "sentence", "updated")
        if status:
            return {key: status.get(key) for key in keys}
        # A run of an esrl that wrote no status.
        progress = self._progress()
        held = is_held(self.path / "checkpoints" / ".lock")
        working = TRAINING if self.table.rows else COMPILING
        state = working if held else FINISHED if progress is not None and progress >= 1 else STOPPED
        return {"state": state, "progress": progress, "seconds_left": None, "sentence": None, "updated": None}

    def _progress(self) -> float | None:
        last, shares = self.table.last, []
        for budget, spent in (
            ("env_steps", "env_steps"),
            ("generations", "generation"),
            ("seconds", "seconds_training"),
        ):
            whole, now = self._recipe.get(budget), last.get(spent)
            if isinstance(whole, (int, float)) and whole > 0 and now is not None:
                shares.append(now / whole)
        return min(max(shares), 1.0) if shares else None

    def _group(self) -> str | None:
        """The same for runs whose recipes differ in their seeds alone."""
        if not self._recipe:
            return None
        rest = {k: v for k, v in self._recipe.items() if k not in ("seed", "eval_seed", "films", "keep")}
        return hashlib.sha256(json.dumps(rest, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def _began(self) -> float | None:
        for name in ("recipe.toml", "metrics.jsonl"):
            try:
                return round((self.path / name).lstat().st_mtime, 1)
            except OSError:
                continue
        return None

    def _films(self) -> list[dict[str, Any]]:
        films = [{"name": name, **film} for name, film in read_films(self.path / FOLDER).items()]
        for form in ("html", "mp4", "gif"):
            try:
                found = (self.path / f"episode.{form}").lstat()
            except OSError:
                continue
            if stat.S_ISREG(found.st_mode):
                films.append({"name": f"episode.{form}", "at": round(found.st_mtime, 1)})
        return films


def _text(value: Any) -> str:
    return value[:_TEXT] if isinstance(value, str) else ""


class Runs:
    """All runs below some folders, looked at when someone asks.

    Attributes:
      folders: where they are looked for.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = list(folders)
        self._runs: dict[str, WatchedRun] = {}
        self._lock = threading.Lock()
        self._number = 0
        self._looked = self._found = -1e9

    def get(self, key: str) -> WatchedRun | None:
        """The run of a key."""
        return self._runs.get(key)

    def since(self, number: int) -> dict[str, Any]:
        """What changed since an earlier answer, whose `number` it had; 0 for everything.

        Returns `number` of this answer, `keys` of all runs, newest first, `runs` that changed, and `folders`.
        """
        with self._lock:
            now = time.monotonic()
            if now - self._found >= _FIND:
                self._find()
                self._found = time.monotonic()
            if now - self._looked >= _LOOK:
                self._look()
                self._looked = time.monotonic()
            if number > self._number:  # of another server
                number = 0
            order = sorted(self._runs.values(), key=lambda run: (-(run.summary.get("began") or 0), run.name))
            return {
                "number": self._number,
                "keys": [run.key for run in order],
                "runs": [run.summary for run in order if run.changed > number],
                "folders": [str(folder) for folder in self.folders],
            }

    def _find(self) -> None:
        there: dict[str, WatchedRun] = {}
        for folder in self.folders:
            for path in find_runs(folder):
                name = path.name if path == folder else str(path.relative_to(folder))
                if len(self.folders) > 1 and path != folder:
                    name = f"{folder.name}/{name}"
                run = WatchedRun(path, name.encode(errors="replace").decode())
                if len(there) < _MOST:
                    there.setdefault(run.key, self._runs.get(run.key, run))
        self._runs = there

    def _look(self) -> None:
        number = self._number + 1
        for run in self._runs.values():
            if run.look():
                run.changed = self._number = number
