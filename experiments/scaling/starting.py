"""Starts the processes of a measurement, each on a host of its own, and reads what the first one printed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from experiments.lab.store import ROOT
from experiments.scaling.namespaces import hosts


def measure(
    processes: int, settings: Sequence[dict[str, Any]], generations: int, gather: Sequence[int] = (), timed: bool = True
) -> list[dict[str, Any]]:
    """A row for each setting (and each size that is gathered), from process 0 of so many, each with one CPU device.

    Where nothing is `timed`, programs are compiled with as little optimization as XLA has.
    """
    with hosts(processes) as there:
        with socket.create_server(("", 0)) as server:
            port = server.getsockname()[1]
        environment = os.environ | {
            "XLA_FLAGS": "--xla_force_host_platform_device_count=1 --xla_cpu_multi_thread_eigen=false"
            + ("" if timed else " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"),
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(ROOT),
        }
        started = []
        for i, host in enumerate(there):
            told = {
                "settings": list(settings),
                "generations": generations,
                "processes": processes,
                "gather": list(gather),
            }
            if processes > 1:
                told |= {"coordinator": f"{there[0].address}:{port}", "process_id": i}
            words = [*host.prefix, sys.executable, "-m", "experiments.scaling.worker", json.dumps(told)]
            out = subprocess.PIPE if i == 0 else subprocess.DEVNULL
            started.append(subprocess.Popen(words, stdout=out, text=True, env=environment, cwd=ROOT))
        try:
            said = started[0].communicate()[0]
            for process in started:
                if process.wait():
                    raise SystemExit(f"a process ended with {process.returncode}")
        finally:
            for process in started:
                process.kill()
    return [json.loads(line) for line in said.splitlines() if line.startswith("{")]
