"""The one resumable table: rows on disk that several processes extend, of which a kill loses only what is under way.

    store = Store(results("sweep") / "cartpole.csv", key=("settings", "seed"))
    with store.alone():                                  # other processes that would measure it are turned away
        for settings, seed in store.missing(wanted):     # what is there already is left out
            store.add(measure(settings, seed))           # all rows of a cell at once, or none of them
    rows = store.read()

A table is <name>.csv, and <name>.json beside it says where it comes from: `recipe` (what all rows share), `measured`
(date, commit, versions, machine and which keys, an entry for each process), `failed` (the error of each key that broke
off), `types` (of the columns) and `recipes` (what the hashes in a column `settings` stand for).

A finished cell is a file of its own in the folder <name>.parts, written whole. Whoever opens the table next moves it
into the CSV: the JSON is written first, then the CSV, then the part goes. Broken off anywhere and done again, that
neither loses nor doubles a key. Tables that older versions wrote as Parquet are read, and become a CSV when they grow.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import datetime
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esrl.training.recipe import Recipe

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("esrl", "jax", "jaxlib", "flax", "optax", "gymnasium", "brax", "numpy")
LATER = ("keep", "films", "on_env_error", "max_failed", "env_timeout", "broadcast", "close_at")
ORIGIN = ("recipe", "commit", "versions", "machine", "date")  # columns of a Parquet table that the JSON has now

Row = dict[str, Any]


def results(question: str) -> Path:
    """The folder of what was measured for a question: of "sweep" it is experiments/sweep/results."""
    return ROOT / "experiments" / question / "results"


def folder_name(env: str) -> str:
    """An environment's name as that of a file: "brax/hopper?backend=mjx" is brax-hopper."""
    return env.partition("?")[0].replace("/", "-")


def plain(recipe: Recipe) -> dict[str, Any]:
    """What decides a run, apart from its seed, as JSON holds it."""
    given = dataclasses.asdict(recipe).items()
    # Keys that recipes did not have when tables began are left out at their defaults, by which nothing was different.
    defaults = {f.name: f.default for f in dataclasses.fields(recipe) if f.name in LATER}
    fields = {k: v for k, v in given if v is not None and k != "seed" and v != defaults.get(k)}
    return json.loads(json.dumps(fields))


def digest(values: Any) -> str:
    """A short hash of what JSON can hold."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def written(path: Path, text: str) -> None:
    """Writes a text file whole: whoever reads it meanwhile sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    new.write_text(text)
    os.replace(new, path)


def read_rows(path: Path) -> list[Row]:
    """A CSV's rows, each value a text; none when there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def columns(rows: Sequence[Row]) -> list[str]:
    """The names of all rows' values: one that earlier rows do not have comes after the one that it follows."""
    names: list[str] = []
    for row in dict.fromkeys(map(tuple, rows)):
        place = 0
        for name in row:
            if name not in names:
                names.insert(place, name)
            place = names.index(name) + 1
    return names


def write_rows(path: Path, rows: list[Row]) -> None:
    """Writes a CSV whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    with new.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns(rows), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(new, path)


def result_names(folder: Path, ending: str, names: Sequence[str], out: Path | None) -> list[str]:
    """The names asked for, or those of every `<name><ending>` in a folder; leaves with a sentence where none is."""
    found = list(names) or sorted(path.name.removesuffix(ending) for path in folder.glob(f"*{ending}"))
    if not found:
        sys.exit(f"{folder} has no results")
    if out and len(found) > 1:
        sys.exit("--out is for one name; give it")
    return found


def todays(about: Row) -> Row:
    """A JSON's content with the recipe that it holds, if it is one, in the names that recipes have now."""
    from esrl.core.names import todays as renamed  # here: most of this module needs no JAX

    recipe = about.get("recipe", {})
    return about | {"recipe": renamed(recipe)} if {"agent", "options"} <= recipe.keys() else about


class Store:
    """A table on disk.

    Args:
      path: of the CSV.
      key: the columns that identify a measurement; one may have many rows, as a run has evaluations.
      settings: what all rows share. Parts with other settings stay where they are; `fits` tells whether the table's
        are these.
      order: a column of numbers by which the rows are sorted; as they come unless given.
    """

    def __init__(self, path: Path, key: Sequence[str], settings: dict[str, Any] | None = None, order: str = "") -> None:
        self.path, self.key, self.order = path, tuple(key), order
        self.settings = None if settings is None else json.loads(json.dumps(settings))
        self.parts = path.with_suffix(".parts")
        self._held = False

    # ---- what is there

    def about(self) -> dict[str, Any]:
        """The JSON's content; an empty one where there is no JSON."""
        file = self.path.with_suffix(".json")
        empty: dict[str, Any] = {"recipe": self.settings or {}, "measured": [], "failed": {}}
        return empty | todays(json.loads(file.read_text()) if file.exists() else self._older()[1])

    def fits(self) -> bool:
        """Whether the table, if there is one, was measured with these settings; without settings any table fits."""
        return self.settings is None or not self.path.exists() or self.about()["recipe"] == self.settings

    def read(self) -> list[Row]:
        """All rows, those in parts included; of a table without `types` every value is a text."""
        found = self._parts()  # before the CSV: a part that is moved meanwhile is in one of the two
        rows = self._typed() if self.path.exists() else self._older()[0]
        for _, part in found:
            rows = self._with(rows, part)
        return rows

    def missing(self, keys: Iterable[Any]) -> list[Any]:
        """Those of some keys that the table does not have yet, each once. A key of one column is its value."""
        done, wanted = {named(self.of(row)) for row in self.read()}, {named(key): key for key in keys}
        return [key for text, key in wanted.items() if text not in done]

    def of(self, row: Row) -> Any:
        """A row's key: a value, or of several columns a tuple."""
        return row[self.key[0]] if len(self.key) == 1 else tuple(row[name] for name in self.key)

    # ---- what is added

    def add(
        self,
        rows: Sequence[Row],
        recipes: dict[str, Any] | None = None,
        replace: bool = False,
        about: dict[str, Any] | None = None,
    ) -> None:
        """Adds all rows of one or several keys: a part, which goes into the table at once if nobody else holds that.

        Args:
          recipes: what the hashes in the rows' `settings` stand for.
          replace: they take the place of the key's older rows; otherwise those stay, and these are dropped.
          about: what else the JSON says from now on, by name; `recipe` too, where a table is of no fixed settings.
        """
        keys = list(dict.fromkeys(map(self.of, rows)))
        part = {"rows": rows, "recipes": recipes, "replace": replace, "about": about}
        self._leave({"measured": {**origin(), "runs": keys}, **part}, keys)

    def failed(self, keys: Sequence[Any], error: str, replace: bool = False) -> None:
        """Notes that the measurement of keys broke off; with `replace` also of those that have older rows."""
        self._leave({"failed": {named(key): error for key in keys}, "replace": replace}, list(keys))

    def merge(self) -> None:
        """Moves the parts into the table, unless it is of other settings, or another process holds it and will."""
        with self._lock() as mine:
            found = self._parts() if mine and self.fits() else []
            if found:
                rows, about = self._typed() if self.path.exists() else self._older()[0], self.about()
                about["recipe"] = self.settings or about["recipe"]  # a JSON alone may be of others, which failed
                for _, part in found:
                    rows = self._with(rows, part)
                    if part.get("measured"):
                        note(about, part["measured"], bool(part.get("replace")))
                    done = set() if part.get("replace") else {named(self.of(row)) for row in rows}
                    about["failed"] |= {k: v for k, v in part.get("failed", {}).items() if k not in done}
                    about |= part.get("about") or {}
                    if part.get("recipes"):
                        about.setdefault("recipes", {}).update(part["recipes"])
                if self.order:
                    rows = sorted(rows, key=lambda row: float(row[self.order]))
                self.write(rows, about)
                for path, _ in found:
                    path.unlink(missing_ok=True)

    def write(self, rows: list[Row], about: dict[str, Any] | None = None) -> None:
        """Replaces the table's rows, and what the JSON says: for those that hold it."""
        about = self.about() if about is None else about
        about["types"] = {name: _type([row.get(name) for row in rows]) for name in columns(rows)}
        written(self.path.with_suffix(".json"), json.dumps(about, indent=1, default=_plainly) + "\n")
        if rows:
            write_rows(self.path, rows)
            self.path.with_suffix(".parquet").unlink(missing_ok=True)

    def drop(self, unwanted: Callable[[Row], bool]) -> None:
        """Takes rows out of the table; the files go with the last one."""
        self.merge()
        rows = self.read()
        kept = [row for row in rows if not unwanted(row)]
        if rows and not kept:
            self.forget()
        elif len(kept) < len(rows):
            about, left = self.about(), {named(self.of(row)) for row in kept}
            for entry in about["measured"]:
                entry["runs"] = [run for run in entry["runs"] if named(run) in left]
            about["measured"] = [entry for entry in about["measured"] if entry["runs"]]
            self.write(kept, about)

    def forget(self) -> None:
        """Removes the table and its parts."""
        for suffix in (".csv", ".json", ".parquet"):
            self.path.with_suffix(suffix).unlink(missing_ok=True)
        for part in self.parts.glob("*.json"):
            part.unlink(missing_ok=True)

    def set_aside(self) -> None:
        """Renames the CSV and the JSON to <file>.old."""
        for path in (self.path, self.path.with_suffix(".json")):
            if path.exists():
                os.replace(path, path.with_name(f"{path.name}.old"))

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Holds the table, so that no other process measures into it; leaves with a sentence if one does already."""
        with self._lock() as mine:
            if not mine:
                sys.exit(f"{self.path} is being measured by another process; wait for its end")
            for left in (*self.parts.glob("*.new"), *self.parts.glob("*.job")):  # of a process that was killed
                left.unlink()
            self.merge()
            try:
                yield
            finally:
                self.merge()
                for left in self.parts.glob("*.job"):
                    left.unlink()

    # ---- how

    @contextlib.contextmanager
    def _lock(self) -> Iterator[bool]:
        """Holds the folder of parts; False where another process does. That of a killed holder is free."""
        if self._held:
            yield True
            return
        try:
            import fcntl
        except ImportError:  # Windows has no such lock
            yield True
            return
        while True:
            self.parts.mkdir(parents=True, exist_ok=True)
            try:
                handle = os.open(self.parts, os.O_RDONLY)
            except FileNotFoundError:  # another process has removed it, empty as it was
                continue
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(handle)
                yield False
                return
            if _same(handle, self.parts):
                break
            os.close(handle)  # its former holder has removed it meanwhile
        self._held = True
        try:
            yield True
        finally:
            self._held = False
            with contextlib.suppress(OSError):  # parts of other settings are left in it
                self.parts.rmdir()
            os.close(handle)

    def _leave(self, part: dict[str, Any], keys: list[Any]) -> None:
        """Writes a part and merges it; the same keys have the same part."""
        name = digest([named(key) for key in keys])
        content = {"recipe": self.settings, **part}
        written(self.parts / f"{name}.json", json.dumps(content, default=_plainly))
        self.merge()

    def _parts(self) -> list[tuple[Path, dict[str, Any]]]:
        """The parts of these settings, in the order of their names."""
        found = []
        for path in sorted(self.parts.glob("*.json")):
            with contextlib.suppress(FileNotFoundError):  # merged meanwhile
                found.append((path, json.loads(path.read_text())))
        return [(path, part) for path, part in found if part["recipe"] == self.settings]

    def _with(self, rows: list[Row], part: dict[str, Any]) -> list[Row]:
        """Rows and those of a part, no key twice."""
        new = part.get("rows", [])
        if part.get("replace"):
            own = {named(self.of(row)) for row in new}
            return [row for row in rows if named(self.of(row)) not in own] + new
        done = {named(self.of(row)) for row in rows}
        return rows + [row for row in new if named(self.of(row)) not in done]

    def _typed(self) -> list[Row]:
        """The CSV's rows with values of the types that the JSON names."""
        types = self.about().get("types", {})
        return [{k: _value(text, types.get(k, "str")) for k, text in row.items()} for row in read_rows(self.path)]

    def _older(self) -> tuple[list[Row], dict[str, Any]]:
        """The rows of a Parquet table that an older version wrote, and what a JSON beside it would say."""
        path = self.path.with_suffix(".parquet")
        about: dict[str, Any] = {"measured": [], "recipes": {}}
        if self.path.exists() or not path.exists():
            return [], {}
        import pyarrow.parquet

        rows = pyarrow.parquet.read_table(path, partitioning=None).to_pylist()
        for row in rows:
            own = {name: row.pop(name, None) for name in ORIGIN}
            if own["recipe"]:
                about["recipes"][row["settings"]] = json.loads(own["recipe"])
            if own["machine"]:
                entry = {"date": own["date"], "runs": [self.of(row)], "commit": own["commit"]}
                note(about, {**entry, "versions": json.loads(own["versions"]), **json.loads(own["machine"])})
        return rows, about


def note(about: dict[str, Any], entry: dict[str, Any], again: bool = False) -> None:
    """Notes in a JSON's content which keys a process measured, each key once; processes that are alike have one entry.

    Args:
      about: the content.
      entry: as in `measured`, with the keys as `runs`.
      again: a key that another process had measured is this one's now, rather than still the other's.
    """
    measured, keys = about["measured"], [list(run) if isinstance(run, tuple) else run for run in entry["runs"]]
    names = set(map(named, keys))  # older files have the names
    if again:
        for other in measured:
            other["runs"] = [run for run in other["runs"] if named(run) not in names]
    there = {named(run) for other in measured for run in other["runs"]}
    new = [run for run in keys if named(run) not in there]
    like = [other for other in measured if {**other, "runs": []} == {**entry, "runs": []}]
    if like:
        runs = like[-1]["runs"] + new
        like[-1]["runs"] = sorted(runs) if all(isinstance(run, int) for run in runs) else runs
    elif new:
        measured.append({**entry, "runs": new})
    about["measured"] = [other for other in measured if other["runs"]]
    about["failed"] = {k: v for k, v in about.get("failed", {}).items() if k not in names}


def named(key: Any) -> str:
    """A key as the JSON names it: of several columns their values with commas between."""
    return ", ".join(map(str, key)) if isinstance(key, (tuple, list)) else str(key)


def _same(handle: int, path: Path) -> bool:
    """Whether an open folder is still the one at a path."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(handle), path.stat())
    return False


def _type(values: Sequence[Any]) -> str:
    """The type of a column, as the JSON names it; "str?" has texts and nothing, and "" is nothing."""
    kinds = {type(_plainly(value)) for value in values if value is not None}
    for name, fits in (("bool", {bool}), ("int", {int}), ("float", {int, float})):
        if kinds and kinds <= fits:
            return name
    return "str?" if None in values else "str"


def _value(text: str, kind: str) -> Any:
    if kind == "str" or (text and kind == "str?"):
        return text
    if not text:
        return None
    return text == "True" if kind == "bool" else int(text) if kind == "int" else float(text)


def _plainly(value: Any) -> Any:
    """A number of NumPy or JAX as Python's own."""
    return value.item() if hasattr(value, "item") else value


@functools.cache
def origin() -> dict[str, Any]:
    """Where what this process measures comes from: date, commit, versions, machine."""
    return {"date": str(datetime.date.today()), **versions(), **machine()}


def versions() -> dict[str, Any]:
    """Packages and the commit; its "+" says that the code differed from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "esrl", "agents", ":(glob)experiments/**/*.py")
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return {"commit": git("rev-parse", "--short", "HEAD") + ("+" if changed else ""), "versions": found}


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, JAX's device, and whether compiled programs were kept on disk."""
    import jax

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    device = f"{len(jax.devices())} x {jax.devices()[0].device_kind}"
    cached = bool(jax.config.jax_compilation_cache_dir)
    return {"machine": {"processor": processor, "cores": cores, "device": device}, "compilation_cache": cached}
