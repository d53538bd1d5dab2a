"""Pools of Gymnasium environments in several processes: each steps a share of the lanes, so that every core works.

A step costs one message to each process and one back, for all lanes of its share; the processes step at the same time.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import cloudpickle
import gymnasium
import jax
import numpy as np

from esrl.core.types import EsrlError, PyTree, reason_of
from esrl.envs.channel import Channel
from esrl.envs.faults import GRACE, LIMIT, WATCH, Fault
from esrl.envs.host_lanes import Outcome, Pool
from esrl.envs.processes import Nursery, Process

_LONG = 1e9  # seconds: without an end
_STARTS = 60.0  # seconds that a process may take to import its packages
_HUNG = 97  # exit code of a process whose environment hangs


class WorkersPool:
    """Pools of L lanes in W processes.

    The processes end with the one that made them, and leave Ctrl-C to it. One that ends by itself, or has to be ended
    because it hangs, costs the episodes of its lanes, and another takes its place.

    Attributes:
      seconds: that a call of an environment may take.
    """

    def __init__(self, name: str, make: Callable[[int], Pool], lanes: int, workers: int) -> None:
        """Starts the processes.

        Args:
          name: of the environment, for errors.
          make: `make(lanes)` makes the pool of a share. It runs in the processes, and is sent there by cloudpickle.
          lanes: L.
          workers: W; no more than lanes are started.

        Raises:
          EsrlError: the environment cannot be made, or the operating system is not of the POSIX kind.
        """
        if os.name != "posix":
            raise EsrlError(f"{name}: vectorization=workers and async need Linux or macOS; use vectorization=sync")
        self.seconds = LIMIT
        self._name = name
        self._bounds = np.linspace(0, lanes, min(workers, lanes) + 1).round().astype(int)  # of each share's lanes
        self._pipes: list[Channel] = []
        self._processes: list[Process] = []
        self._nursery = Nursery(__name__, "work")
        self._close = weakref.finalize(self, _end, self._pipes, self._processes, self._nursery)
        self._jobs = []
        self._faults: list[Fault] = []
        for share in np.diff(self._bounds):
            try:
                self._jobs.append(cloudpickle.dumps(partial(make, int(share))))
            except Exception as error:
                why = f"{type(error).__name__}: {error}"
                raise EsrlError(f"{name} cannot be sent to other processes; use vectorization=sync ({why})") from error
            here, process = self._start(self._jobs[-1])
            self._pipes.append(here)
            self._processes.append(process)
        # They make their shares at the same time; each answers with a blank observation once its share is made.
        blanks = [self._made(i) for i in range(len(self._pipes))]
        self._blank = blanks[0]

    def begin(self, ids: np.ndarray, seeds: np.ndarray) -> PyTree:
        return self._ask("begin", ids, seeds)

    def step(self, ids: np.ndarray, actions: PyTree) -> Outcome:
        return self._ask("step", ids, actions)

    def close(self) -> None:
        self._close()

    def drain(self) -> list[Fault]:
        """What failed since the last call."""
        found, self._faults = self._faults, []
        return found

    def _ask(self, what: str, ids: np.ndarray, rows: PyTree) -> Any:
        """What the shares that have lanes in `ids` answer, one after the other; they work at the same time."""
        cuts = np.searchsorted(ids, self._bounds)  # ids ascend, so those of a share lie side by side
        asked = np.flatnonzero(np.diff(cuts)).tolist()
        messages = {}
        for i in asked:
            first, end = self._bounds[i : i + 2]
            share = jax.tree.map(lambda x, a=first, b=end: x[a:b], rows)
            messages[i] = (what, self.seconds, ids[cuts[i] : cuts[i + 1]] - first, share)
            with contextlib.suppress(OSError):  # it has ended: the answer that does not come says so
                self._pipes[i].send(messages[i])
        answers = [self._answer(i, messages[i]) for i in asked]
        for _, error, _ in answers:  # raised when all are there
            if error is not None:
                raise EsrlError(error)
        return jax.tree.map(lambda *parts: np.concatenate(parts), *[answer for answer, _, _ in answers])

    def _answer(self, index: int, message: tuple[Any, ...]) -> tuple[Any, str | None, list[Fault]]:
        """A process's answer to a message. One that gives none is replaced, and its lanes have failed."""
        _, seconds, ids, _ = message
        # It breaks off calls by itself; this is for one that cannot even do that.
        found = self._received(index, (seconds + 2 * GRACE) * len(ids))
        if found is None:
            found = self._replaced(index, message)
        self._faults += found[2]
        return found

    def _received(self, index: int, seconds: float) -> tuple[Any, str | None, list[Fault]] | None:
        until = time.monotonic() + seconds
        with contextlib.suppress(EOFError, OSError):
            if self._pipes[index].wait(min(1.0, seconds)):  # nearly always
                return self._pipes[index].receive()
            while time.monotonic() < until:
                gone = self._processes[index].poll() is not None  # a child of its own may hold the pipe open
                if self._pipes[index].wait(0 if gone else 1.0):
                    return self._pipes[index].receive()
                if gone:
                    return None
        return None

    def _replaced(self, index: int, message: tuple[Any, ...]) -> tuple[Any, str | None, list[Fault]]:
        what, seconds, ids, _ = message
        limit = (seconds + 2 * GRACE) * len(ids)
        fault = Fault(f"{self._name}: {self._dead(index)}", "")
        self._restart(index, limit)
        lost = [fault] * len(ids)
        blank = jax.tree.map(lambda x: np.repeat(x, len(ids), axis=0), self._blank)
        if what == "step":
            ended = np.ones(len(ids), bool)
            return (blank, np.full(len(ids), math.nan), ended, ~ended), None, lost
        with contextlib.suppress(OSError):
            self._pipes[index].send(message)
        again = self._received(index, limit)
        if again is not None:
            return again[0], again[1], [fault, *again[2]]
        # It may be the seeds: these episodes are not asked for a third time, and fail in their first step.
        self._restart(index, limit)
        with contextlib.suppress(OSError):
            self._pipes[index].send(("skip", *message[1:]))
        if (skipped := self._received(index, limit)) is None:
            raise EsrlError(f"{self._name}: {self._dead(index)}")
        return skipped[0], skipped[1], lost

    def _restart(self, index: int, limit: float) -> None:
        """Puts a new process in the place of one that ended or hangs."""
        with contextlib.suppress(OSError):
            self._pipes[index].close()
        self._processes[index].kill()
        self._processes[index].wait()
        self._pipes[index], self._processes[index] = self._start(self._jobs[index])
        self._made(index, limit + _STARTS)

    def _start(self, job: bytes) -> tuple[Channel, Process]:
        """A process that makes a pool and steps it."""
        try:
            here, process = self._nursery.start()
        except OSError as error:
            raise EsrlError(f"{self._name}: {reason_of(error)}; vectorization=sync needs no other process") from error
        with contextlib.suppress(OSError):  # it ended at once; the first answer that does not come says so
            here.send(("make", job))
        return here, process

    def _made(self, index: int, limit: float = _LONG) -> PyTree:
        """Waits until a process has made its share; returns a blank observation."""
        answer = self._received(index, limit)
        if answer is None:
            raise EsrlError(f"{self._name}: {self._dead(index)}")
        if answer[1] is not None:
            raise EsrlError(answer[1])
        return answer[0]

    def _dead(self, index: int) -> str:
        how = "stopped answering"
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._processes[index].wait(GRACE)
            how = f"ended with exit code {code}"
            if code in (_HUNG, -signal.SIGALRM):
                how = f"hung for more than {self.seconds:g} s in a call (env_timeout)"
            elif code < 0:
                how = f"was ended by {signal.Signals(-code).name}"
        return f"a process that steps its lanes {how}; vectorization=sync may show why"


def _end(pipes: list[Channel], processes: list[Process], nursery: Nursery) -> None:
    for pipe in pipes:
        pipe.close()  # a process that waits for a message ends
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
    nursery.close()


# ---- in a process of its own ----------------------------------------------------------------------------------------


def work(descriptor: int) -> None:
    """Answers messages with (answer, None, faults) or (None, a sentence, []), until the other end is closed.

    The first message is ("make", how), which makes the pool; the others are calls of the pool.
    """
    pipe = Channel(descriptor)
    pool: Any = None
    os.set_inheritable(descriptor, False)  # a process that an environment starts would keep it open
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt here is none of the user's
    WATCH.number, WATCH.fatal = signal.SIGUSR1, True
    gymnasium.logger.min_level = gymnasium.logger.ERROR + 1
    WATCH.leave = lambda _: os._exit(_HUNG)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    with contextlib.suppress(EOFError, OSError):  # whoever asked is gone
        while True:
            what, *given = pipe.receive()
            try:
                if what == "make":
                    # Runs code, the parent's own: over a pipe that only these two hold, never from a file or a network.
                    pool = cloudpickle.loads(*given)()
                    out = pool.blank() if hasattr(pool, "blank") else None
                else:
                    pool.seconds, *given = given
                    out = getattr(pool, what)(*given)
                pipe.send((out, None, getattr(pool, "drain", list)()))
            except BaseException as error:  # exits and interrupts as well: nobody but the environment raises any here
                said = str(error) if isinstance(error, EsrlError) else f"{type(error).__name__}: {error}"
                pipe.send((None, said, []))


def _end_with(parent: int) -> None:
    """Ends this process when its parent is gone, also while an environment hangs."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(0)
