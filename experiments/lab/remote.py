"""Jobs of an experiment on the nodes of a Ray cluster, each as the process that it would be here.

Every node sees the experiment's folder at the same place (a home folder that all nodes mount), since jobs keep their
results there themselves. A node that ends takes its jobs with it, as a kill does here: what they have kept stays, and
the same command goes on with the rest.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from esrl.cluster.ray_session import Session

LOST = 255  # exit status of a job whose node has ended


def lines_of(words: Sequence[str], variables: dict[str, str], folder: str) -> Iterator[str | int]:
    """Runs a process on a node: the lines that it prints, and then its exit status."""
    command = [sys.executable if word == "python" else word for word in words]
    own = {**os.environ, **variables, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, env=own, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield from process.stdout or ()
        yield process.wait()
    finally:  # the task is canceled
        if process.poll() is None:
            process.send_signal(signal.SIGINT)


class RemoteProcess:
    """A job on a node, with as much of `subprocess.Popen` as a pool needs.

    Attributes:
      stdout: its lines, as they come.
    """

    def __init__(self, session: Session, words: Sequence[str], variables: dict[str, str], folder: str) -> None:
        self._ray = session.ray
        task = self._ray.remote(lines_of).options(num_cpus=1, max_retries=0, num_returns="streaming")
        self._refs = task.remote(list(words), variables, folder)
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
            self._ended.set()

    def wait(self) -> int:
        """Its exit status."""
        self._ended.wait()
        return self._status

    def send_signal(self, number: int) -> None:
        """Ends it, by whichever signal."""
        self._ray.cancel(self._refs)
