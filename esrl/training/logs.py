"""A run's logs: metrics as JSON lines, and TensorBoard events. Both are only ever added to, or cut at their end.

Nothing here has a thread or a queue: a row that was written is in the file, whatever happens to the process after.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from esrl.core.errors import EsrlError
from esrl.training.files import open_plain, writing

Row = dict[str, Any]
_BLOCK = 1 << 16  # bytes that are read at once from the end of a file
_LONGEST = 1 << 20  # bytes of a line at most


class Metrics:
    """`metrics.jsonl`: a line for each generation.

    Attributes:
      path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: Any = None

    def rows(self) -> list[Row]:
        """All rows written so far; a line that is none, as a last one that a kill cut short, is left out."""
        return [row for line in self._lines() if (row := parse_row(line)) is not None]

    def last(self) -> Row:
        """The last row, found from the end of the file; empty where there is none."""
        with contextlib.suppress(OSError):  # of another user
            return self._last(math.inf)[0] or {}
        return {}

    def thinned(self, most: int, whole: str) -> list[Row]:
        """About `most` rows, evenly spaced, and besides those every row that has the value `whole`.

        A long run has a million rows, which take half a minute to read and gigabytes to hold.
        """
        wanted = f'"{whole}"'.encode()
        step = max(1, sum(1 for _ in self._lines()) // most)
        lines = (line for i, line in enumerate(self._lines()) if i % step == 0 or wanted in line)
        return [row for line in lines if (row := parse_row(line)) is not None]

    def _lines(self) -> Iterator[bytes]:
        if self.path.exists():
            with os.fdopen(open_plain(self.path), "rb") as file:
                while line := file.readline(_LONGEST):
                    yield line

    def open(self, generation: int) -> Row | None:
        """Opens the file to go on after a generation, and returns the last row that is kept.

        What was written beyond the generation is cut off, in place: at every moment the file holds all that it keeps.

        Raises:
          EsrlError: it is a link or no plain file, holds something else, or cannot be written.
        """
        with writing(self.path):
            last, end = self._last(generation)
            self._file = open_plain(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
            if os.fstat(self._file).st_size > end:
                os.ftruncate(self._file, end)
        return last

    def _last(self, generation: float) -> tuple[Row | None, int]:
        """The last row up to a generation, and the byte behind it; found from the end, however long the file is."""
        if not self.path.exists():
            return None, 0
        with os.fdopen(open_plain(self.path), "rb") as file:
            place = file.seek(0, os.SEEK_END)
            known = b""  # from `place` on, up to the line that is looked at
            while True:
                head, found, line = known[:-1].rpartition(b"\n")
                if not found and place > 0:  # the line may begin further ahead
                    if len(known) > _LONGEST:
                        raise EsrlError(f"{self.path} has a line of over {_LONGEST} bytes, which esrl never writes")
                    size = min(_BLOCK, place)
                    place = file.seek(place - size)
                    known = file.read(size) + known
                    continue
                if not known:
                    return None, 0
                row = parse_row(line + known[-1:])
                if row is not None and row["generation"] <= generation:
                    return row, place + len(known)
                known = head + found

    def write(self, row: Row) -> None:
        """Adds a row; numbers that are not finite are written as null.

        Raises:
          EsrlError: the file cannot be written; it then ends with the row before.
        """
        rest = memoryview((json.dumps(finite(row)) + "\n").encode())
        end = os.fstat(self._file).st_size
        with writing(self.path):
            try:
                while rest:  # a full disk takes a part
                    rest = rest[os.write(self._file, rest) :]
            except OSError:
                os.ftruncate(self._file, end)
                raise

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            os.close(self._file)
        self._file = None


def parse_row(line: bytes) -> Row | None:
    """A line as a row; None where it is not whole, or none of ours."""
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    sound = isinstance(row, dict) and type(row.get("generation")) is int and all(map(_is_number, row.values()))
    return row if sound else None


def _is_number(value: Any) -> bool:
    if type(value) is int:
        return abs(value) < 2**63
    return value is None or (type(value) is float and math.isfinite(value))


def finite(row: Row) -> Row:
    """The row with None for what is not finite, which JSON has no word for."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
