"""`status.json` of a run: what it is doing, how far it is, how long it still takes. For whoever looks from outside.

Needs the standard library alone. The file is put in place whole, at most once a second but for the first and the last.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import platform
import struct
import sys
import time
from pathlib import Path
from typing import Any

from esrl.core.errors import EsrlError, reason_of
from esrl.training.files import open_plain, read_bytes, replace_bytes

FILE = "status.json"
COMPILING, TRAINING, EVALUATING = "compiling", "training", "evaluating"
FINISHED, STOPPED, FAILED, KILLED = "finished", "stopped", "failed", "killed"
UNDER_WAY = (COMPILING, TRAINING, EVALUATING)  # what a process says that lives; KILLED is what a reader makes of it
_SECONDS = 1.0  # between two writes
_LONG = 1.0  # seconds of an evaluation that is announced whenever it begins
_LONGEST = 1 << 16  # bytes of the file at most
_SENTENCE = 2000  # characters of an error at most


class Status:
    """Writes the status of one run. What cannot be written is left out: it never ends a run.

    Attributes:
      path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._row: dict[str, Any] = {}
        self._written = -math.inf  # monotonic seconds of the last write
        self._first: tuple[float, float] | None = None  # time and progress when the first generation was done
        self._long = False  # whether evaluations take long

    def begin(self, progress: float) -> None:
        """A run begins, or goes on: it compiles."""
        self._row = {
            "state": COMPILING,
            "progress": round(progress, 4),
            "seconds_left": None,
            "process": os.getpid(),
            "host": platform.node(),
            "began": round(time.time(), 2),
        }
        self._first = None
        self._write()

    def evaluating(self) -> None:
        """Held-out episodes begin."""
        if self._row.get("state") == TRAINING and (self._due() or self._long):
            self._row["state"] = EVALUATING
            self._write()

    def evaluated(self, seconds: float) -> None:
        """Held-out episodes took so many seconds."""
        self._long = seconds > _LONG

    def generation(self, generation: int, progress: float) -> None:
        """A generation is done."""
        now = time.monotonic()
        if self._first is None:
            self._first = now, progress
        fresh = progress - self._first[1]
        left = (now - self._first[0]) * (1 - progress) / fresh if fresh > 0 else None
        compiled = self._row.get("state") == COMPILING
        self._row |= {
            "state": TRAINING,
            "progress": round(progress, 4),
            "seconds_left": None if left is None else round(left, 1),
            "generation": generation,
        }
        if compiled or self._due():
            self._write()

    def end(self, progress: float, error: BaseException | None) -> None:
        """The run ended: at the end of its budget, because someone stopped it, or by an error."""
        if not self._row:
            return
        failed = isinstance(error, Exception)
        state = FAILED if failed else FINISHED if progress >= 1 else STOPPED
        self._row |= {"state": state, "progress": round(progress, 4), "seconds_left": None}
        if failed and error is not None:
            said = str(error) if isinstance(error, EsrlError) else reason_of(error)
            self._row["sentence"] = " ".join(said.split())[:_SENTENCE]
        self._write()

    def _due(self) -> bool:
        return time.monotonic() - self._written >= _SECONDS

    def _write(self) -> None:
        self._written = time.monotonic()
        row = self._row | {"updated": round(time.time(), 2)}
        with contextlib.suppress(OSError, EsrlError):
            replace_bytes(self.path, (json.dumps(row) + "\n").encode())


def read_status(folder: Path) -> dict[str, Any]:
    """The status in a run's folder, with the types it is written in; empty where there is none, or another file.

    A run whose process is gone is `KILLED`.

    Example:
      >>> from esrl.training.status import Status, read_status
      >>> Status(tmp_path / "status.json").begin(0.25)
      >>> found = read_status(tmp_path)
      >>> found["state"], found["progress"]
      ('compiling', 0.25)
    """
    try:
        found = json.loads(read_bytes(folder / FILE, _LONGEST))
    except (OSError, ValueError, RecursionError):  # EsrlError is a ValueError
        return {}
    if not isinstance(found, dict):
        return {}
    kinds: dict[str, Any] = dict.fromkeys(("progress", "seconds_left", "began", "updated"), (int, float))
    kinds |= dict.fromkeys(("process", "generation"), int) | dict.fromkeys(("state", "host", "sentence"), str)
    sound = {name: value for name, value in found.items() if name in kinds and _is(value, kinds[name])}
    if sound.get("state") not in (*UNDER_WAY, FINISHED, STOPPED, FAILED):
        return {}
    sound["progress"] = min(max(float(sound.get("progress", 0.0)), 0.0), 1.0)
    if "sentence" in sound:
        sound["sentence"] = sound["sentence"][:_SENTENCE]
    if sound["state"] in UNDER_WAY and alive(folder, sound) is False:
        sound |= {"state": KILLED, "seconds_left": None}
    return sound


def _is(value: Any, kind: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, kind):
        return False
    return not isinstance(value, (int, float)) or (abs(value) < 2**53 and math.isfinite(value))


def alive(folder: Path, status: dict[str, Any]) -> bool | None:
    """Whether a process trains in a folder; None where that cannot be known from here.

    A process that trains holds a lock (`RunFolder.hold`), which ends with it. The lock is only looked at: to try it
    would keep a run from beginning meanwhile, and to close its file in the process that holds it would let it go.
    """
    here = status.get("host") == platform.node()
    process = status.get("process")
    if here and process == os.getpid():
        return True
    held = is_held(folder / "checkpoints" / ".lock")
    if held is not None:
        return held
    return _exists(process) if here and isinstance(process, int) and process > 0 else None


def is_held(path: Path) -> bool | None:
    """Whether another process has a lock on a file; None where there is no such file, or no such locks."""
    # `struct flock`, which Python has no name for.
    layouts = {"linux": ("hhqqi4x", 0), "darwin": ("qqihh", 3)}
    if sys.platform not in layouts or struct.calcsize("P") != 8:
        return None
    import fcntl

    layout, kind_at = layouts[sys.platform]
    wanted: list[int] = [0] * 5
    wanted[kind_at] = fcntl.F_WRLCK
    try:
        if path.parent.is_symlink():
            return None
        file = open_plain(path)
    except (OSError, EsrlError):
        return None
    try:
        found = struct.unpack(layout, fcntl.fcntl(file, fcntl.F_GETLK, struct.pack(layout, *wanted)))
    except OSError:  # a file system without locks
        return None
    finally:
        os.close(file)
    return bool(found[kind_at] != fcntl.F_UNLCK)


def _exists(process: int) -> bool | None:
    if sys.platform == "win32":  # where signal 0 is no question
        return None
    try:
        os.kill(process, 0)
    except OSError as error:
        return error.errno == errno.EPERM
    except OverflowError:
        return False
    return True
