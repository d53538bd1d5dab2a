"""What stands between a process and the coordinator that it trains with, so that the death of that one has a sentence.

JAX's client ends its process with a page of addresses as soon as its connection to the coordinator breaks. So it is
connected to a socket of this process, from which everything goes on to the coordinator and back. When that is gone, the
client does not hear of it: the collective under way breaks, and the main thread says so and leaves. Where nothing
breaks (an accelerator's collectives may wait for ever), this leaves for it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

GRACE = 5.0  # seconds that the main thread has to notice by itself, and to leave
_BLOCK = 1 << 16


def through(address: str, gone: Callable[[], None]) -> str:
    """An address of this process, as gRPC has them, behind which the one that is given is reached.

    Args:
      address: HOST:PORT. gone: called in a thread, once, when a connection there has ended and the one here has not.

    Returns:
      The address; the one that was given where the system has no sockets of files.
    """
    if not hasattr(socket, "AF_UNIX"):
        return address
    host, _, port = address.rpartition(":")
    folder = Path(tempfile.mkdtemp(prefix="esrl-"))
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(folder / "coordinator"))
    server.listen()
    told = threading.Event()

    def accept() -> None:
        while True:
            near, _ = server.accept()
            try:
                far = socket.create_connection((host.strip("[]"), int(port)), timeout=5)
            except OSError:  # it is not there yet: the client tries again
                near.close()
                continue
            far.settimeout(None)
            shutil.rmtree(folder, ignore_errors=True)  # nobody connects a second time
            _Pipe(near, far, told, gone)

    threading.Thread(target=accept, name="esrl-relay", daemon=True).start()
    return f"unix:{folder / 'coordinator'}"


class _Pipe:
    """Two connections, what comes from one of which goes to the other."""

    def __init__(
        self, near: socket.socket, far: socket.socket, told: threading.Event, gone: Callable[[], None]
    ) -> None:
        self._near, self._far, self._told, self._gone = near, far, told, gone
        self._ended = False  # whether the client has closed its connection
        for target in (self._out, self._back):
            threading.Thread(target=target, name="esrl-relay", daemon=True).start()

    def _out(self) -> None:
        _pump(self._near, self._far)
        self._ended = True
        for each in (self._near, self._far):
            each.close()

    def _back(self) -> None:
        _pump(self._far, self._near)
        if not self._ended and not self._told.is_set():  # the near end stays open: the client waits
            self._told.set()
            self._gone()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while block := source.recv(_BLOCK):
            sink.sendall(block)


def leave_soon(coordinator: str, over: Callable[[], bool]) -> None:
    """Ends this process with a sentence, unless it has ended by itself, or does not need the coordinator any more.

    Args:
      coordinator: its address. over: whether this process has left the others.
    """
    time.sleep(GRACE)
    if over():
        return
    with contextlib.suppress(OSError):
        print(
            f"esrl: error: process 0 (the coordinator {coordinator}) has ended or cannot be reached; see what it said,"
            " and start all of them again: a run in a folder goes on from its last checkpoint with --resume",
            file=sys.stderr,
            flush=True,
        )
    os._exit(2)
