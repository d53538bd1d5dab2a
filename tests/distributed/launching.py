"""Starts processes that train together, on hosts of their own where the system allows it, and reads what they found."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments.scaling.namespaces import hosts

HERE = Path(__file__).parent
PATIENCE = 1200  # seconds, on a machine that is busy


class Group:
    """Processes of one program.

    Attributes:
      processes: the subprocesses. folders: where each one writes.
    """

    def __init__(self, commands: list[list[str]], folders: list[Path], devices: int) -> None:
        environment = os.environ | {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
            " --xla_llvm_disable_expensive_passes=true --xla_cpu_multi_thread_eigen=false",
            "PYTHONPATH": os.pathsep.join([str(HERE.parent.parent), str(HERE.parent), str(HERE)]),
            "JAX_PLATFORMS": "cpu",
        }
        self.folders = folders
        self.processes = [
            subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
            for words in commands
        ]

    def ended(self) -> list[tuple[int, str, str]]:
        """Status, standard output and standard error of each, when all have ended."""
        found = []
        for process in self.processes:
            out, err = process.communicate(timeout=PATIENCE)
            found.append((process.returncode, out, err))
        return found

    def found(self) -> list[dict[str, dict[str, Any]]]:
        """What each found, by the names of its tasks; all have ended well."""
        for status, out, err in self.ended():
            assert status == 0, f"{out}\n{err}"
        return [{path.stem: dict(np.load(path)) for path in sorted(folder.glob("*.npz"))} for folder in self.folders]


@contextlib.contextmanager
def running(path: Path, number: int, devices: int, tasks: dict[str, Any], *each: dict[str, Any]) -> Iterator[Group]:
    """So many processes with so many devices each, which do the same tasks; `each` says what one has been told else."""
    with hosts(number) as there:
        commands, folders = [], []
        coordinator = f"{there[0].address}:{free_port()}"
        for i, host in enumerate(there):
            folder = path / f"process{i}"
            folder.mkdir(parents=True)
            job = {"tasks": tasks, "out": str(folder), "process_id": i}
            if number > 1:
                job |= {"coordinator": coordinator, "processes": number}
            (folder / "job.json").write_text(json.dumps(job | (each[i] if each else {})))
            folders.append(folder)
            commands.append([*host.prefix, sys.executable, str(HERE / "worker.py"), str(folder / "job.json")])
        with _started(Group(commands, folders, devices)) as group:
            yield group


@contextlib.contextmanager
def training(number: int, devices: int, *arguments: str) -> Iterator[Group]:
    """`esrl train` with these arguments in so many processes, which find each other."""
    with hosts(number) as there:
        coordinator = f"{there[0].address}:{free_port()}"
        joined = ["--coordinator", coordinator, "--processes", str(number), "--process-id"]
        command = [sys.executable, "-m", "esrl", "train", *arguments, *joined]
        with _started(Group([[*host.prefix, *command, str(i)] for i, host in enumerate(there)], [], devices)) as group:
            yield group


@contextlib.contextmanager
def _started(group: Group) -> Iterator[Group]:
    try:
        yield group
    finally:
        for process in group.processes:
            if process.poll() is None:
                process.kill()
                process.communicate()


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]
