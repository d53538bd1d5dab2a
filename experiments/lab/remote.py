"""Jobs of an experiment on the nodes of a Ray cluster, each as the process that it would be here.

Every node sees the experiment's folder at the same place (a home folder that all nodes mount), since jobs keep their
results there themselves. A node that ends takes its jobs with it, as a kill does here: what they have kept stays, and
the same command goes on with the rest.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from esrl.cluster.ray_session import Session

LOST = 255  # exit status of a job whose node has ended


def started(
    words: Sequence[str], variables: dict[str, str], folder: str | Path, preexec_fn: Callable[[], None] | None = None
) -> subprocess.Popen[str]:
    """The process of a job, whose lines can be read; "python" is this process's."""
    return subprocess.Popen(
        [sys.executable if word == "python" else word for word in words],
        env={**os.environ, **variables, "PYTHONUNBUFFERED": "1"},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",  # what is no text is none of the job's results
        preexec_fn=preexec_fn,
    )


class _Job:
    """A process on a node, in an actor of Ray's. Its second thread hears `send_signal` while the first one reads."""

    def __init__(self) -> None:
        self._process: Any = None
        self._asked = 0  # the signal that has come

    def lines(self, words: Sequence[str], variables: dict[str, str], folder: str) -> Iterator[str | int]:
        """Runs the process: the lines that it prints, and then its exit status."""
        self._process = started(words, variables, folder, preexec_fn=_heard)
        if self._asked:  # before there was a process
            self._process.send_signal(self._asked)
        with self._process.stdout as printed:
            # No `yield from`: Ray sends into its generators, which a file does not take.
            for line in printed:  # noqa: UP028
                yield line
        yield self._process.wait()

    def send_signal(self, number: int) -> None:
        """Sends the process a signal."""
        self._asked = number
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)


def _heard() -> None:
    """Ray's processes ignore SIGINT, and a process begins with what that which starts it ignores."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


class RemoteProcess:
    """A job on a node, with as much of `subprocess.Popen` as a pool needs.

    Attributes:
      stdout: its lines, as they come.
    """

    def __init__(self, session: Session, words: Sequence[str], variables: dict[str, str], folder: str) -> None:
        self._ray = session.ray
        options = {"num_cpus": 1, "max_restarts": 0, "max_concurrency": 2, "scheduling_strategy": "SPREAD"}
        self._actor = self._ray.remote(_Job).options(**options).remote()
        lines = self._actor.lines.options(num_returns="streaming")
        self._refs = lines.remote(list(words), variables, folder)
        self._status = LOST
        self._ended = threading.Event()
        self.stdout: Any = self._lines()

    def _lines(self) -> Iterator[str]:
        try:
            for ref in self._refs:
                found = self._ray.get(ref)
                if isinstance(found, int):
                    self._status = found
                else:
                    yield found
        except self._ray.exceptions.RayError as error:
            yield f"its node or process is gone ({type(error).__name__})\n"
        finally:
            with contextlib.suppress(Exception):  # its node may be gone
                self._ray.kill(self._actor)  # the core is free for the next job
            self._ended.set()

    def wait(self) -> int:
        """Its exit status."""
        self._ended.wait()
        return self._status

    def send_signal(self, number: int) -> None:
        """Sends it a signal."""
        self._actor.send_signal.remote(number)
