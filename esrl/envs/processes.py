"""Processes that step lanes, forked from one that has imported what they need.

Each starts in milliseconds instead of a second of a core, and they share their packages' memory, so that one finds in
the processor's caches what another has left there. None of them runs the caller's script again, as those of
`multiprocessing` would. Where forking is unsafe (macOS, whose libraries start threads) each imports for itself.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import time
import warnings
from typing import Any, Protocol, runtime_checkable

import numpy as np

from esrl.envs.channel import Channel

GRACE = 5.0  # seconds that a process may take to end
_REQUEST = struct.Struct("<q")  # 0: fork one, whose end of a channel comes with it; a process's id: has it ended?
_RUNS = 1 << 32  # the answer that it has not
FORKED = sys.platform == "linux"


@runtime_checkable
class Process(Protocol):
    """What `subprocess.Popen` has of it as well."""

    pid: int

    def poll(self) -> int | None:
        """Its exit code, that of a signal negative; None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, once it has ended; raises `subprocess.TimeoutExpired` otherwise."""

    def kill(self) -> None:
        """Ends it."""

    def terminate(self) -> None:
        """Asks it to end."""


class Nursery:
    """Starts processes that run `module.function(descriptor)` of their end of a channel.

    They end with the process that made this, also where it is killed, and with this.
    """

    def __init__(self, module: str, function: str) -> None:
        self._code = f"import sys; sys.path[:] = {sys.path!r}; from {module} import {function} as work; "
        self._process: subprocess.Popen | None = None
        self._control: socket.socket | None = None

    def start(self) -> tuple[Channel, Process]:
        """A process, and the channel to it."""
        here, there = Channel.pair()
        with there:
            if not FORKED:
                return here, _popen(f"{self._code}work({there.fileno()})", there.fileno())
            for _ in range(2):
                if self._control is None:
                    self._begin()
                try:
                    pid = self._ask(0, [there.fileno()])
                    return here, _Forked(pid, self)
                except OSError:  # somebody ended it; its processes end as well, and are started again by whoever asks
                    self.close()
        here.close()
        raise OSError("no process can be started")

    def ended(self, pid: int) -> int | None:
        """The exit code of a process, once; None while it runs."""
        try:
            code = self._ask(pid)
        except OSError:  # with the one that would know
            return -signal.SIGKILL
        return None if code == _RUNS else code

    def close(self) -> None:
        """Ends what is left."""
        process, self._process = self._process, None
        control, self._control = self._control, None
        if control is not None:
            control.close()
        if process is not None:
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _begin(self) -> None:
        self.close()  # what is left of one that somebody ended
        here, there = socket.socketpair()
        with there:
            code = f"{self._code}from {__name__} import serve; serve({there.fileno()}, work)"
            self._process, self._control = _popen(code, there.fileno()), here

    def _ask(self, number: int, descriptors: list[int] | None = None) -> int:
        if self._control is None:
            raise OSError("it is closed")
        try:
            socket.send_fds(self._control, [_REQUEST.pack(number)], descriptors or [])
            answer = self._control.recv(_REQUEST.size)
        except BaseException:  # Ctrl-C as well: an answer that nobody took would be the next one's
            self._control.close()
            self._control = None
            raise
        if not answer:
            raise OSError("it has ended")
        return int(_REQUEST.unpack(answer)[0])


class _Forked:
    """A process of a nursery."""

    def __init__(self, pid: int, nursery: Nursery) -> None:
        self.pid, self._nursery = pid, nursery
        self._code: int | None = None

    def poll(self) -> int | None:
        if self._code is None:
            self._code = self._nursery.ended(self.pid)
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        until = math.inf if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if timeout is not None and time.monotonic() > until:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.002)
        return code

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def _signal(self, number: int) -> None:
        if self.poll() is None:  # its id is its own until it is asked for its end
            with contextlib.suppress(OSError):
                os.kill(self.pid, number)


def _popen(code: str, descriptor: int) -> subprocess.Popen:
    # In a session of its own: Ctrl-C in a terminal does not reach it.
    return subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.DEVNULL, pass_fds=[descriptor], start_new_session=True
    )


# ---- in a process of its own ----------------------------------------------------------------------------------------


def serve(descriptor: int, work: Any) -> None:
    """Forks processes that run `work`, and says how they ended, until whoever asks is gone."""
    os.set_inheritable(descriptor, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=descriptor) as control:
        while True:
            try:
                request, descriptors, _, _ = socket.recv_fds(control, _REQUEST.size, 1)
            except OSError:
                return
            if not request:
                return
            number = _REQUEST.unpack(request)[0]
            if number:
                answer = _ended(number)
            else:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of threads: NumPy's know what a fork is, and nothing else ran
                    answer = os.fork()
                if not answer:
                    break
                os.close(descriptors[0])
            with contextlib.suppress(OSError):
                control.send(_REQUEST.pack(answer))
    os.setsid()
    # Else all of them would draw the same numbers, where an environment draws from the packages' own generators.
    random.seed()
    np.random.seed()
    work(descriptors[0])


def _ended(pid: int) -> int:
    try:
        found, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return -signal.SIGKILL
    return os.waitstatus_to_exitcode(status) if found else _RUNS
