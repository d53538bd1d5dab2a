"""Lanes of Gymnasium environments over a few processes: each steps a share of them, so that every core works.

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
from itertools import pairwise
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle
import gymnasium
import numpy as np

from esrl.core.types import EsrlError, PyTree

_GRACE = 5.0  # seconds that a process gets to end by itself


class WorkersVectorEnv:
    """A vector environment of L lanes in W processes, with the part of Gymnasium's interface that lanes need.

    The processes end with the one that made them, and leave Ctrl-C to it. After a call that was broken off by anything
    but an error of the environment, nothing more can be asked.

    Attributes:
      num_envs: L.
    """

    def __init__(self, name: str, make: Callable[[int], Any], lanes: int, workers: int) -> None:
        """Starts the processes.

        Args:
          name: of the environment, for errors.
          make: `make(lanes)` makes a share, a `gymnasium.vector.VectorEnv` whose resets take a seed for each lane and a
            `reset_mask`. It runs in the processes, and is sent there by cloudpickle.
          lanes: L.
          workers: W; no more than lanes are started.

        Raises:
          EsrlError: the environment cannot be made, or the operating system is not of the POSIX kind.
        """
        if os.name != "posix":
            raise EsrlError(f"{name}: vectorization=workers needs Linux or macOS; use vectorization=sync")
        self.num_envs = lanes
        self._name = name
        bounds = np.linspace(0, lanes, min(workers, lanes) + 1).round().astype(int)
        self._shares = [slice(int(a), int(b)) for a, b in pairwise(bounds)]
        self._pipes: list[Connection] = []
        self._processes: list[subprocess.Popen] = []
        for share in self._shares:
            try:
                job = cloudpickle.dumps(partial(make, share.stop - share.start))
            except Exception as error:
                why = f"{type(error).__name__}: {error}"
                raise EsrlError(f"{name} cannot be sent to other processes; use vectorization=sync ({why})") from error
            here, process = _start(job)
            self._pipes.append(here)
            self._processes.append(process)
        self._seen: list[PyTree] = [None] * len(self._pipes)  # each share's last observations
        self._close = weakref.finalize(self, _end, self._pipes, self._processes)
        self._answers(range(len(self._pipes)))  # each says that its share is made

    def reset(self, *, seed: list[int | None], options: dict[str, Any] | None = None) -> tuple[PyTree, dict]:
        """Resets the lanes with their seeds [L]; `options["reset_mask"]` [L] says which, where not all are reset."""
        mask = (options or {}).get("reset_mask")
        given = [None if mask is None else mask[share] for share in self._shares]
        asked = [i for i, part in enumerate(given) if part is None or part.any()]
        answers = self._ask("reset", {i: (seed[self._shares[i]], given[i]) for i in asked})
        for i in asked:
            self._seen[i] = answers[i]
        return _joined(self._seen), {}

    def step(self, actions: PyTree) -> tuple[PyTree, np.ndarray, np.ndarray, np.ndarray, dict]:
        """Steps every lane: observations [L, ...], rewards, terminated, truncated [L], and no infos."""
        answers = self._ask("step", {i: _rows(actions, share) for i, share in enumerate(self._shares)})
        self._seen, *rest = (list(column) for column in zip(*answers, strict=True))
        reward, terminated, truncated = (_joined(column) for column in rest)
        return _joined(self._seen), reward, terminated, truncated, {}

    def close(self) -> None:
        """Ends the processes."""
        self._close()

    def _ask(self, what: str, given: dict[int, Any]) -> list[Any]:
        """The answers of the processes that are given a message; None for the others."""
        for index, part in given.items():
            try:
                self._pipes[index].send((what, part))
            except OSError:
                raise self._dead(index) from None
        return self._answers(given)

    def _answers(self, asked: Iterable[int]) -> list[Any]:
        """An answer of each process that was asked; when all are there, the first error among them is raised."""
        answers: list[tuple[Any, str | None]] = [(None, None)] * len(self._pipes)
        for index in asked:
            try:
                answers[index] = self._pipes[index].recv()
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
    """A process that makes lanes and steps them. It does not run the caller's script again, as `multiprocessing` would,
    and Ctrl-C in a terminal does not reach it."""
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
        here.send_bytes(job)
    return here, process


def _end(pipes: list[Connection], processes: list[subprocess.Popen]) -> None:
    for pipe in pipes:
        pipe.close()  # a process that waits for a message ends
    for process in processes:
        process.terminate()
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


# ---- in a process of its own ----------------------------------------------------------------------------------------


def work(descriptor: int) -> None:
    """Makes lanes, then answers messages with (answer, None) or (None, a sentence), until the other end is closed."""
    pipe = Connection(descriptor)
    gymnasium.logger.min_level = gymnasium.logger.ERROR + 1
    env: Any = None

    def answer(what: str, given: Any) -> Any:
        if what == "step":
            return tuple(env.step(given)[:4])
        seed, mask = given
        return env.reset(seed=seed, options=None if mask is None else {"reset_mask": mask})[0]

    with contextlib.suppress(EOFError, OSError):  # whoever asked is gone
        try:
            # Runs code, the parent's own: over a pipe that only these two hold, never from a file or a network.
            env = cloudpickle.loads(pipe.recv_bytes())()
            pipe.send((None, None))
        except Exception as error:
            pipe.send((None, _sentence(error)))
        while True:
            what, given = pipe.recv()
            try:
                out = answer(what, given)
            except Exception as error:
                pipe.send((None, _sentence(error)))
            else:
                pipe.send((out, None))


def _sentence(error: Exception) -> str:
    return str(error) if isinstance(error, EsrlError) else f"{type(error).__name__}: {error}"


def _rows(tree: PyTree, share: slice) -> PyTree:
    if isinstance(tree, dict):
        return {name: _rows(part, share) for name, part in tree.items()}
    if isinstance(tree, tuple):
        return tuple(_rows(part, share) for part in tree)
    return np.asarray(tree)[share]


def _joined(parts: list[Any]) -> Any:
    if isinstance(parts[0], dict):
        return {name: _joined([part[name] for part in parts]) for name in parts[0]}
    if isinstance(parts[0], tuple):
        return tuple(_joined(list(column)) for column in zip(*parts, strict=True))
    return np.concatenate(parts)
