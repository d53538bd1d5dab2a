"""Runs that are killed and stopped over and over: do they end where an uninterrupted run ends, bit for bit?

    python -m experiments.survival.run                          # 1,000 kills and 500 signals, over all agents
    python -m experiments.survival.run --kills 40 --signals 20  # a short one
    python -m experiments.survival.run --cases ppo --seed 3

Each case is one run. A process trains it; it is killed (SIGKILL) or asked to stop (SIGINT, SIGTERM, SIGHUP; one, two or
three times); the next process goes on; and so forth. A third of the kills come at any time from the start of the
process, a third while it trains, a third at the moment when a checkpoint is being written. After each of them the rows
of `metrics.jsonl` have to be those of generations 1, 2, 3, ... without a hole or a double, the process has to end
within a minute, and what it said was saved has to be there. At the end the run is compared with one that nobody
interrupted.
"""

from __future__ import annotations

import ctypes
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from esrl.training.checkpoint import Checkpoints
from esrl.training.logs import Metrics
from experiments import script
from experiments.lab.store import Store, results

CARTPOLE, HOST = "gymnasium/phys2d/CartPole-v1", "gymnasium/CartPole-v1"
SMALL = ("--hidden", "8", "--population", "8")
AC = ("--hidden", "8", "--num-envs", "8", "--num-steps", "16", "--num-minibatches", "2", "--num-epochs", "1")
CASES = {
    "eggroll": (CARTPOLE, "--agent", "eggroll", *SMALL),
    "eggroll, by signal": (CARTPOLE, "--agent", "eggroll", *SMALL, "--max-population", "64"),
    "open_es": (CARTPOLE, "--agent", "open_es", *SMALL),
    "eggroll_ac": (CARTPOLE, "--agent", "eggroll_ac", *AC),
    "eggroll_ac, weights": (CARTPOLE, "--agent", "eggroll_ac", *AC, "--noise-space", "weights"),
    "ppo": (CARTPOLE, "--agent", "ppo", *AC),
    "eggroll, host": (f"{HOST}?vectorization=sync", "--agent", "eggroll", *SMALL),
    "eggroll, 2 workers": (f"{HOST}?vectorization=workers&workers=2", "--agent", "eggroll", *SMALL),
    "eggroll, 2 devices": (CARTPOLE, "--agent", "eggroll", *SMALL),
}
ENDLESS = ("--generations", "1000000", "--num-evals", "0", "--checkpoint-every", "1")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENCE = 60.0  # seconds after which a process that was to end hangs
WRONG = ("rows_lost", "rows_doubled", "hangs", "untrue")
COLUMNS = ("case", "kills", "signals", "generations", *WRONG, "same", "seconds")


@dataclass
class Arguments:
    """The command line."""

    kills: int = 1000  # over all cases
    signals: int = 500  # over all cases
    cases: tuple[str, ...] = tuple(CASES)
    seed: int = 0  # of the moments
    out: Path = results("survival") / "survival.csv"


def _begin() -> None:
    """In each process, before it trains."""
    # Where this script is a shell's background job, SIGINT is ignored, and would be in every process.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: it ends with this script


class Chain:
    """A run and the processes that train it, one after another."""

    def __init__(self, name: str, folder: Path, seed: int) -> None:
        self.name, self.run, self.log = name, folder / "run", folder / "log.txt"
        self.random = random.Random(f"{name} {seed}")
        self.devices = 2 if name.endswith("2 devices") else 1
        self.wrong: Counter[str] = Counter()

    def start(self, arguments: tuple[str, ...] | None = None) -> subprocess.Popen:
        """A process that begins the run, or goes on with it."""
        begun = (self.run / "recipe.toml").exists()
        own = ("--resume", str(self.run)) if begun else (*CASES[self.name], *ENDLESS, "--out", str(self.run))
        flags = f"--xla_force_host_platform_device_count={self.devices} --xla_cpu_multi_thread_eigen=false"
        with self.log.open("w") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "esrl", "train", *(arguments or own)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
                preexec_fn=_begin,
            )

    def kill(self) -> None:
        """Trains for a while, and is killed."""
        process, kind = self.start(), self.random.randrange(3)
        if kind == 0:
            time.sleep(self.random.uniform(0, 8))
        else:
            self._wait_for_generation(process)
            time.sleep(self.random.uniform(0, 0.5))
        if kind == 2:
            self._wait_for_save(process)
        process.kill()
        process.wait()
        self._look(process)

    def ask(self) -> None:
        """Trains for a while, and is asked to stop."""
        process = self.start()
        if self.random.random() < 0.8:
            self._wait_for_generation(process)
        time.sleep(self.random.uniform(0, 1))
        number, times = self.random.choice(SIGNALS), self.random.choice((1, 1, 2, 3))
        asked = f"{number.name} {times} times"
        for _ in range(times):
            process.send_signal(number)
            time.sleep(self.random.uniform(0, 0.3))
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.wrong["hangs"] += 1
            print(f"{self.name}: {asked} does not end it", self.log.read_text(), sep="\n", file=sys.stderr)
            process.kill()
            process.wait()
        self._look(process, said=self.log.read_text(errors="replace"))

    def _wait_for_generation(self, process: subprocess.Popen) -> None:
        before = self._last()
        until = time.monotonic() + PATIENCE
        while self._last() == before and process.poll() is None and time.monotonic() < until:
            time.sleep(0.02)

    def _wait_for_save(self, process: subprocess.Popen) -> None:
        """Until a file is there that is being written; looked for without a pause."""
        until = time.monotonic() + 2
        while time.monotonic() < until and process.poll() is None:
            if any(name.startswith(".") and "part" in name for name in os.listdir(self.run / "checkpoints")):
                return

    def _last(self) -> int:
        try:
            return Metrics(self.run / "metrics.jsonl").last().get("generation", 0)
        except OSError:
            return 0

    def _look(self, process: subprocess.Popen, said: str = "") -> None:
        """Compares what is on disk with what has to be, and with what was said."""
        rows = [row["generation"] for row in Metrics(self.run / "metrics.jsonl").rows()]
        self.wrong["rows_lost"] += len(set(range(1, max(rows, default=0) + 1)) - set(rows))
        self.wrong["rows_doubled"] += len(rows) - len(set(rows))
        saved = max(Checkpoints(self.run / "checkpoints").generations(), default=0)
        if saved > max(rows, default=0):
            self.wrong["rows_lost"] += 1
        told = re.search(r"stopped after generation (\d+); (everything|generation (\d+)) is saved", said)
        if told and saved != int(told[3] or told[1]):
            self.wrong["untrue"] += 1
        if "Traceback" in self.log.read_text(errors="replace"):
            self.wrong["untrue"] += 1
            shutil.copy(self.log, self.log.with_name(f"traceback-{self.wrong['untrue']}.txt"))

    def same(self) -> tuple[int, bool]:
        """The last generation that is saved, and whether an uninterrupted run has the same state there."""
        checkpoints = Checkpoints(self.run / "checkpoints")
        generation = checkpoints.generations()[-1]
        whole = self.run.with_name("whole")
        few = ("--generations", str(generation), "--num-evals", "0")
        self.start((*CASES[self.name], *few, "--out", str(whole))).wait()
        states = [load_file(folder / "checkpoints" / f"{generation:08d}.safetensors") for folder in (self.run, whole)]
        return generation, states[0].keys() == states[1].keys() and all(
            np.array_equal(states[0][name], states[1][name], equal_nan=True) for name in states[0]
        )


def survived(name: str, kills: int, signals: int, seed: int) -> dict[str, Any]:
    """A case's row."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="esrl-survival-") as folder:
        chain = Chain(name, Path(folder), seed)
        moves = [chain.kill] * kills + [chain.ask] * signals
        chain.random.shuffle(moves)
        for i, move in enumerate(moves):
            move()
            if i % 10 == 9:
                print(f"{name}: {i + 1} of {len(moves)}, {dict(chain.wrong)}", flush=True)
        while not (Checkpoints(chain.run / "checkpoints").generations()):  # killed before it had any
            chain.ask()
        generation, same = chain.same()
        for text in Path(folder).glob("traceback-*.txt"):
            print(text.read_text(), file=sys.stderr)
    wrong = {column: chain.wrong[column] for column in WRONG}
    row = {"case": name, "seed": seed, "kills": kills, "signals": signals, "generations": generation, **wrong}
    return row | {"same": same, "seconds": round(time.monotonic() - begun)}


def main() -> None:
    arguments = script.options(Arguments, __doc__)
    unknown = set(arguments.cases) - set(CASES)
    if unknown:
        script.wrong(f"there is no case {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    store = Store(arguments.out, key=("case", "seed"))
    with store.alone():
        for name, _ in store.missing([(name, arguments.seed) for name in arguments.cases]):
            i = arguments.cases.index(name)
            kills, signals = (len(range(i, n, len(arguments.cases))) for n in (arguments.kills, arguments.signals))
            store.add([survived(name, kills, signals, arguments.seed)])
    rows = store.read()
    print(script.table(COLUMNS, [[row[column] for column in COLUMNS] for row in rows]))
    bad = [row["case"] for row in rows if not row["same"] or any(row[column] for column in WRONG)]
    if bad:
        sys.exit(f"not as it should be: {', '.join(bad)}")


if __name__ == "__main__":
    main()
