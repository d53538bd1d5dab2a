"""The files of a run's folder, which may be a stranger's: no link is followed, nothing but plain files is read, and no
more of them than was asked for. What is written takes the place of a file whole, or is added at its end.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from esrl.core.errors import EsrlError

# Absent on Windows, which has neither.
_CAREFUL = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_PART = ".esrl-part"


class NotPlain(EsrlError):
    """A file of a run's folder that is no plain file."""


@contextlib.contextmanager
def writing(what: object) -> Iterator[None]:
    """Makes one sentence of what the operating system says while something is written.

    Raises:
      EsrlError: `what` cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise EsrlError(f"{what} cannot be written: {error.strerror or error}") from error


def open_plain(path: Path, flags: int = os.O_RDONLY) -> int:
    """A descriptor of a plain file that has this name alone.

    Raises:
      NotPlain: it is a link, or a pipe, which may never give anything, or a device, which may never end.
      OSError: it cannot be opened.
    """
    if path.is_symlink():
        raise NotPlain(f"{path} is a link, and none is followed in a run's folder; put the file itself there")
    try:
        file = os.open(path, flags | _CAREFUL, 0o644)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a pipe that nobody reads
            raise NotPlain(_no_plain_file(path)) from None
        raise
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode):
        os.close(file)
        raise NotPlain(_no_plain_file(path))
    if found.st_nlink > 1 and flags & (os.O_WRONLY | os.O_RDWR):
        os.close(file)
        raise NotPlain(f"{path} is a hard link, and a change would reach its other name; put a copy of it there")
    return file


def _no_plain_file(path: Path) -> str:
    return f"{path} is no plain file, which it must be; move it away"


def read_bytes(path: Path, limit: int) -> bytes:
    """What is in a plain file.

    Raises:
      EsrlError: it is no plain file (see `open_plain`), or holds more than `limit` bytes.
      OSError: it cannot be read.
    """
    with os.fdopen(open_plain(path), "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise EsrlError(f"{path} is too long: over {limit} bytes")
    return data


def sync(path: Path) -> None:
    """Waits until the disk has a file that was put at a path."""
    file = open_plain(path)
    try:
        os.fsync(file)
    finally:
        os.close(file)
    _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    if sys.platform != "win32":
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def replace_bytes(path: Path, data: bytes, sync: bool = False) -> None:
    """Puts a whole file at a path: at every moment what was there before is there, or all of this.

    Args:
      path: of the file. data: all of it.
      sync: wait until the disk has it, so that it outlives a loss of power as well.

    Raises:
      OSError: it cannot be written; what was there before still is.
    """
    with replacing(path) as part:
        file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _CAREFUL, 0o644)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(file, rest) :]
            if sync:
                os.fsync(file)
        finally:
            os.close(file)
    if sync:
        _sync_folder(path.parent)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new name beside a path, for whoever writes files by name; what is written there takes the path's place.

    A link at the path is replaced, and what it points to stays as it is. After an error nothing new is left.
    """
    part = path.with_name(f".{secrets.token_hex(6)}{_PART}{path.suffix}")  # at which nobody could have put a link
    try:
        yield part
        os.replace(part, path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def clear_parts(folder: Path) -> None:
    """Deletes what a process that was killed has left of files it was writing."""
    with contextlib.suppress(OSError):
        for path in folder.glob(f".*{_PART}*"):
            path.unlink()
