"""Files of runs that are damaged, or written by somebody who means ill: is it always the clear error, and nothing else?

    python -m experiments.survival.fuzz                     # 100,000 recipes, 10,000 files of each other kind
    python -m experiments.survival.fuzz --recipes 2000 --files 500

Recipes, checkpoints, metrics files and stored spaces are mutated: bits, bytes, lines, values; some recipes that still
read are built. What may happen: the file is read as what it is, or one `EsrlError` (for a checkpoint `Broken`, after
which an older one is used). An audit hook watches meanwhile: nothing is imported, no process starts, nothing is opened
for writing, and nothing outside of the folder is opened.
"""

from __future__ import annotations

import collections
import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

import esrl
from esrl.training import state_file, stored_spaces
from esrl.training.logs import Metrics
from esrl.training.recipe import read
from experiments import script
from experiments.lab.store import Store, results

RECIPES = (
    """env = "gymnasium/phys2d/CartPole-v1"
agent = "eggroll"
env_steps = 1e6
seed = 3
keep = "best"

[policy]
network = "mlp"
hidden = [16, 16]
activation = "tanh"

[options]
population = 32
sigma = 0.05
rank = 2
""",
    """env = "gymnasium/phys2d/Pendulum-v0?max_episode_steps=50"
agent = "ppo"
generations = 20

[policy]
network = "gru"
hidden = [8]

[options]
num_envs = 16
num_minibatches = 4
learning_rate = 3e-4
""",
    """env = "gymnasium/CartPole-v1"
agent = "eggroll_ac"
seconds = 60.0
num_evals = 5

[options]
noise_space = "weights"
num_steps = 16
""",
)
VALUES = (
    "0", "-1", "1e400", "nan", "-inf", "true", '""', "[]", "{}", "[[[[]]]]", "9" * 5000, "-" + "9" * 30, "1" + "0" * 18,
    "1e-400", '"' + "x" * 100_000 + '"', '"\\u0000"', '"custom"', '"os:abort"', '"/etc/passwd:x"', '"../../x.py:X"',
    '"subprocess:run?args=touch /tmp/esrl-fuzz"', "[1000000000, 1000000000]", "[" + "8, " * 5000 + "8]", "1979-05-27",
    "[" * 3000 + "]" * 3000, "[1, 'a']", "2147483648", "[0]", "0.5", '"best"', '"brax/hopper/../../x"', "07:32:00",
    '"\\ud800"', "{a = {b = {c = 1}}}", '"gymnasium/os:x"',
)  # fmt: skip
PATIENCE = 20  # seconds that reading or building may take


@dataclass
class Arguments:
    """The command line."""

    recipes: int = 100_000
    built: int = 1000  # of the recipes that read, how many are made into agents
    files: int = 10_000  # mutated checkpoints, and as many metrics files and stored spaces
    seed: int = 0
    out: Path = results("survival") / "fuzz.csv"


class Slow(BaseException):
    """A call took too long."""


class Watched:
    """Counts what an audit hook sees that must not happen, while it is switched on."""

    def __init__(self) -> None:
        self.on, self.seen = False, collections.Counter[str]()
        self.folder = ""
        sys.addaudithook(self._hear)

    def _hear(self, event: str, given: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open":
            path, mode, flags = (*given, None, 0)[:3]
            writing = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) if isinstance(flags, int) else False
            inside = isinstance(path, int) or str(path).startswith(self.folder)
            if writing or not inside:
                self.seen[f"open {path!r} {mode!r}"[:100]] += 1
        elif event in ("import", "exec", "os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork"):
            self.seen[f"{event} {str(given)[:80]}"] += 1
        elif event.startswith(("socket.", "shutil.", "os.remove", "os.rename", "os.truncate", "os.mkdir", "os.link")):
            self.seen[event] += 1


def mutated(data: bytes, draw: random.Random) -> bytes:
    """Bytes with one to four of their bits, bytes or stretches changed."""
    found = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4))):
        place, end = sorted((draw.randrange(len(found) + 1), draw.randrange(len(found) + 1)))
        kind = draw.randrange(7)
        if not found:
            found += draw.randbytes(draw.randrange(40))
        elif kind < 3:
            found[min(place, len(found) - 1)] ^= 1 << draw.randrange(8)
        elif kind == 3:
            del found[place : min(end, place + 50)]
        elif kind == 4:
            found[place:place] = found[place : min(end, place + 2000)]
        elif kind == 5:
            found[place:place] = draw.randbytes(draw.randrange(1, 9))
        else:
            del found[draw.choice((place, end)) :]
    return bytes(found)


def mutated_recipe(text: str, draw: random.Random) -> bytes:
    """A recipe with other values, lines or bytes."""
    lines = text.splitlines()
    for _ in range(draw.choice((1, 1, 2, 3))):
        i = draw.randrange(len(lines))
        kind = draw.randrange(6)
        if kind < 3 and " = " in lines[i]:
            lines[i] = lines[i].partition(" = ")[0] + " = " + draw.choice(VALUES)
        elif kind == 3:
            other = draw.choice(RECIPES).splitlines()
            lines.insert(i, draw.choice(other))
        elif kind == 4:
            lines[i] = ""
        else:
            return mutated("\n".join(lines).encode(), draw)
    return "\n".join(lines).encode("utf-8", "surrogatepass")


@contextlib.contextmanager
def watched(watch: Watched | None) -> Iterator[None]:
    """Within it a call may not take long, and the hook listens where one is given."""

    def late(*_: Any) -> None:
        raise Slow

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(PATIENCE)
    if watch is not None:
        watch.on = True
    try:
        yield
    finally:
        if watch is not None:
            watch.on = False
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class Tally:
    """What came out, and the first files of what must not."""

    def __init__(self, what: str, folder: Path) -> None:
        self.what, self.folder, self.found = what, folder, collections.Counter[str]()

    def take(self, call: Callable[[], Any], data: bytes, watch: Watched | None) -> Any:
        """Calls, and counts how it ended; returns what it gave."""
        before = 0 if watch is None else sum(watch.seen.values())
        try:
            with watched(watch):
                found = call()
            ending = "read"
        except (esrl.EsrlError, state_file.Broken):
            found, ending = None, "error"
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            found, ending = None, f"raw {type(error).__name__}"
        if watch is not None and sum(watch.seen.values()) > before:
            ending += ", and more"
        self.found[ending] += 1
        if ending not in ("read", "error") and self.found[ending] <= 3:
            place = self.folder / f"{self.what}-{ending.replace(' ', '-')}-{self.found[ending]}"
            place.write_bytes(data)
            print(f"{self.what}: {ending}, see {place}", flush=True)
        return found

    def row(self, seed: int, seconds: float) -> dict[str, Any]:
        bad = sum(number for ending, number in self.found.items() if ending not in ("read", "error"))
        return {
            "what": self.what,
            "seed": seed,
            "mutated": sum(self.found.values()),
            "read": self.found["read"],
            "error": self.found["error"],
            "otherwise": bad,
            "seconds": round(seconds, 1),
        }


def recipes(arguments: Arguments, watch: Watched, folder: Path, kept: Path) -> list[dict[str, Any]]:
    """Mutated recipes: read, and some of them built."""
    draw, reading, building = random.Random(arguments.seed), Tally("recipes", kept), Tally("built", kept)
    path, begun, spent = folder / "recipe.toml", time.monotonic(), 0.0
    read_once(path)
    for _ in range(arguments.recipes):
        data = mutated_recipe(draw.choice(RECIPES), draw)
        path.write_bytes(data)
        found = reading.take(lambda: read(path, run=True), data, watch)
        if found is not None and sum(building.found.values()) < arguments.built:
            now = time.monotonic()
            env = found.env.partition("?")[0].rpartition(":")[0]
            if not env:  # code that it names would be run, as it says
                building.take(found.build, data, None)
            spent += time.monotonic() - now
    return [reading.row(arguments.seed, time.monotonic() - begun - spent), building.row(arguments.seed, spent)]


def read_once(path: Path) -> None:
    """Imports whatever reading needs, before anybody listens."""
    for text in RECIPES:
        path.write_text(text)
        read(path, run=True).build()


def files(arguments: Arguments, watch: Watched, folder: Path, kept: Path) -> list[dict[str, Any]]:
    """Mutated checkpoints, metrics files and stored spaces."""
    agent = esrl.eggroll("gymnasium/phys2d/CartPole-v1", esrl.mlp((4,)), population=4)
    run = esrl.train(agent, generations=3, num_evals=0, out=folder / "run").out
    assert run is not None
    template, draw = agent.init(jax.random.key(0)), random.Random(arguments.seed)
    state = run / "checkpoints" / "00000003.safetensors"
    rows = []
    for what, path, call in (
        ("checkpoints", state, lambda: state_file.read(state, template)),
        ("metrics", run / "metrics.jsonl", lambda: _metrics(run / "metrics.jsonl")),
        ("spaces", run / stored_spaces.NAME, lambda: stored_spaces.read(run / stored_spaces.NAME)),
    ):
        whole, tally, begun = path.read_bytes(), Tally(what, kept), time.monotonic()
        call()
        for _ in range(arguments.files):
            data = mutated(whole, draw)
            path.write_bytes(data)
            tally.take(call, data, watch)
        path.write_bytes(whole)
        rows.append(tally.row(arguments.seed, time.monotonic() - begun))
    return rows


def _metrics(path: Path) -> None:
    metrics = Metrics(path)
    metrics.last()
    metrics.rows()


def main() -> None:
    arguments = script.options(Arguments, __doc__)
    store = Store(arguments.out, key=("what", "seed"))
    kept = Path(tempfile.mkdtemp(prefix="esrl-fuzz-"))
    with tempfile.TemporaryDirectory(prefix="esrl-fuzz-") as folder:
        watch = Watched()
        watch.folder = folder
        rows = [*files(arguments, watch, Path(folder), kept), *recipes(arguments, watch, Path(folder), kept)]
    store.add(rows, replace=True)
    head = ("what", "mutated", "read", "error", "otherwise", "seconds")
    print(script.table(head, [[row[name] for name in head] for row in rows]))
    for event, number in watch.seen.most_common():
        print(f"seen {number} times: {event}")
    if any(row["otherwise"] for row in rows):
        sys.exit(f"not as it should be; the files are in {kept}")
    kept.rmdir()


if __name__ == "__main__":
    main()
