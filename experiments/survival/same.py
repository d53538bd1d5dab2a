"""What has to be equal for the same seed to give the same parameters, bit for bit?

    python -m experiments.survival.same

Short runs of each agent, alike but for one thing: nothing, the number of devices, the chunk, flags of XLA, the threads
of a matrix product, a fresh or a filled cache of compiled programs. The largest difference of a parameter is shown.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from experiments import script
from experiments.lab.store import Store, results
from experiments.survival.run import AC, CARTPOLE

DEVICES = "--xla_force_host_platform_device_count={}"
ES = ("--hidden", "32", "--population", "64")
AGENTS = {"eggroll": ES, "open_es": ES, "eggroll_ac": AC, "ppo": AC}
CHANGES: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "nothing": ({}, ()),
    "two devices": ({"XLA_FLAGS": DEVICES.format(2)}, ()),
    "four devices": ({"XLA_FLAGS": DEVICES.format(4)}, ()),
    "chunks of 8 pairs": ({}, ("--chunk-pairs", "8")),
    "one thread in a matrix product": ({"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}, ()),
    "XLA's least optimization": ({"XLA_FLAGS": "--xla_backend_optimization_level=0"}, ()),
    "no fast math of XLA": ({"XLA_FLAGS": "--xla_cpu_enable_fast_math=false"}, ()),
}


@dataclass
class Arguments:
    """The command line."""

    generations: int = 30
    agents: tuple[str, ...] = tuple(AGENTS)
    out: Path = results("survival") / "same.csv"


def parameters(agent: str, change: str, generations: int, folder: Path) -> dict[str, np.ndarray]:
    """The parameters of a run of its own process."""
    environment, more = CHANGES[change]
    out = folder / f"{agent} {change}"
    command = [sys.executable, "-m", "esrl", "train", CARTPOLE, "--agent", agent, *AGENTS[agent], *more]
    command += ["--generations", str(generations), "--num-evals", "0", "--out", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | environment)
    state = load_file(max((out / "checkpoints").glob("*.safetensors")))
    return {name: value for name, value in state.items() if name.startswith("params")}


def main() -> None:
    arguments = script.options(Arguments, __doc__)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="esrl-same-") as folder:
        for agent in arguments.agents:
            base = parameters(agent, "nothing", arguments.generations, Path(folder))
            for change in CHANGES:
                if "--chunk-pairs" in CHANGES[change][1] and AGENTS[agent] is not ES:
                    continue  # there are no pairs
                with tempfile.TemporaryDirectory(prefix="esrl-same-") as other:
                    found = parameters(agent, change, arguments.generations, Path(other))
                largest = max(float(np.abs(found[name] - base[name]).max()) for name in base)
                same = all(np.array_equal(found[name], base[name]) for name in base)
                row = {"agent": agent, "other": change, "generations": arguments.generations}
                rows.append(row | {"same": same, "largest_difference": float(f"{largest:.2g}")})
    Store(arguments.out, key=("agent", "other")).add(rows, replace=True)
    print(script.table(list(rows[0]), [row.values() for row in rows]))


if __name__ == "__main__":
    main()
