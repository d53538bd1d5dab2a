"""How long does a person wait? Seconds until the first character, the first generation, a refusal, a listing.

    python -m experiments.first_seconds.run                      # of this checkout
    python -m experiments.first_seconds.run --of path/to/older   # of another one, beside it

Each case is a process of its own, `--repeats` times; the table has the median of CPU seconds (of the process and its
children) and of seconds on the clock, with the lowest and the highest. Compiled programs are in JAX's cache after the
first time, which is left out.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from experiments import script
from experiments.lab.store import ROOT

TRAIN = ("train", "brax/hopper", "--env-steps", "1e9", "--num-evals", "0", "--out", "run")
CASES: dict[str, tuple[tuple[str, ...], str]] = {  # words, and until when
    "a mistyped environment is refused": (("train", "brax/hoper"), "end"),
    "a mistyped flag is refused": (("train", "brax/hopper", "--populaton", "8"), "end"),
    "a folder that holds files is refused": (("train", "brax/hopper", "--out", "."), "end"),
    "esrl --version": (("--version",), "end"),
    "esrl envs": (("envs",), "end"),
    "esrl envs cartpole": (("envs", "cartpole"), "end"),
    "training: first character": (TRAIN, "character"),
    "training: first generation": (TRAIN, "generation"),
}
PATIENCE = 300.0


@dataclass
class Arguments:
    """The command line."""

    of: Path = ROOT  # a checkout
    repeats: int = 5


def once(words: tuple[str, ...], until: str, of: Path) -> tuple[float, float]:
    """CPU seconds and seconds on the clock until it is so."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "file").write_text("")
        begun = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "esrl", *words],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": str(of), "PYTHONUNBUFFERED": "1"},
        )
        assert process.stdout is not None
        if until == "character":
            process.stdout.read(1)
        elif until == "generation":
            wait_for(lambda: _holds(Path(folder, "run", "metrics.jsonl")))
        else:
            process.stdout.read()  # until it is closed, which is when the process ends
        wall = time.monotonic() - begun
        if until != "end":
            process.kill()
        _, status, used = os.wait4(process.pid, 0)  # and not `wait`, which does not say what was used
        process.returncode = os.waitstatus_to_exitcode(status)
        cpu = used.ru_utime + used.ru_stime
        process.stdout.close()
        shutil.rmtree(Path(folder, "run"), ignore_errors=True)
        return cpu, wall


def wait_for(there: Callable[[], bool]) -> None:
    """Waits until something is so."""
    until = time.monotonic() + PATIENCE
    while not there() and time.monotonic() < until:
        time.sleep(0.01)


def _holds(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def main() -> None:
    arguments = script.options(Arguments, __doc__)
    script.at_least(arguments, 1, "repeats")
    rows = []
    for name, (words, until) in CASES.items():
        once(words, until, arguments.of)
        found = [once(words, until, arguments.of) for _ in range(arguments.repeats)]
        rows.append([name, *(_shown([pair[i] for pair in found]) for i in range(2))])
    print(script.table(["until", "CPU seconds", "seconds"], rows))


def _shown(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


if __name__ == "__main__":
    main()
