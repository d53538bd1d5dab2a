"""The study: every agent tuned and then measured in twelve environments, with the same trials and seconds for all.

    python -m experiments.study.run                        # whatever is missing, for hours; goes on after a kill
    python -m experiments.study.run gymnax/Pendulum-v1     # of this environment alone
    python -m experiments.study.run --list                 # the commands that it runs

It runs `experiments.study.tune` for each environment with its own seconds, then scores the random policy in the worlds
of the final runs, and `experiments.study.analysis` on what there is.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from experiments import script
from experiments.lab.store import ROOT, results

# Seconds of training on one core, of a trial and of a final run. Where a step costs more, both are longer.
SECONDS = {
    "gymnax/CartPole-v1": (4, 15),
    "gymnax/Pendulum-v1": (5, 20),
    "brax/inverted_double_pendulum": (8, 30),
    "jumanji/Game2048-v1": (6, 30),
    "navix/Navix-Dynamic-Obstacles-6x6-Random-v0": (6, 30),
    "jumanji/Knapsack-v1": (6, 30),
    "gymnax/Breakout-MinAtar": (8, 30),
    "brax/hopper": (10, 40),
    "navix/Navix-DoorKey-8x8-v0": (8, 60),
    "jumanji/Snake-v1": (6, 30),
    "brax/halfcheetah": (10, 60),
    "navix/Navix-FourRooms-v0": (6, 30),
}
TRIALS, SEEDS = 20, 5
OF_TRIAL = ("--trials", str(TRIALS), "--space", "study", "--evaluations", "3", "--episodes", "64")
OF_FINAL = ("--final-seeds", str(SEEDS), "--final-evaluations", "8", "--final-early", "3")


@dataclass
class Arguments:
    """The command line."""

    envs: tyro.conf.Positional[tuple[str, ...]] = ()  # all of the study unless given
    processes: int | None = None  # at once, each on its own cores; one for each core unless given
    ray_address: str | None = None  # of a Ray cluster whose nodes tune and measure (lab/remote.py)
    list: bool = False  # print the commands, and run none
    out: Path = results("study") / "study"
    recipes_out: Path = ROOT / "agents" / "study"


def commands(arguments: Arguments) -> list[list[str]]:
    """What the study runs, in order."""
    envs = arguments.envs or tuple(SECONDS)
    for env in envs:
        if env not in SECONDS:
            script.wrong(f"{env} is not in the study, whose environments are {', '.join(SECONDS)}")
    places = ["--out", str(arguments.out)]
    few = ["--processes", str(arguments.processes)] if arguments.processes else []
    few += ["--ray-address", arguments.ray_address] if arguments.ray_address else []
    found = []
    for env in envs:
        trial, final = (str(seconds) for seconds in SECONDS[env])
        own = ["--seconds", trial, "--final-seconds", final, "--recipes-out", str(arguments.recipes_out)]
        found.append(["experiments.study.tune", env, *OF_TRIAL, *OF_FINAL, *own, *places, *few])
    chance = ["--agents", "random", "--no-random", "--recipes", str(arguments.recipes_out), "--first-seed", "1000"]
    found.append(["experiments.study.compare", *envs, *chance, "--seeds", str(SEEDS), *places])
    found.append(["experiments.study.analysis", "--results", str(arguments.out)])
    return found


def main() -> None:
    arguments = script.options(Arguments, __doc__)
    failed = []
    for words in commands(arguments):
        line = "python -m " + shlex.join(words)
        print(line, flush=True)
        if not arguments.list and subprocess.run([sys.executable, "-m", *words], cwd=ROOT).returncode:
            failed.append(line)
    if failed:
        sys.exit("failed, and the same command goes on: " + "; ".join(failed))


if __name__ == "__main__":
    main()
