"""What the comparisons with other libraries share: held-out scores on esrl's worlds, result files, tables."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

# No cache, so that compile seconds are real.
os.environ["ESRL_CACHE_DIR"] = os.environ.get("ESRL_CACHE_DIR", "")

import jax
import numpy as np

import esrl
from esrl.core.compile_time import compile_seconds
from esrl.core.types import seed_key
from experiments.lab.stats import interquartile_mean, interval
from experiments.lab.store import Row, Store, results
from experiments.throughput.machine_limits import held

RESULTS = results("peers")

WORLDS = 1000  # seed of the held-out episodes: the same for every side and run
EPISODES = 128
PEERS = ("evosax", "rejax", "brax", "gymnax", "gymnasium", "stable-baselines3", "torch")
COST = ("steps/s", "s", "compile s", "MiB")  # the titles of `cost`

Act = Callable[[Any, Any, Any, Any], tuple[Any, Any]]


def scorer(env: Any, act: Callable[[], Act]) -> Callable[[Any], float]:
    """`score(state) -> mean held-out return` of any library's policy, through `esrl.evaluate`.

    Args:
      env: from `esrl.make`.
      act: `act()`, called when it is first needed, gives `act(state, observation, (), key) -> (action, ())` for one
        lane, pure JAX.
    """

    @cache
    def agent() -> esrl.Agent:
        return dataclasses.replace(esrl.open_es(env, esrl.mlp(()), population=2), act=act())  # another's policy

    return lambda state: round(esrl.evaluate(agent(), state, EPISODES, WORLDS).return_mean, 3)


def scores(env: Any, acts: Iterable[Callable[[], Act]]) -> Callable[[Any], Row]:
    """`score(state) -> columns` of a policy that acts by its mode, and by sampling."""
    mode, sampled = (scorer(env, act) for act in acts)
    return lambda state: {"return_mean": mode(state), "return_sampled": sampled(state)}


class Stopwatch:
    """Seconds since it was made, and those of them that went into tracing and compiling, whoever's code it was.

    As a context it stands still: what happens in it counts as neither.
    """

    def __init__(self) -> None:
        compile_seconds()
        self._begun, self._compiled, self._paused = time.perf_counter(), compile_seconds(), [0.0, 0.0]
        self._mark = (0.0, 0.0)

    def __enter__(self) -> Stopwatch:
        self._mark = (time.perf_counter(), compile_seconds())
        return self

    def __exit__(self, *_: object) -> None:
        self._paused[0] += time.perf_counter() - self._mark[0]
        self._paused[1] += compile_seconds() - self._mark[1]

    def seconds(self) -> tuple[float, float]:
        """(all, compiling)."""
        every = time.perf_counter() - self._begun - self._paused[0]
        return every, compile_seconds() - self._compiled - self._paused[1]


def times(watch: Stopwatch, steps: int) -> Row:
    """Columns of a run: steps, seconds, and steps/s without compiling."""
    seconds, compiling = watch.seconds()
    rate = steps / max(seconds - compiling, 1e-9)
    return {
        "env_steps": steps,
        "seconds": round(seconds, 3),
        "seconds_compile": round(compiling, 3),
        "env_steps_per_second": round(rate, 1),
    }


def mib(program: Any, devices: int = 1) -> float:
    """MiB that a compiled program holds while it runs, on all its devices: arguments, temporaries and results."""
    return round(held(program, devices) / 2**20, 1)


def one_step(agent: esrl.Agent) -> tuple[Callable[[Any], Any], Callable[[Any], Any], int, float]:
    """An esrl agent as `agent.init` and `agent.step`, compiled ahead: `(init, step, devices, MiB)`."""
    state, devices = agent.init(seed_key(0)), agent.plan.devices
    place = jax.tree.leaves(state)[0].sharding
    program = jax.jit(agent.step, out_shardings=place).lower(state).compile()

    def step(state: Any) -> Any:
        return blocked(program(state)[0])

    return lambda seed: agent.init(seed_key(seed)), step, devices, mib(program, devices)


class Results(Store):
    """A table of runs that grows run by run; `key` are the columns that tell runs apart."""

    def __init__(self, path: Path, key: tuple[str, ...], settings: dict[str, Any]) -> None:
        super().__init__(path, key)
        installed = {name for names in importlib.metadata.packages_distributions().values() for name in names}
        peers = {name: importlib.metadata.version(name) for name in PEERS if name in installed}
        self.says = {"recipe": settings, "peers": peers}

    def attempt(self, key: Row, run: Callable[..., Row], *arguments: Any) -> None:
        """Makes a run that the file does not hold, writes and prints it; one that fails is noted, and left out."""
        if not self.missing([self.of(key)]):
            return
        label = "/".join(map(str, self.of(key)))
        try:
            row = {**key, **run(*arguments)}
        except Exception as error:
            self.failed([self.of(key)], f"{type(error).__name__}: {error}")
            print(f"{label} failed: {type(error).__name__}: {error}", flush=True)
            return
        self.add([row], about=self.says)
        rest = ", ".join(f"{name} {_short(value)}" for name, value in row.items() if name not in self.key)
        print(f"{label}: {rest}", flush=True)

    def compare(
        self, name: str, sides: Mapping[str, Callable[[], Any]], budget: int, seeds: int, run: Callable[..., Row]
    ) -> None:
        """Runs every side in turn, seed by seed, by `run(make, seed)`; a side is made once, in its first run's time."""
        makers = {who: cache(make) for who, make in sides.items()}
        for seed in range(seeds):
            for who, make in makers.items():
                self.attempt({self.key[0]: name, "side": who, "budget": budget, "seed": seed}, run, make, seed)


def _short(value: Any) -> str:
    return f"{value:,.6g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def numbers(rows: Iterable[Row], name: str) -> np.ndarray:
    """A column as float64; what is empty is left out."""
    return np.array([float(row[name]) for row in rows if row.get(name) not in ("", None)])


def score_text(values: np.ndarray, digits: int = 1) -> str:
    """Interquartile mean over seeds with its 95 % bootstrap interval."""
    if not len(values):
        return "-"
    low, high = interval(values)
    return f"{interquartile_mean(values):,.{digits}f} [{low:,.{digits}f}, {high:,.{digits}f}]"


def rate_text(values: np.ndarray) -> str:
    """Median of speeds."""
    return f"{np.median(values):,.0f}" if len(values) else "-"


def grouped(rows: Iterable[Row], *names: str) -> dict[tuple[str, ...], list[Row]]:
    """Rows by the values of some columns, in order of first appearance."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(str(row[name]) for name in names), []).append(row)
    return found


def largest(rows: Sequence[Row], *names: str) -> list[str]:
    """The largest values of columns."""
    return [f"{numbers(rows, name).max():.1f}" for name in names]


def cost(rows: Sequence[Row]) -> list[str]:
    """Median speed and seconds of training, and the most seconds of compiling and MiB: as `COST` names them."""
    working = np.median(numbers(rows, "seconds") - numbers(rows, "seconds_compile"))
    most = largest(rows, "seconds_compile", "mib")
    return [rate_text(numbers(rows, "env_steps_per_second")), f"{working:.1f}", *most]


@dataclasses.dataclass(frozen=True)
class Options:
    seeds: int = 5  # runs of each side: seeds 0 to N - 1
    env_steps: float | None = None  # live environment steps of each run; each line's own unless given
    only: tuple[str, ...] = ()  # lines of this name, or that contain it
    results: Path = RESULTS  # folder of the result files
    table: bool = False  # only print the tables of what is there

    def chosen(self, names: Iterable[str]) -> list[str]:
        """The names that were asked for, whole or by a part; all when nothing was, and none for the tables alone."""
        names = [] if self.table else list(names)
        return [n for n in names if not self.only or any(p == n or (p in n and p not in names) for p in self.only)]


def blocked(x: Any) -> Any:
    """x, once it is there."""
    return jax.block_until_ready(x)
