"""The columns of a `metrics.jsonl` that may be long, growing, or a stranger's; read without parsing every row.

A row takes JSON tens of microseconds, and fifty runs have half a million of them. So only where its lines begin, and
the rows with a held-out score, are known of a file at once; a column is searched by its name when it is asked for, and
of a growing file only what is new is read.
"""

from __future__ import annotations

import json
import math
import os
import re
import threading
from array import array
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from esrl.core.errors import EsrlError
from esrl.training.files import open_plain
from esrl.training.logs import Row, parse_row

AXES = ("generation", "env_steps", "seconds", "seconds_training")
SCORES = ("eval_return_mean", "eval_return_std")
POINTS = 600  # of a column, about
EVALUATIONS = 2000  # held-out scores that are all kept
_BLOCK = 1 << 25  # bytes that are read at once
_LONGEST = 1 << 20  # bytes of a line at most, as esrl.training.logs has it
_NAMES = 500  # metrics of a run at most
_MARK = 128  # bytes before the end by which a file is known again
_COLUMNS = 64  # columns that are kept of a file
_AHEAD = 32  # bytes by which a name may stand nearer to its line's begin than in the line before
_NUMBER = re.compile(rb": ?(-?[0-9][0-9.eE+-]*)")
_QUOTED = {name: json.dumps(name).encode() for name in (*AXES, *SCORES)}


def thinned(columns: Sequence[Sequence[float]], most: int) -> list[int]:
    """The places that stand for columns of equal length: first, last, and in each part every column's least and most.

    Args:
      columns: lists of numbers. most: places that are wanted, about; up to as many all are kept.

    Example:
      >>> thinned([[0, 0, 0, 9, 0, 0, -5, 0]], most=4)
      [0, 3, 4, 6, 7]
    """
    number = len(columns[0]) if columns else 0
    if number <= most:
        return list(range(number))
    parts = max(1, most // (2 * len(columns)))
    kept = {0, number - 1}
    for part in range(parts):
        first, end = number * part // parts, number * (part + 1) // parts
        for column in columns:
            values = column[first:end]
            kept.add(first + values.index(min(values)))
            kept.add(first + values.index(max(values)))
    return sorted(kept)


class Score(NamedTuple):
    """A held-out evaluation: where it stands on each axis, mean and standard deviation over episodes."""

    generation: float | None
    env_steps: float | None
    seconds: float | None
    seconds_training: float | None
    mean: float
    std: float | None


class _Column(NamedTuple):
    rows: array[int]
    values: array[float]


class Table:
    """One `metrics.jsonl`.

    Attributes:
      path: of the file. rows: its whole lines. strange: how many of them are no rows.
      first, last: rows. names: of its metrics. scores: its held-out evaluations.
      sentence: what is wrong with the file, empty where nothing is.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sentence = ""
        self._seen: tuple[int, ...] = ()
        self._lock = threading.RLock()
        self._forget()

    def _forget(self) -> None:
        self._starts = array("Q", [0])  # where each line begins, and where the last one ends
        self._mark = b""
        self._columns: dict[str, _Column] = {}
        self.strange = 0
        self.first: Row = {}
        self.last: Row = {}
        self.names: list[str] = []
        self.scores: list[Score] = []

    @property
    def rows(self) -> int:
        return len(self._starts) - 1

    def refresh(self) -> bool:
        """Reads what is new. Returns whether anything is; what cannot be read is said in `sentence`."""
        with self._lock:
            try:
                file = open_plain(self.path)
            except FileNotFoundError:
                changed = bool(self._seen)
                self._forget()
                self._seen, self.sentence = (), ""
                return changed
            except (OSError, EsrlError) as error:
                said = getattr(error, "strerror", None) or str(error)
                changed, self.sentence = self.sentence != said, said
                return changed
            try:
                return self._read(file)
            except OSError as error:
                self.sentence = f"{self.path.name} cannot be read: {error.strerror}"
                return True
            finally:
                os.close(file)

    def _read(self, file: int) -> bool:
        found = os.fstat(file)
        seen = (found.st_ino, found.st_dev, found.st_size, found.st_mtime_ns)
        if seen == self._seen:
            return False
        end = self._starts[-1]
        same = seen[:2] == self._seen[:2] and found.st_size >= end
        if not same or os.pread(file, len(self._mark), end - len(self._mark)) != self._mark:
            self._forget()  # another file, or one that was cut and has grown again
        self._seen, self.sentence = seen, ""
        for base, data in self._blocks(file, found.st_size):
            self._take(base, data)
        if self.strange:
            self.sentence = f"{self.strange} lines of {self.path.name} are no rows of metrics"
        return True

    def _blocks(self, file: int, size: int) -> Iterator[tuple[int, bytes]]:
        """Whole lines that are not known yet, with the place where they begin."""
        while (base := self._starts[-1]) < size:
            data = os.pread(file, min(_BLOCK, size - base), base)
            end = data.rfind(b"\n") + 1
            if not end:
                if len(data) > _LONGEST:
                    raise OSError(0, f"it has a line of over {_LONGEST} bytes, which esrl never writes")
                return  # a line that is being written
            yield base, data[:end]

    def _take(self, base: int, data: bytes) -> None:
        known = self.rows
        ends = list(_ends(data))
        starts = [0, *ends[:-1]]
        self.strange += sum(1 for end in ends if data[end - 2 : end - 1] != b"}")
        for name, column in self._columns.items():
            _search(name, data, starts, known, column)
        self._starts.extend([base + end for end in ends])
        self._mark = data[-_MARK:]
        if not self.first:
            self.first = self._row(data[: ends[0]]) or {}
            self._start()
        for line in _lines_with(SCORES[0], data):
            if (score := _score(line)) is not None:
                self.scores.append(score)
            if not set(SCORES) & set(self.names):
                self._row(line)
        for start, end in zip(reversed(starts[-9:]), reversed(ends[-9:]), strict=True):
            if row := self._row(data[start:end]):
                self.last = row
                break

    def _row(self, line: bytes) -> Row | None:
        row = parse_row(line) if len(line) <= _LONGEST else None
        if row:
            new = [name for name in row if name not in self.names and len(name) <= 200]
            self.names += new[: max(0, _NAMES - len(self.names))]
        return row

    def _start(self) -> None:
        """The score before the first generation stands in the first row."""
        mean, std = self.first.get("start_return_mean"), self.first.get("start_return_std")
        if mean is not None:
            self.scores.append(Score(0, 0, 0, 0, mean, std))

    def evaluations(self) -> list[Score]:
        """The held-out scores, all of them up to EVALUATIONS, and then the extremes among them."""
        with self._lock:
            return [self.scores[i] for i in thinned([[score.mean for score in self.scores]], EVALUATIONS)]

    def columns(self, names: Sequence[str], most: int = POINTS) -> dict[str, list[float | None]]:
        """Columns by their names, and the axes beside them, at about `most` rows which have all of the columns.

        Kept are the first and the last such row, and the extremes of every column.
        """
        with self._lock:
            try:
                file = open_plain(self.path)
            except (OSError, EsrlError):
                return {name: [] for name in (*AXES, *names)}
            try:
                found = [self._column(file, name) for name in names]
                rows, values = _together(found)
                kept = thinned(values, most)
                axes = [self._axes(file, rows[i]) for i in kept]
            finally:
                os.close(file)
        shown: dict[str, list[float | None]] = {name: [axis[n] for axis in axes] for n, name in enumerate(AXES)}
        return shown | {name: [column[i] for i in kept] for name, column in zip(names, values, strict=True)}

    def _column(self, file: int, name: str) -> _Column:
        if name not in self._columns:
            while len(self._columns) >= _COLUMNS:
                self._columns.pop(next(iter(self._columns)))
            column = _Column(array("Q"), array("d"))
            row, last = 0, self.rows
            while row < last:
                base, end = self._starts[row], row
                while end < last and self._starts[end + 1] - base <= _BLOCK:
                    end += 1
                data = os.pread(file, self._starts[max(end, row + 1)] - base, base)
                end = max(end, row + 1)
                _search(name, data, [start - base for start in self._starts[row:end]], row, column)
                row = end
            self._columns[name] = column
        return self._columns[name]

    def _axes(self, file: int, row: int) -> list[float | None]:
        begin = self._starts[row]
        line = os.pread(file, self._starts[row + 1] - begin, begin)
        return [_value(name, line) for name in AXES]


def _together(columns: list[_Column]) -> tuple[Sequence[int], list[Sequence[float]]]:
    """The rows that all columns have, and their values there."""
    if not columns:
        return [], []
    if all(column.rows == columns[0].rows for column in columns):
        return columns[0].rows, [column.values for column in columns]
    by_row = [dict(zip(column.rows, column.values, strict=True)) for column in columns]
    rows = sorted(set.intersection(*(set(each) for each in by_row)))
    return rows, [[each[row] for row in rows] for each in by_row]


def _search(name: str, data: bytes, starts: Sequence[int], known: int, column: _Column) -> None:
    """Adds a column's numbers in some lines: `starts` says where each begins, `known` is the number of the first."""
    wanted, find = json.dumps(name).encode() + b": ", data.find
    size = len(wanted)
    add_row, add_value = column.rows.append, column.values.append
    ahead = 0  # a name stands at much the same place in every line
    for place, (start, end) in enumerate(zip_longest(starts, starts[1:], fillvalue=len(data))):
        at = find(wanted, start + ahead, end)
        if at < 0:
            at = find(wanted, start, end)
            if at < 0 and (value := _value(name, data[start:end])) is None:  # others may write no space
                continue
        if at >= 0:
            ahead = at - start - _AHEAD if at - start > _AHEAD else 0
            stop = find(b",", at + size, end)
            try:
                value = float(data[at + size : stop if stop >= 0 else end - 2])  # behind the last one stands a brace
            except ValueError:
                value = _value(name, data[start:end])
        if value is not None and value - value == 0:  # finite
            add_row(known + place)
            add_value(value)


def _ends(data: bytes) -> Iterator[int]:
    """The places behind each line."""
    at, find = 0, data.find
    while at := find(b"\n", at) + 1:
        yield at


def _lines_with(name: str, data: bytes) -> Iterator[bytes]:
    wanted, place = json.dumps(name).encode(), 0
    while (found := data.find(wanted, place)) >= 0:
        place = data.find(b"\n", found) + 1
        yield data[data.rfind(b"\n", 0, found) + 1 : place]


def _score(line: bytes) -> Score | None:
    at = {name: _value(name, line) for name in AXES}
    mean, std = (_value(name, line) for name in SCORES)
    return None if mean is None else Score(**at, mean=mean, std=std)


def _value(name: str, line: bytes) -> float | None:
    wanted = _QUOTED.get(name) or json.dumps(name).encode()
    at = line.find(wanted)
    if at < 0:
        return None
    place = at + len(wanted)
    try:
        # Behind a colon, and before a comma in most lines.
        value = float(line[place + 1 : line.find(b",", place)] if line[place] == ord(":") else b"")
        return value if value - value == 0 else None
    except ValueError:
        number = _NUMBER.match(line, place)
        return None if number is None else _finite(number[1])


def _finite(text: bytes) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
