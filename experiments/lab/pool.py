"""Jobs of an experiment in processes of their own, some at a time, each on its own cores, with a view of them all."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from esrl.cluster.ray_session import Session
from esrl.core.runtime import cores
from esrl.core.types import EsrlError
from experiments.lab.remote import RemoteProcess, started
from experiments.lab.store import ROOT

MARK = "@@progress "  # begins a line of a job's standard output that says how far it is


@contextlib.contextmanager
def stoppable(said: str) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the script with this sentence, and what esrl refuses with its own; never a traceback."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(said)
    except EsrlError as error:
        sys.exit(str(error))


class Job(NamedTuple):
    """A process to run.

    Attributes:
      name: what it is called in the view.
      command: its words, from the repository's root: "python" is this process's.
      environment: variables beside this process's own.
    """

    name: str
    command: Sequence[str]
    environment: dict[str, str] = {}  # noqa: RUF012


def report(done: float, text: str = "") -> None:
    """Called in a job: says which part of it is done (0 to 1), and something to show beside that."""
    print(MARK + json.dumps({"done": float(done), "text": text}), flush=True)


def share(processes: int) -> list[set[int]]:
    """The cores of each of so many processes; all cores for each where the system does not let one choose."""
    if not hasattr(os, "sched_getaffinity"):
        return [set()] * processes
    mine = sorted(os.sched_getaffinity(0))
    each = max(len(mine) // processes, 1)
    return [{mine[(i * each + j) % len(mine)] for j in range(each)} for i in range(processes)]


def run(
    jobs: Sequence[Job],
    processes: int | None = None,
    finished: Callable[[Job, int], None] | None = None,
    ray_address: str | None = None,
) -> None:
    """Runs all jobs, `processes` at a time: one for each core unless given. Ctrl-C ends them all.

    What a job prints, apart from `report`, is shown with its name before it. A job whose parent was killed ends when it
    next reports: nobody reads it any more.

    Args:
      jobs: in the order in which they begin.
      processes: how many run at once.
      finished: called with each job and its exit status when it ends.
      ray_address: of the cluster whose nodes run them, as `esrl.iterate` has it; None runs them here.
    """
    session = None if ray_address is None else Session(ray_address, processes)
    try:
        _run(jobs, processes or (cores() if session is None else session.cores), finished, session)
    finally:
        if session is not None:
            session.close()


def _run(
    jobs: Sequence[Job], processes: int, finished: Callable[[Job, int], None] | None, session: Session | None
) -> None:
    processes = max(min(processes, len(jobs)), 1)
    waiting, free, lock, stopping = list(jobs), share(processes), threading.Lock(), threading.Event()
    alive: set[Any] = set()
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"), TimeElapsedColumn()
    with Progress(*columns, console=console, refresh_per_second=2) as view:
        whole = view.add_task("all", total=len(jobs), text=f"0 of {len(jobs)}")

        def work(own: set[int]) -> None:
            while True:
                with lock:
                    if not waiting:
                        return
                    job = waiting.pop(0)
                    process = _start(job, own) if session is None else _start_remotely(job, session)
                    alive.add(process)
                task = view.add_task(job.name, total=1.0, text="")
                for line in process.stdout or ():
                    if line.startswith(MARK):
                        said: dict[str, Any] = json.loads(line[len(MARK) :])
                        view.update(task, completed=said["done"], text=said["text"])
                    elif line.strip() and not stopping.is_set():  # then they say that they were interrupted
                        view.console.print(f"{job.name}: {line.rstrip()}", markup=False)
                status = process.wait()
                if process.stdout:
                    process.stdout.close()
                view.remove_task(task)
                with lock:
                    alive.discard(process)
                    if finished and not stopping.is_set():
                        finished(job, status)
                    ended = len(jobs) - len(waiting) - len(alive)
                    view.update(whole, completed=ended, text=f"{ended} of {len(jobs)}")

        broken: list[Exception] = []

        def guarded(own: set[int]) -> None:
            try:
                work(own)
            except Exception as error:  # or its jobs would be left out without a word
                broken.append(error)

        threads = [threading.Thread(target=guarded, args=(own,), daemon=True) for own in free]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive() and not broken:
                    thread.join(0.2)  # a join without a limit would keep Ctrl-C waiting
            if broken:
                raise broken[0]
        except BaseException:
            stopping.set()
            waiting.clear()
            for process in tuple(alive):
                process.send_signal(signal.SIGINT)
            raise


def _start_remotely(job: Job, session: Session) -> RemoteProcess:
    return RemoteProcess(session, job.command, job.environment, str(ROOT))


def _start(job: Job, own: set[int]) -> subprocess.Popen[str]:
    process = started(job.command, job.environment, ROOT)
    if own:
        os.sched_setaffinity(process.pid, own)  # long before it imports JAX, which counts its cores
    return process
