"""Environments that fail while they are stepped: what is counted, what is said, and what ends a run.

An environment that Python steps may raise, call exit, hang, or take its worker process with it. While a run tolerates
that, the episode under way gets a reward of NaN and ends, so that every agent takes it for failed, and the lane gets a
new environment. Otherwise the first fault is an error.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import threading
import time
import traceback as tracebacks
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from esrl.core.errors import place_of
from esrl.core.types import EsrlError, notice, reason_of

LIMIT = 300.0  # seconds that a reset or a step may take, unless a run says otherwise
GRACE = 5.0  # seconds that a call which was broken off may take to end
_LOOK = 0.2  # seconds between looks at a deadline
_MANY = 100  # faults after which a generation is not played to its end where too many fail
_SHOWN = {"traceback": False}


class Fault(NamedTuple):
    """One failure: a sentence, and the environment's whole traceback."""

    text: str
    traceback: str


class Faults:
    """The faults of one environment.

    Attributes:
      seconds: that a reset or a step may take.
      tolerated: the share of a generation's episodes that may fail; at 0 the first fault is raised.
      count: faults since the last `taken`. begun: episodes that were begun since then.
      lanes: the most that were stepped side by side.
      first: the first fault that was tolerated, or None.
    """

    def __init__(self) -> None:
        self.seconds, self.tolerated = LIMIT, 0.0
        self.count = self.begun = self.lanes = 0
        self.first: Fault | None = None

    @contextlib.contextmanager
    def tolerating(self, seconds: float, tolerated: float) -> Iterator[None]:
        """Within it, a share of the episodes may fail, and a call may take `seconds`."""
        before = self.seconds, self.tolerated
        self.seconds, self.tolerated = seconds, tolerated
        self.count = self.begun = self.lanes = 0
        try:
            yield
        finally:
            self.seconds, self.tolerated = before

    def elsewhere(self, text: str, failed: int, begun: int) -> None:
        """Counts episodes that were begun in another process, some of which failed; `text` says of the first how.

        Raises:
          EsrlError: that is not tolerated.
        """
        self.begun += begun
        self.add([Fault(text, "")] * failed)

    def add(self, faults: Sequence[Fault]) -> None:
        """Counts what happened, and says the first one.

        Raises:
          EsrlError: it is not tolerated.
        """
        for fault in faults:
            if not self.tolerated:
                raise EsrlError(said(fault))
            if self.first is None:
                self.first = fault
                notice(
                    f"{said(fault)}; the episode counts as failed, its lane got a new environment, and more of these"
                    " are counted as env_faults"
                )
            self.count += 1
            if self.count >= _MANY:
                self.check()

    def taken(self) -> int:
        """Faults since the last call.

        Raises:
          EsrlError: more episodes failed than are tolerated.
        """
        self.check()
        found = self.count
        self.count = self.begun = self.lanes = 0
        return found

    def check(self) -> None:
        """Raises an EsrlError where more of the episodes failed than are tolerated."""
        played = max(self.begun, self.lanes)  # lanes that live on may begin no episode in a generation
        if self.first is not None and self.count > self.tolerated * played:
            raise EsrlError(
                f"{said(self.first)}; {self.count} of the {played} episodes of a generation failed, a share of"
                f" more than {self.tolerated:g} (max_failed)"
            )


def show_tracebacks() -> None:
    """From now on a fault is said with its whole traceback."""
    _SHOWN["traceback"] = True


def said(fault: Fault) -> str:
    """A fault's sentence; its traceback goes to standard error where it is asked for."""
    if _SHOWN["traceback"] and fault.traceback:
        print(fault.traceback, file=sys.stderr)
    return fault.text


def fault_of(called: str, error: BaseException) -> Fault:
    """The fault of a call that raised: with the line that did, the environment's own where it has one."""
    whole = "".join(tracebacks.format_exception(error)).rstrip()
    return Fault(f"{called} raised {reason_of(error)}{place_of(error)}", whole)


def is_users(error: BaseException) -> bool:
    """Whether an interrupt that came while an environment was stepped is the user's, and not raised by its code."""
    if not isinstance(error, KeyboardInterrupt):
        return False
    if type(error) is not KeyboardInterrupt:  # while a run hears signals, the user's is a class of its own
        return True
    # Scripts let SIGTERM interrupt as well, and in the background they hear it alone: a shell ignores SIGINT for them.
    return any(signal.getsignal(each) is signal.default_int_handler for each in (signal.SIGINT, signal.SIGTERM))


# ---- time limits ----------------------------------------------------------------------------------------------------


class Hang(BaseException):
    """A call of an environment took too long. No `Exception`, so that an environment's own handlers let it through."""


_TRIED = [LIMIT]  # the innermost `trying_for` is the last


@contextlib.contextmanager
def trying_for(seconds: float) -> Iterator[None]:
    """Within it, a call of an environment that is made and tried may take so many seconds."""
    _TRIED.append(seconds)
    try:
        yield
    finally:
        _TRIED.pop()


def trial_limit() -> float:
    """Seconds that a call may take where an environment is made and tried, before a run says what it allows."""
    return _TRIED[-1]


class Watch:
    """Breaks off a call in the main thread that takes longer than its limit; there is one in a process.

    A thread looks at a deadline and sends the main thread a signal, whose handler raises `Hang`: that ends Python's own
    loops, and what waits in the operating system. Of code that returns to Python for neither the process is ended.

    Attributes:
      leave: `leave(name)` ends the process because of an environment.
      number: the signal. fatal: also let the operating system end the process, where code hangs that holds Python's
        lock, so that no thread and no handler of this process runs. The thread puts that off while it does run.
    """

    def __init__(self) -> None:
        self.leave: Callable[[str], Any] = _leave_hanging
        self.number: int = getattr(signal, "SIGALRM", 0)
        self.fatal = False
        self._deadline, self._name = math.inf, ""
        self._seconds = math.nan  # of the last call for which the system was told another number
        self._main = threading.main_thread().ident or 0
        self._thread: threading.Thread | None = None
        self._possible = hasattr(signal, "pthread_kill")

    def start(self, seconds: float, name: str) -> None:
        """A call of an environment begins."""
        if self._possible and threading.get_ident() == self._main:  # no other thread can be interrupted
            self._name, self._deadline = name, time.monotonic() + seconds
            if self.fatal and seconds != self._seconds:
                self._put_off(seconds)
            if self._thread is None:
                self._begin()

    def stop(self) -> None:
        """It has ended."""
        self._deadline = math.inf

    def _begin(self) -> None:
        self._possible = signal.getsignal(self.number) == signal.SIG_DFL  # else it is somebody's
        if self._possible:
            signal.signal(self.number, self._heard)
            self._thread = threading.Thread(target=self._look, name="esrl-watch", daemon=True)
            self._thread.start()

    def _put_off(self, seconds: float) -> None:
        """The operating system is to end this process if nobody puts that off again for so long."""
        self._seconds = seconds
        signal.setitimer(signal.ITIMER_REAL, seconds + 2 * GRACE)

    def _look(self) -> None:
        while True:
            time.sleep(_LOOK)
            if self.fatal:  # here, not at each call: two system calls less for a step of each lane
                self._put_off(self._seconds)
            late = self._deadline
            if time.monotonic() > late:
                signal.pthread_kill(self._main, self.number)
                given_up = time.monotonic() + GRACE
                while self._deadline == late and time.monotonic() < given_up:
                    time.sleep(_LOOK)
                if self._deadline == late:
                    self.leave(self._name)

    def _heard(self, *_: Any) -> None:
        # The call may have ended since the signal was sent. The deadline stays: the environment may catch this as well.
        if time.monotonic() > self._deadline:
            raise Hang


def _leave_hanging(name: str) -> None:
    print(
        f"esrl: error: {name} hangs in compiled code, which nothing in this process can break off; what was saved can"
        " be gone on with, and with vectorization=workers only a worker process ends",
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)


WATCH = Watch()


def hung(called: str, seconds: float) -> Fault:
    """The fault of a call that took too long."""
    return Fault(f"{called} took longer than {seconds:g} s (env_timeout)", "")
