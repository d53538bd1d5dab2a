"""Tables that grow by parts: what each process has measured is a file of its own until it is merged, nothing twice."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from experiments.lab.record import Row, read_table, write_table


def parts(table: Path) -> Path:
    """The folder of what cells have written and is not in the table yet."""
    return table.with_suffix("")


def identity(row: Row) -> tuple[str, int]:
    """A row's run."""
    return row["settings"], int(row["seed"])


def merge(table: Path, tidy: Callable[[list[Row]], list[Row]] = list) -> list[Row]:
    """Brings the cells' files into the table, removes them, and returns all rows."""
    rows, found = read_table(table), sorted(parts(table).glob("*.parquet"))
    known = {identity(row) for row in rows}
    for part in found:  # a kill between writing the table and removing the parts leaves runs in both
        new = [row for row in read_table(part) if identity(row) not in known]
        known |= {identity(row) for row in new}
        rows += new
    if found:
        rows = tidy(rows)
        write_table(table, rows)
        for part in found:
            part.unlink()
            part.with_suffix(".json").unlink(missing_ok=True)
    return rows


@contextlib.contextmanager
def alone(table: Path) -> Iterator[None]:
    """Holds a table's folder, so that no other process measures into it; the folder goes when nothing is left in it."""
    folder = parts(table)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # not on Windows
        fcntl = None  # type: ignore[assignment]
    handle = os.open(folder, os.O_RDONLY) if fcntl else None
    try:
        if fcntl and handle is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        sys.exit(f"{table} is being measured by another process")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()
        if handle is not None:
            os.close(handle)
