"""Result files of the experiments: tidy CSVs, each with a JSON that says what was measured and on what; or Parquet."""

from __future__ import annotations

import csv
import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esrl.training.recipe import Recipe

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("esrl", "jax", "jaxlib", "flax", "optax", "gymnasium", "brax", "numpy")

Row = dict[str, Any]


def results(question: str) -> Path:
    """The folder of what was measured for a question: of "sweep" it is experiments/sweep/results."""
    return ROOT / "experiments" / question / "results"


def folder_name(env: str) -> str:
    """An environment's name as that of a file: "brax/hopper?backend=mjx" is brax-hopper."""
    return env.partition("?")[0].replace("/", "-")


def plain(recipe: Recipe) -> dict[str, Any]:
    """What decides a run, apart from its seed, as JSON holds it."""
    fields = {k: v for k, v in dataclasses.asdict(recipe).items() if v is not None and k != "seed"}
    return json.loads(json.dumps(fields))


def read_rows(path: Path) -> list[Row]:
    """A CSV's rows, each value a text; none when there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def result_names(folder: Path, ending: str, names: list[str], out: Path | None) -> list[str]:
    """The names asked for, or those of every `<name><ending>` in a folder; leaves with a sentence where none is."""
    found = names or sorted(path.name.removesuffix(ending) for path in folder.glob(f"*{ending}"))
    if not found:
        sys.exit(f"{folder} has no results")
    if out and len(found) > 1:
        sys.exit("--out is for one name; give it")
    return found


def write_rows(path: Path, rows: list[Row]) -> None:
    """Writes a CSV whole: whoever reads it meanwhile sees the old one or the new one. Columns are the first row's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".csv.part")
    with part.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(part, path)


def read_table(path: Path) -> list[Row]:
    """A Parquet table's rows, values of their own types; none when there is no file."""
    if not path.exists():
        return []
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path, partitioning=None).to_pylist()


def write_table(path: Path, rows: list[Row]) -> None:
    """Writes rows as a Parquet table, whole: whoever reads it meanwhile sees the old one or the new one.

    Columns are those of all rows, in the order in which they come; what a row does not have is null.
    """
    import pyarrow
    import pyarrow.parquet

    names = dict.fromkeys(name for row in rows for name in row)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".parquet.part")
    table = pyarrow.table({name: [row.get(name) for row in rows] for name in names})
    pyarrow.parquet.write_table(table, part, compression="zstd")
    os.replace(part, path)


class About:
    """The JSON beside a CSV.

    `recipe` is what all its runs share, `failed` has the error of each run that broke off, and `measured` an entry for
    each process that added runs: date, versions, commit, machine, and which runs.
    """

    def __init__(self, path: Path, recipe: dict[str, Any]) -> None:
        self.path = path
        empty: dict[str, Any] = {"recipe": recipe, "measured": [], "failed": {}}
        self.values = json.loads(path.read_text()) if path.exists() else empty
        self._now: dict[str, Any] | None = None

    def ran(self, runs: Iterable[int | str]) -> None:
        """Notes that this process measured these runs."""
        if self._now is None:
            self._now = {"date": str(datetime.date.today()), "runs": [], **versions(), **machine()}
            self.values["measured"].append(self._now)
        self._now["runs"] += list(runs)
        self.values["failed"] = {k: v for k, v in self.values["failed"].items() if k not in map(str, self._now["runs"])}
        self._write()

    def keep(self) -> None:
        """Writes the JSON where there is none yet."""
        if not self.path.exists():
            self._write()

    def take(self, entry: dict[str, Any]) -> None:
        """Notes the runs that another process measured, by its entry in `measured`; a run is noted once."""
        measured = self.values["measured"]
        new = [run for run in entry["runs"] if all(run not in other["runs"] for other in measured)]
        like = [other for other in measured if {**other, "runs": []} == {**entry, "runs": []}]
        if like:
            like[-1]["runs"] = sorted(like[-1]["runs"] + new)
        elif new:
            measured.append({**entry, "runs": new})
        own = [str(run) for run in entry["runs"]]
        self.values["failed"] = {k: v for k, v in self.values["failed"].items() if k not in own}
        self._write()

    def failed(self, run: int | str, error: str) -> None:
        """Notes that a run broke off."""
        self.values["failed"][str(run)] = error
        self._write()

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".json.part")
        part.write_text(json.dumps(self.values, indent=1) + "\n")
        os.replace(part, self.path)


def versions() -> dict[str, Any]:
    """Packages and the commit; its "+" says that the code differed from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "esrl", "agents", ":(glob)experiments/**/*.py")
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
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
