"""Environments of every suite: what constructing and compiling take, and EGGROLL's steps/s beside a random policy's.

    python -m experiments.suites.run                                   # the paper's environments that are installed
    python -m experiments.suites.run gymnax/CartPole-v1 brax/ant --lanes 256 --horizon 200 --repeats 5
    python -m experiments.suites.run --table                           # prints again what is there

Both play one episode in each of as many lanes, in the same worlds, by the same runner, as many at once, on the same
devices; the random policy (lab/random_policy.py) has neither network nor noise to speak of, and no update. EGGROLL is a
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

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

import esrl
from esrl.core.types import seed_key
from esrl.envs.base import horizon_of
from esrl.envs.registry import SUITES, missing
from experiments.lab.random_policy import random_agent
from experiments.lab.record import ROOT, About, Row, read_rows, results, write_rows
from experiments.paper.run import suite_versions

PAPER = ROOT / "experiments" / "paper" / "rl.toml"
HEAD: tuple[str, ...] = ("environment", "horizon", "lanes", "construct, s", "compile random, s", "compile EGGROLL, s")
HEAD += ("random, steps/s", "EGGROLL, steps/s", "ratio", "ratio of all steps", "masked: random, EGGROLL")
CAPTION = "Steps/s of live steps; median [lowest, highest] of {} windows. {} ({} cores), {}; {}; commit {}."


class Counted:
    """Plays generations with fresh parameters, each in other worlds, and counts their steps.

    Attributes:
      play: `play(state) -> arrays`, compiled. count: `count(arrays) -> (live steps, all steps)`.
    """

    def __init__(self, agent: esrl.Agent, play: Callable[..., Any], count: Callable[..., tuple[int, int]]) -> None:
        self.play, self.count = play, count
        self.fresh = jax.block_until_ready(agent.init(seed_key(0)))
        self.generation = 0

    def once(self, generation: int = 0) -> Any:
        """A generation's arrays, computed."""
        return jax.block_until_ready(self.play(self.fresh._replace(generation=np.uint32(generation))))

    def compiling(self) -> float:
        """Seconds of the first call less those of the second, which does the same again."""
        seconds = []
        for _ in range(2):
            begun = time.perf_counter()
            self.once()
            seconds.append(time.perf_counter() - begun)
        return seconds[0] - seconds[1]

    def window(self, least: float) -> tuple[float, float, float]:
        """Live steps/s and all steps/s over at least so many seconds, and the masked part of all steps."""
        played: list[Any] = []
        begun = time.perf_counter()
        while not played or time.perf_counter() - begun < least:
            self.generation += 1
            played.append(self.once(self.generation))
        seconds = time.perf_counter() - begun
        live, every = np.sum([self.count(arrays) for arrays in played], axis=0)
        return live / seconds, every / seconds, 1 - live / every


def of_random(env: Any, lanes: int) -> Counted:
    """The random policy: rollouts."""
    agent = random_agent(env, lanes)

    def count(batch: Any) -> tuple[int, int]:
        lengths = np.asarray(batch.lengths, np.int64)
        return int(lengths.sum()), int(np.asarray(batch.steps, np.int64).sum()) * lengths[0].size

    return Counted(agent, agent.rollout, count)


def of_eggroll(env: Any, lanes: int, hidden: tuple[int, ...]) -> Counted:
    """EGGROLL at rank 1: whole generations."""
    agent = esrl.eggroll(env, esrl.mlp(hidden), population=lanes, rank=1, deterministic=False)

    def count(out: Any) -> tuple[int, int]:
        after = out[0]
        return int(after.env_steps), int(after.env_steps) + int(after.padded_steps)

    return Counted(agent, agent.step, count)


def spread(name: str, values: Any, digits: int) -> Row:
    """Median, lowest and highest as columns."""
    found = {name: np.median(values), f"{name}_lowest": np.min(values), f"{name}_highest": np.max(values)}
    return {column: round(float(value), digits) for column, value in found.items()}


def measure(name: str, arguments: argparse.Namespace) -> Row:
    """An environment's row, measured in this process.

    Raises:
      EsrlError: it cannot be constructed, or does not take a horizon.
    """
    begun = time.perf_counter()
    env = esrl.make(name)
    construct = time.perf_counter() - begun
    if arguments.horizon and horizon_of(env) > arguments.horizon:
        env = esrl.make(f"{name}{'&' if '?' in name else '?'}horizon={arguments.horizon}")
    random, eggroll = of_random(env, arguments.lanes), of_eggroll(env, arguments.lanes, tuple(arguments.hidden))
    compiling = [random.compiling(), eggroll.compiling()]
    windows = np.array([[x.window(arguments.seconds) for x in (random, eggroll)] for _ in range(arguments.repeats)])
    live, every, masked = np.moveaxis(windows, 2, 0)  # each [repeats, 2]
    return {
        "env": name,
        "horizon": horizon_of(env),
        "lanes": arguments.lanes,
        "hidden": "x".join(map(str, arguments.hidden)),
        "repeats": arguments.repeats,
        "construct_seconds": round(construct, 2),
        "compile_seconds_random": round(compiling[0], 2),
        "compile_seconds_eggroll": round(compiling[1], 2),
        **spread("steps_per_second_random", live[:, 0], 1),
        **spread("steps_per_second_eggroll", live[:, 1], 1),
        **spread("ratio", live[:, 1] / live[:, 0], 4),
        **spread("ratio_of_all_steps", every[:, 1] / every[:, 0], 4),
        "masked_random": round(float(np.median(masked[:, 0])), 4),
        "masked_eggroll": round(float(np.median(masked[:, 1])), 4),
    }


def uncached() -> None:
    """Sets JAX up as esrl does, but keeps no compiled programs."""
    os.environ["ESRL_CACHE_DIR"] = ""
    jax.config.update("jax_compilation_cache_dir", None)
    esrl.configure()


def one(name: str, path: Path, arguments: argparse.Namespace) -> None:
    """Measures an environment in this process, and puts its row in the place of an older one."""
    uncached()
    row = measure(name, arguments)
    rows = [old for old in read_rows(path) if old["env"] != name]
    write_rows(path, sorted([row, *rows], key=lambda row: row["env"].lower()))
    about = About(path.with_suffix(".json"), {"agent": "eggroll", "options": {"rank": 1, "deterministic": False}})
    about.values.setdefault("suites", {}).update(suite_versions(name))
    about.ran([name])
    print(line(row), flush=True)


# ---- all of them ----------------------------------------------------------------------------------------------------


def installed(data: Path) -> list[str]:
    """The paper's environments whose suites are installed; says which are not."""
    envs = [name for name in tomllib.loads(data.read_text()) if "/" in name]
    absent = sorted({name.partition("/")[0] for name in envs if not _there(name.partition("/")[0])})
    for suite in absent:
        print(f"left out: {missing(suite)}", flush=True)
    return [name for name in envs if name.partition("/")[0] not in absent]


def _there(suite: str) -> bool:
    return importlib.util.find_spec(SUITES[suite].module) is not None


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
        return said[-1].removeprefix("esrl.core.types.EsrlError: ")
    return f"the process ended with status {done.returncode}"


def ranged(row: Row, name: str, form: str) -> str:
    """A median with its range."""
    middle, low, high = (format(float(row[f"{name}{end}"]), form) for end in ("", "_lowest", "_highest"))
    return f"{middle} [{low}, {high}]"


def line(row: Row) -> str:
    """One line of the table."""
    columns = ("construct_seconds", "compile_seconds_random", "compile_seconds_eggroll")
    seconds = [f"{float(row[column]):.1f}" for column in columns]
    cells = [f"`{row['env']}`", row["horizon"], row["lanes"], *seconds]
    cells += [ranged(row, f"steps_per_second_{agent}", ",.0f") for agent in ("random", "eggroll")]
    cells += [ranged(row, "ratio", ".3g"), ranged(row, "ratio_of_all_steps", ".3g")]
    cells += [", ".join(f"{100 * float(row[f'masked_{agent}']):.0f} %" for agent in ("random", "eggroll"))]
    return "| " + " | ".join(map(str, cells)) + " |"


def table(path: Path) -> str:
    """A result file as Markdown."""
    rows, about = read_rows(path), json.loads(path.with_suffix(".json").read_text())
    last, repeats = about["measured"][-1], "/".join(sorted({row["repeats"] for row in rows}))
    where, packages = last["machine"], [f"{name} {version}" for name, version in about.get("suites", {}).items()]
    versions = ", ".join([f"jax {last['versions']['jax']}", *packages])
    caption = CAPTION.format(repeats, where["processor"], where["cores"], where["device"], versions, last["commit"])
    failed = [f"{env} failed: {error}" for env, error in about["failed"].items()]
    head = "| " + " | ".join(HEAD) + " |\n" + "|---" * len(HEAD) + "|"
    return "\n".join([head, *map(line, rows), "", caption, *failed])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("envs", nargs="*", help="those of the paper that are installed unless given")
    parser.add_argument("--lanes", type=int, default=256, help="an even number")
    parser.add_argument("--horizon", type=int, default=200, help="steps at most; 0 leaves each environment its own")
    parser.add_argument("--hidden", type=int, nargs="*", default=[256, 256, 256])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each window, at least")
    parser.add_argument("--timeout", type=float, default=3600.0, help="seconds for an environment")
    parser.add_argument("--out", type=Path, default=results("suites"))
    parser.add_argument("--name", help="of the result file; the devices' unless given")
    parser.add_argument("--table", action="store_true", help="measure nothing; print what is there")
    parser.add_argument("--one", action="store_true", help="one environment, in this process")
    arguments = parser.parse_args()
    if arguments.table:
        paths = [arguments.out / f"{arguments.name}.csv"] if arguments.name else sorted(arguments.out.glob("*.csv"))
        print("\n\n".join(table(path) for path in paths))
        return
    path = arguments.out / f"{arguments.name or devices()}.csv"
    if arguments.one:
        one(arguments.envs[0], path, arguments)
        return
    sizes = [f"--{name}={getattr(arguments, name)}" for name in ("lanes", "horizon", "repeats", "seconds")]
    options = [*sizes, "--hidden", *map(str, arguments.hidden)]
    for env in arguments.envs or installed(PAPER):
        reason = in_process(env, path, options, arguments.timeout)
        if reason:
            About(path.with_suffix(".json"), {}).failed(env, reason)
            print(f"{env} failed: {reason}", flush=True)
    if path.exists():
        print("\n" + table(path))


if __name__ == "__main__":
    main()
