"""Runs that several processes measure for one CSV: each leaves a part of its own, and one process gathers them."""

from __future__ import annotations

from pathlib import Path

from experiments.lab.record import About, read_rows, write_rows


def part(csv: Path, seed: int) -> Path:
    """Where a process leaves a seed's rows, with a JSON beside them: written after them, or alone if it failed."""
    return csv.parent / "parts" / f"{csv.stem}-{seed}.csv"


def missing(csv: Path, seeds: list[int]) -> list[int]:
    """Those of the seeds that the CSV does not have yet."""
    return sorted(set(seeds) - {int(row["seed"]) for row in read_rows(csv)})


def gather(csv: Path) -> None:
    """Moves the parts of a CSV into it and its JSON. Broken off and done again, it neither loses nor doubles a run.

    A part that was measured with other settings than the CSV stays where it is.
    """
    for path in sorted(csv.parent.glob(f"parts/{csv.stem}-*.json")):
        found, rows = About(path, {}).values, read_rows(path.with_suffix(".csv"))
        about = About(csv.with_suffix(".json"), found["recipe"])
        if about.values["recipe"] != found["recipe"]:
            continue
        for seed, error in found["failed"].items():
            about.failed(seed, error)
        if rows:
            if missing(csv, [int(rows[0]["seed"])]):
                write_rows(csv, sorted(read_rows(csv) + rows, key=lambda row: int(row["seed"])))
            about.take(found["measured"][-1])
        path.with_suffix(".csv").unlink(missing_ok=True)
        path.unlink()


def forget(csv: Path) -> None:
    """Removes a CSV, its JSON and its parts."""
    for old in (csv, csv.with_suffix(".json"), *csv.parent.glob(f"parts/{csv.stem}-*")):
        old.unlink(missing_ok=True)


def tidy(csv: Path) -> None:
    """Removes the folder of parts when nothing is left in it; only once no process writes there."""
    folder = csv.parent / "parts"
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
