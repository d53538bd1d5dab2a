"""Signals that ask a run to stop: heard at once, obeyed after the generation, and never in the middle of a save.

Ctrl-C, SIGTERM (how a cluster takes a machine back) and SIGHUP (a terminal that was closed) are one wish. The first
sets a flag that the loop reads after each generation. The second interrupts what is under way, which is not saved. The
third ends the process, whatever hangs. Only the main thread hears signals; in others nothing here does anything.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
PATIENCE = 5.0  # seconds that the second wish may take, before the process is ended


class Stopped(KeyboardInterrupt):
    """A run was stopped by a signal.

    Attributes:
      signum: the signal's number; shells expect 128 more as the exit status.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


class Stop:
    """Hears the signals while it is entered.

    Attributes:
      asked: the number of the first signal, 0 before it. times: how many came.
    """

    def __init__(self, say: Callable[[str], Any]) -> None:
        """Args:
        say: shows a line; it is called from another thread.
        """
        self._say = say
        self.asked, self.times = 0, 0
        self._before: dict[int, Any] = {}
        self._ends: tuple[socket.socket, ...] = ()
        self._left = threading.Event()
        self._hook: Callable[[Any], Any] = sys.unraisablehook
        self._wakeup = -1

    def __enter__(self) -> Stop:
        if threading.current_thread() is not threading.main_thread():
            return self
        for number in SIGNALS:
            before = signal.getsignal(number)
            # What whoever started the process wants ignored stays so: nohup, and a shell's background job.
            if before is not signal.SIG_IGN and before is not None:
                self._before[number] = signal.signal(number, self._heard)
        # Python runs a handler between two of its own instructions, and compiling is one that takes a minute. What is
        # written to this socket when a signal comes is read by a thread meanwhile.
        self._ends = socket.socketpair()
        self._ends[0].setblocking(False)
        self._wakeup = signal.set_wakeup_fd(self._ends[0].fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(self._ends[1],), name="esrl-signals", daemon=True).start()
        self._hook, sys.unraisablehook = sys.unraisablehook, self._unraisable
        return self

    def __exit__(self, *_: object) -> None:
        if not self._ends:
            return
        self._left.set()
        sys.unraisablehook = self._hook
        signal.set_wakeup_fd(self._wakeup)
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before = {}
        self._ends[0].close()  # ends the thread

    def _heard(self, signum: int, _: Any) -> None:
        """The handler, in the main thread."""
        self.asked = self.asked or signum
        self.times += 1
        if self.times > 1:
            raise Stopped(self.asked)

    def _unraisable(self, unraisable: Any) -> None:
        """An interrupt that met a callback of Python's own is lost there; the run ends after its generation then."""
        if not isinstance(unraisable.exc_value, Stopped):
            self._hook(unraisable)

    def _listen(self, end: socket.socket) -> None:
        """The thread: it says what was heard, and ends the process when nothing else does."""
        came = 0
        with end:
            while numbers := end.recv(1):
                if numbers[0] not in SIGNALS:
                    continue
                came += 1
                if came == 1:
                    with contextlib.suppress(OSError, ValueError):  # the terminal may be gone
                        self._say("stopping after this generation; again to leave now")
                elif came == 2:
                    threading.Thread(target=self._end, args=(numbers[0],), daemon=True).start()
                else:
                    os._exit(128 + numbers[0])

    def _end(self, signum: int) -> None:
        if not self._left.wait(PATIENCE):
            os._exit(128 + signum)


@contextlib.contextmanager
def protected() -> Iterator[None]:
    """Signals that come inside are heard at its end: around what must not be interrupted, as a save."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[tuple[int, Any]] = []
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    held = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number in held:
        signal.signal(number, lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        for number, handler in held.items():
            signal.signal(number, handler)
        for number, frame in came:
            held[number](number, frame)
