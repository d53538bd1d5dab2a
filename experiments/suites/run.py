"""Environments of every suite: what constructing and compiling take, and EGGROLL's steps/s beside a random policy's.

    python -m experiments.suites.run                                   # the paper's environments that are installed
    python -m experiments.suites.run gymnax/CartPole-v1 brax/ant --lanes 256 --horizon 200 --repeats 5
    python -m experiments.suites.run --table                           # prints again what is there

Both play one episode in each of as many lanes, in the same worlds, by the same runner, as many at once, on the same
devices; the random policy (`esrl.random`) has neither network nor noise to speak of, and no update. EGGROLL is a
whole generation: noise, forward passes of the 3x256 MLP at rank 1, stepping, fitness shaping, contraction and update,
with esrl's defaults but for sampled actions. It always starts from fresh parameters, in other worlds each time.

Steps/s count live steps only. A lane that is done is stepped on, masked, until its pair's place is taken by one that
waits: how much that wastes depends on when episodes end, and so on the policy. The part that is masked stands beside,
and so does the ratio of all steps, masked ones included, which depends on it less.

Both run in turn in one process, `--repeats` windows of at least `--seconds`: medians, lowest and highest. Compiling is
the first call less the second, without a persistent compilation cache; the random policy compiles first, so that what
JAX remembers of tracing the environment helps EGGROLL. Constructing includes the import of the environment's package.
Every environment is a process of its own, and one that fails leaves a line. Written after each to
experiments/suites/results/<name>.csv, with a JSON beside it.
"""

import itertools
import os
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tyro.conf import Positional

import esrl
from esrl.core.types import seed_key
from esrl.envs.base import max_episode_steps_of
from esrl.envs.catalog import installed, missing
from experiments import script
from experiments.lab.recipes import FORMER
from experiments.lab.store import ROOT, Row, Store, results
from experiments.paper.run import suite_versions
from experiments.throughput.generation import shortened
from experiments.throughput.timing import first, spread, turns

PAPER = ROOT / "experiments" / "paper" / "rl.toml"
RESULTS = results("suites")
CELLS = {  # title: column, format
    "construct, s": ("construct_seconds", ".1f"),
    "compile random, s": ("compile_seconds_random", ".1f"),
    "compile EGGROLL, s": ("compile_seconds_eggroll", ".1f"),
    "random, steps/s": ("steps_per_second_random", "[,.0f]"),
    "EGGROLL, steps/s": ("steps_per_second_eggroll", "[,.0f]"),
    "ratio": ("ratio", "[.3g]"),
    "ratio of all steps": ("ratio_of_all_steps", "[.3g]"),
}
HEAD = ("environment", "horizon", "lanes", *CELLS, "masked: random, EGGROLL")
CAPTION = "Steps/s of live steps; median [lowest, highest] of {} windows. {} ({} cores), {}; {}; commit {}."
Play = Callable[[int], tuple[float, ...]]  # plays a generation by its number; live steps, and all steps


@dataclass(frozen=True)
class Options:
    envs: Positional[tuple[str, ...]] = ()  # those of the paper that are installed unless given
    lanes: int = 256  # an even number
    horizon: int = 200  # steps at most; 0 leaves each environment its own
    hidden: tuple[int, ...] = (256, 256, 256)
    repeats: int = 5
    seconds: float = 2.0  # of each window, at least
    timeout: float = 3600.0  # seconds for an environment
    out: Path = RESULTS
    name: str | None = None  # of the result file; the devices' unless given
    table: bool = False  # measure nothing; print what is there
    one: bool = False  # one environment, in this process


def playing(agent: esrl.Agent, play: Callable[..., Any], count: Callable[[Any], tuple[int, int]]) -> Play:
    """Generations from fresh parameters, each in other worlds: `play(state)` is compiled, `count` reads its results."""
    fresh = jax.block_until_ready(agent.init(seed_key(0)))
    return lambda generation: count(jax.block_until_ready(play(fresh._replace(generation=np.uint32(generation)))))


def of_random(env: Any, given: Options) -> Play:
    """The random policy: rollouts."""
    agent = esrl.random(env, population=given.lanes)

    def count(played: Any) -> tuple[int, int]:
        lengths = np.asarray(played[1], np.int64).reshape(agent.plan.devices, -1)
        every = lengths.max(axis=1) * lengths.shape[1]  # a device steps all its lanes until the last one is done
        return int(lengths.sum()), int(every.sum())

    return playing(agent, agent.rollout, count)


def of_eggroll(env: Any, given: Options) -> Play:
    """EGGROLL at rank 1: whole generations."""
    agent = esrl.eggroll(env, esrl.mlp(given.hidden), population=given.lanes, rank=1, deterministic=False, **FORMER)

    def count(out: Any) -> tuple[int, int]:
        after = out[0]
        return int(after.env_steps), int(after.env_steps) + int(after.padded_steps)

    return playing(agent, agent.step, count)


def measure(name: str, given: Options) -> Row:
    """An environment's row, measured in this process.

    Raises:
      EsrlError: it cannot be constructed, or does not take a horizon.
    """
    begun = time.perf_counter()
    env = esrl.make(name)
    construct = time.perf_counter() - begun
    env = shortened(env, name, given.horizon)
    plays = {"random": of_random(env, given), "eggroll": of_eggroll(env, given)}
    compiling = {who: first(partial(play, 0)) - first(partial(play, 0)) for who, play in plays.items()}
    generations = itertools.count(1)
    calls = {who: lambda play=play: play(next(generations)) for who, play in plays.items()}
    windows = turns(calls, dict.fromkeys(calls, 0.0), given.repeats, given.seconds, 1e9)
    live, every = ({who: found[:, i] / found[:, 0] for who, found in windows.items()} for i in (1, 2))
    masked = {who: round(float(np.median(1 - found[:, 1] / found[:, 2])), 4) for who, found in windows.items()}
    return {
        "env": name,
        "horizon": max_episode_steps_of(env),
        "lanes": given.lanes,
        "hidden": "x".join(map(str, given.hidden)),
        "repeats": given.repeats,
        "construct_seconds": round(construct, 2),
        **{f"compile_seconds_{who}": round(seconds, 2) for who, seconds in compiling.items()},
        **spread("steps_per_second_random", live["random"]),
        **spread("steps_per_second_eggroll", live["eggroll"]),
        **spread("ratio", live["eggroll"] / live["random"], 4),
        **spread("ratio_of_all_steps", every["eggroll"] / every["random"], 4),
        **{f"masked_{who}": part for who, part in masked.items()},
    }


def uncached() -> None:
    """Sets JAX up as esrl does, but keeps no compiled programs."""
    os.environ["ESRL_CACHE_DIR"] = ""
    jax.config.update("jax_compilation_cache_dir", None)
    esrl.configure()


def one(name: str, path: Path, given: Options) -> None:
    """Measures an environment in this process, and puts its row in the place of an older one."""
    uncached()
    row = measure(name, given)
    settings = {"agent": "eggroll", "options": {"rank": 1, "deterministic": False}}
    store = Store(path, ("env",))
    suites = {**store.about().get("suites", {}), **suite_versions(name)}
    store.add([row], replace=True, about={"recipe": settings, "suites": suites})
    print(script.line(cells(row)), flush=True)


# ---- all of them ----------------------------------------------------------------------------------------------------


def available(data: Path) -> list[str]:
    """The paper's environments whose suites are installed; says which are not."""
    envs = [name for name in tomllib.loads(data.read_text()) if "/" in name]
    absent = sorted({name.partition("/")[0] for name in envs if not installed(name.partition("/")[0])})
    for suite in absent:
        print(f"left out: {missing(suite)}", flush=True)
    return [name for name in envs if name.partition("/")[0] not in absent]


def devices() -> str:
    """A name for this machine's devices, from a process that gives them back: "2-x-cpu"."""
    code = "import esrl, jax; esrl.configure(); print(len(jax.devices()), 'x', jax.devices()[0].device_kind)"
    text = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    return re.sub(r"\W+", "-", text.strip().splitlines()[-1].lower()).strip("-")


def in_process(name: str, path: Path, options: list[str], timeout: float) -> str:
    """Measures an environment in a process of its own; returns why that failed, or nothing."""
    command = [sys.executable, "-m", "experiments.suites.run", name, "--one", "--name", path.stem]
    command += ["--out", str(path.parent), *options]
    try:
        done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return f"more than {timeout:.0f} s"
    if not done.returncode:
        return ""
    said = [text for text in done.stderr.splitlines() if text.strip()]
    if said and done.returncode > 0:
        return said[-1].removeprefix("esrl.core.errors.EsrlError: ")
    return f"the process ended with status {done.returncode}"


def cells(row: Row) -> list[str]:
    """A row's line of the table."""
    masked = ", ".join(script.shown(row, f"masked_{agent}", "%") for agent in ("random", "eggroll"))
    shown = [script.shown(row, *cell) for cell in CELLS.values()]
    return [f"`{row['env']}`", row["horizon"], row["lanes"], *shown, masked]


def table(path: Path) -> str:
    """A result file as Markdown."""
    store = Store(path, ("env",))
    rows, about = sorted(store.read(), key=lambda row: row["env"].lower()), store.about()
    last, repeats = about["measured"][-1], "/".join(sorted({str(row["repeats"]) for row in rows}))
    where, packages = last["machine"], [f"{name} {version}" for name, version in about.get("suites", {}).items()]
    versions = ", ".join([f"jax {last['versions']['jax']}", *packages])
    caption = CAPTION.format(repeats, where["processor"], where["cores"], where["device"], versions, last["commit"])
    failed = [f"{env} failed: {error}" for env, error in about["failed"].items()]
    return "\n".join([script.table(HEAD, map(cells, rows)), "", caption, *failed])


def main() -> None:
    given = script.options(Options, __doc__)
    if given.table:
        paths = [given.out / f"{given.name}.csv"] if given.name else sorted(given.out.glob("*.csv"))
        print("\n\n".join(table(path) for path in paths))
        return
    path = given.out / f"{given.name or devices()}.csv"
    if given.one:
        one(given.envs[0], path, given)
        return
    sizes = [f"--{name}={getattr(given, name)}" for name in ("lanes", "horizon", "repeats", "seconds")]
    for env in given.envs or available(PAPER):
        reason = in_process(env, path, [*sizes, "--hidden", *map(str, given.hidden)], given.timeout)
        if reason:
            Store(path, ("env",)).failed([env], reason, replace=True)
            print(f"{env} failed: {reason}", flush=True)
    if path.exists():
        print("\n" + table(path))


if __name__ == "__main__":
    main()
