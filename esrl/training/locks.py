"""Locks of folders, which end with the process that holds them, however it ends."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path

from esrl.core.errors import EsrlError
from esrl.training.files import open_plain


def locked(path: Path, doing: str) -> int | None:
    """The descriptor of a lock file that no other process holds now; None where the file system has no locks.

    Args:
      path: of the file, which is made. doing: begins the sentence of an error, as "runs/first is being trained".

    Raises:
      EsrlError: another process holds it.
      OSError: the file cannot be made.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    while True:
        file = open_plain(path, os.O_RDWR | os.O_CREAT)
        try:
            # A lock of the process, not of the file: worker processes do not inherit it.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            who = os.read(file, 200).decode(errors="replace").strip()
            os.close(file)
            raise EsrlError(
                f"{doing} by another process{f' ({who})' if who else ''}; wait for it, or stop it"
            ) from None
        except OSError:  # a file system without locks
            os.close(file)
            return None
        if path.exists() and os.path.samestat(path.stat(), os.fstat(file)):
            break
        os.close(file)  # whoever held it has taken the file away since it was opened
    with contextlib.suppress(OSError):  # a full disk; who holds it is a courtesy
        os.ftruncate(file, 0)
        os.write(file, f"process {os.getpid()} on {platform.node()}\n".encode())
    return file
