"""Pools of Gymnasium environments in several processes: each steps a share of the lanes, so that every core works.

A step costs one message to each process and one back, for all lanes of its share; the processes step at the same time.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterable
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle
import gymnasium
import jax
import numpy as np

from esrl.core.types import EsrlError, PyTree
from esrl.envs.host_lanes import Outcome, Pool

_GRACE = 5.0  # seconds that a process gets to end by itself


class WorkersPool:
    """Pools of L lanes in W processes.

    The processes end with the one that made them, and leave Ctrl-C to it. After a call that was broken off by anything
    but an error of the environment, nothing more can be asked.
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
        self._name = name
        self._bounds = np.linspace(0, lanes, min(workers, lanes) + 1).round().astype(int)  # of each share's lanes
        self._pipes: list[Connection] = []
        self._processes: list[subprocess.Popen] = []
        self._close = weakref.finalize(self, _end, self._pipes, self._processes)
        for share in np.diff(self._bounds):
            try:
                job = cloudpickle.dumps(partial(make, int(share)))
            except Exception as error:
                why = f"{type(error).__name__}: {error}"
                raise EsrlError(f"{name} cannot be sent to other processes; use vectorization=sync ({why})") from error
            here, process = _start(job)
            self._pipes.append(here)
            self._processes.append(process)
        self._answers(
            range(len(self._pipes))
        )  # they make their shares at the same time; each says that its share is made

    def begin(self, ids: np.ndarray, seeds: np.ndarray) -> PyTree:
        return self._ask("begin", ids, seeds)

    def step(self, ids: np.ndarray, actions: PyTree) -> Outcome:
        return self._ask("step", ids, actions)

    def close(self) -> None:
        self._close()

    def _ask(self, what: str, ids: np.ndarray, rows: PyTree) -> Any:
        """What the shares that have lanes in `ids` answer, one after the other; they work at the same time."""
        cuts = np.searchsorted(ids, self._bounds)  # ids ascend, so those of a share lie side by side
        asked = np.flatnonzero(np.diff(cuts)).tolist()
        for i in asked:
            first, end = self._bounds[i : i + 2]
            try:
                share = jax.tree.map(lambda x, a=first, b=end: x[a:b], rows)
                self._pipes[i].send((what, ids[cuts[i] : cuts[i + 1]] - first, share))
            except OSError:
                raise self._dead(i) from None
        return jax.tree.map(lambda *parts: np.concatenate(parts), *self._answers(asked))

    def _answers(self, asked: Iterable[int]) -> list[Any]:
        """An answer of each process that was asked; when all are there, the first error among them is raised."""
        answers: list[tuple[Any, str | None]] = []
        for index in asked:
            try:
                answers.append(self._pipes[index].recv())
            except (EOFError, OSError):
                raise self._dead(index) from None
        for _, error in answers:
            if error is not None:
                raise EsrlError(error)
        return [answer for answer, _ in answers]

    def _dead(self, index: int) -> EsrlError:
        how = "stopped answering"
        with contextlib.suppress(subprocess.TimeoutExpired):
            how = f"ended with exit code {self._processes[index].wait(_GRACE)}"
        return EsrlError(f"{self._name}: a process that steps its lanes {how}; vectorization=sync may show why")


def _start(job: bytes) -> tuple[Connection, subprocess.Popen]:
    """A process that makes a pool and steps it.

    It does not run the caller's script again, as `multiprocessing` would, and Ctrl-C in a terminal does not reach it.
    """
    here, there = multiprocessing.Pipe()
    code = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import work; work({there.fileno()})"
    with there:
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.DEVNULL,
            pass_fds=[there.fileno()],
            start_new_session=True,
        )
    with contextlib.suppress(OSError):  # it ended at once; the first answer that does not come says so
        here.send(("make", job))
    return here, process


def _end(pipes: list[Connection], processes: list[subprocess.Popen]) -> None:
    for pipe in pipes:
        pipe.close()  # a process that waits for a message ends
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


# ---- in a process of its own ----------------------------------------------------------------------------------------


def work(descriptor: int) -> None:
    """Answers messages with (answer, None) or (None, a sentence), until the other end is closed.

    The first message is ("make", how), which makes the pool; the others are calls of the pool.
    """
    pipe, pool = Connection(descriptor), None
    gymnasium.logger.min_level = gymnasium.logger.ERROR + 1
    with contextlib.suppress(EOFError, OSError):  # whoever asked is gone
        while True:
            what, *given = pipe.recv()
            try:
                if what == "make":
                    # Runs code, the parent's own: over a pipe that only these two hold, never from a file or a network.
                    pool, out = cloudpickle.loads(*given)(), None
                else:
                    out = getattr(pool, what)(*given)
                pipe.send((out, None))
            except Exception as error:
                said = str(error) if isinstance(error, EsrlError) else f"{type(error).__name__}: {error}"
                pipe.send((None, said))
