"""The parts of gpu/run.py: each measures in a process of its own, and writes a row as soon as it has one.

layer: one linear layer of width 8192 in bfloat16, noise stored and drawn, beside inference (throughput/forward.py).
forward: 3x256 with 65,536 members, the same.
kernel: passes with XLA's kernels (`ESRL_FUSED=never`), with the fused kernel (always), and as measured (auto).
speed: a generation of EGGROLL, brax ES and evosax from fresh parameters, and brax PPO, in turn: environment steps/s at
  populations from 2^10 to 2^20. brax PPO has as many environments as the population, at least 2048.
paper: the paper's recipe of EGGROLL trains for some seconds; the seconds for 5e8 steps follow from the rate of its
  second half, and stand beside the paper's on an L40S. That is an extrapolation, unless all steps were done.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import statistics
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

import esrl
from esrl.core import sharding
from esrl.core.types import seed_key
from esrl.training import recipe as recipes
from experiments.lab.recipes import PAPER
from experiments.lab.store import ROOT, Row, Store
from experiments.peers import common
from experiments.throughput import generation
from experiments.throughput.forward import FORWARD, LAYER, chunk_of
from experiments.throughput.generation import Side
from experiments.throughput.kinds import kinds, policy_work, program
from experiments.throughput.machine_limits import Ceilings, Loads, held, loads, measure, waited
from experiments.throughput.part import Bench
from experiments.throughput.part import Options as Sizes
from experiments.throughput.timing import Call, compiled, first, reason_of, rounded, spread, turns

BUDGET = 5e8  # the paper's environment steps
SIDES = ("EGGROLL, rank 1", "evosax Open_ES", "brax ES", "brax PPO")


class Plan(NamedTuple):
    """How large everything is.

    Attributes:
      sizes: of the parts layer and forward. networks: of the part kernel: width, members, dtype.
      envs: of the part speed, with the steps of an episode at most. populations: in the order in which they are
        measured. sides: of `SIDES`.
      papers: environments of the paper. seconds: that each trains.
      bench: the machine's limits; None measures them.
    """

    sizes: Sizes
    networks: tuple[tuple[int, int, str], ...]
    envs: dict[str, int]
    populations: tuple[int, ...]
    sides: tuple[str, ...]
    papers: tuple[str, ...]
    seconds: float
    bench: tuple[Ceilings, Loads] | None = None


def whole() -> Plan:
    """The sizes of issue and table: for a GPU."""
    sizes = Sizes(
        widths=(256,), populations=(65536,), dtypes=("bfloat16", "float32"), ranks=(1,), layer_width=8192,
        layer_population=1024, repeats=3, seconds=0.3, seconds_limit=10.0,
    )  # fmt: skip
    return Plan(
        sizes,
        ((256, 65536, "float32"), (256, 65536, "bfloat16"), (1024, 16384, "bfloat16"), (64, 65536, "float32")),
        {"gymnax/CartPole-v1": 500, "brax/ant": 100, "craftax/Craftax-Symbolic-v1": 100, "brax/humanoid": 100},
        tuple(2**k for k in (12, 16, 20, 10, 14, 18)),
        SIDES,
        ("gymnax/CartPole-v1", "gymnax/Pendulum-v1", "brax/ant"),
        15.0,
    )


def small() -> Plan:
    """The same parts in seconds on a CPU, so that the script is known to work; its figures mean nothing."""
    sizes = Sizes(
        widths=(16,), populations=(16,), dtypes=("float32",), ranks=(1,), layer_width=16, layer_population=16,
        repeats=1, seconds=0.0, seconds_limit=1e9,
    )  # fmt: skip
    limits = Ceilings({"float32": 1e9}, 1e9, 1e9), Loads({"float32": lambda: (1.0,)}, lambda: (1.0,))
    env = {"gymnax/CartPole-v1": 4}
    return Plan(sizes, ((16, 16, "float32"),), env, (8,), SIDES[:1], tuple(env), 0.0, limits)


def bench_of(plan: Plan, dtypes: set[str]) -> Bench:
    """The machine's limits, and what they are measured with."""
    if plan.bench:
        return Bench(plan.sizes, *plan.bench)
    using = loads(dtypes)
    return Bench(plan.sizes, measure(using), using)


def layer(out: Path, plan: Plan) -> None:
    own = plan._replace(sizes=dataclasses.replace(plan.sizes, dtypes=plan.sizes.dtypes[:1]))
    LAYER.measure(bench_of(own, set(own.sizes.dtypes)), out / "layer.csv", dataclasses.asdict(own.sizes) | {"out": ""})


def forward(out: Path, plan: Plan) -> None:
    bench = bench_of(plan, set(plan.sizes.dtypes))
    FORWARD.measure(bench, out / "forward.csv", dataclasses.asdict(plan.sizes) | {"out": ""})


def kernel(out: Path, plan: Plan) -> None:
    """Passes of whole networks under each setting of `ESRL_FUSED`, in turn."""
    store = Store(out / "kernel.csv", ("network", "population", "dtype", "kernels"))
    kind = next(kind for kind in kinds((1,)) if kind.rank == 1)
    for width, population, dtype in plan.networks:
        work = policy_work(width, population, dtype)
        mesh, steps = sharding.default_mesh(work.pairs), 4
        chunk = chunk_of(work, mesh)
        calls: dict[str, Call] = {}
        rows: dict[str, Row] = {}
        before = os.environ.get("ESRL_FUSED")
        for mode in ("never", "always", "auto"):
            key = {"network": work.name, "population": population, "dtype": dtype, "kernels": mode}
            rows[mode] = row = {**key, "ms_per_step": "", "of_never": "", "left_out": ""}
            os.environ["ESRL_FUSED"] = mode  # read while a program is traced
            try:
                run, seconds = compiled(*_flat(program(work, kind, chunk, steps, mesh)()))
                given = program(work, kind, chunk, steps, mesh)()[1]
                calls[mode] = waited(run, given, steps)
                first(calls[mode])
                row |= {"compile_seconds": rounded(seconds, 3)}
            except Exception as error:
                row["left_out"] = reason_of(error)
        os.environ.pop("ESRL_FUSED") if before is None else os.environ.update(ESRL_FUSED=before)
        found = turns(calls, dict.fromkeys(calls, 0.0), plan.sizes.repeats, plan.sizes.seconds, 30.0)
        each = {mode: windows[:, 0] / windows[:, 1] for mode, windows in found.items()}
        for mode, taken in each.items():
            rows[mode] |= spread("ms_per_step", 1e3 * taken)
            if "never" in each:
                rows[mode]["of_never"] = rounded(statistics.median(each["never"] / taken), 4)
        store.add(list(rows.values()), replace=True)
        jax.clear_caches()


def _flat(made: tuple[Any, tuple[Any, ...]]) -> tuple[Any, ...]:
    return made[0], *made[1]


def speed(out: Path, plan: Plan) -> None:
    """Environment steps/s of a generation, and of brax PPO, at growing populations."""
    store = Store(out / "speed.csv", ("env", "population", "side"))
    for population in plan.populations:  # population by population, so that a short time has something of each
        for name, most in plan.envs.items():
            for row in _generations(name, population, most, plan):
                store.add([row], replace=True)
                shown = row["left_out"] or f"{row['live_steps_per_second']:,.0f} steps/s"
                print(f"{name}, {population:,}, {row['side']}: {shown}", flush=True)
            jax.clear_caches()


def _generations(name: str, population: int, most: int, plan: Plan) -> Iterator[Row]:
    try:
        env = generation.shortened(esrl.make(name), name, most)
        makers = generation.sides(env, population, "fresh", len(plan.sides) > 1)
    except Exception as error:
        yield {"env": name, "population": population, "side": "all", "left_out": reason_of(error)}
        return
    if name.startswith("brax/"):
        makers["brax PPO"] = functools.partial(_brax_ppo, env, max(population, 2048))
    for side in plan.sides:
        row: Row = {"env": name, "population": population, "side": side, "steps_at_most": most}
        row |= {"live_steps_per_second": "", "compile_seconds": "", "peak_mib": "", "left_out": ""}
        if side not in makers:
            yield row | {"left_out": "does not have this environment"}
            continue
        try:
            one = makers[side]()
            first(one.call)
            windows = turns({side: one.call}, {side: 0.0}, plan.sizes.repeats, plan.sizes.seconds, 20.0)[side]
            one.close()
        except Exception as error:
            yield row | {"left_out": reason_of(error)}
            continue
        seconds = windows[:, 4] if windows.shape[1] > 4 else windows[:, 0]  # brax measures its own
        row |= spread("live_steps_per_second", windows[:, 1] / seconds)
        row |= {"compile_seconds": rounded(one.compile_seconds, 3)}
        row["peak_mib"] = "" if one.peak_bytes is None else rounded(one.peak_bytes / 2**20, 4)
        yield row


def _brax_ppo(env: Any, lanes: int) -> Side:
    """brax.training's PPO with its settings of `experiments.peers.ppo`, and as many environments as a population."""
    from experiments.peers.ppo import LINES
    from experiments.peers.ppo_peers import Brax

    line = LINES["brax/inverted_double_pendulum"]
    config = line.config | {"num_envs": lanes, "batch_size": max(1024, lanes // line.config["num_minibatches"])}
    each = config["batch_size"] * config["num_minibatches"] * config["unroll_length"]
    peer = Brax(env, config, 4 * each)

    def call() -> tuple[float, ...]:
        watch = common.Stopwatch()
        steps = peer.train(0)[1]
        whole_seconds, compiling = watch.seconds()
        return float(steps), float(steps), 1.0, whole_seconds - compiling

    return Side(call, 0.0, None, 0)


def paper(out: Path, plan: Plan) -> None:
    """The paper's recipes for some seconds each."""
    store, data = Store(out / "paper.csv", ("env",)), tomllib.loads(PAPER.read_text())
    for name in plan.papers:
        said = data[name]["result"]["eggroll_seconds_l40s"]
        row: Row = {"env": name, "paper_seconds_l40s": said, "seconds_for_5e8": "", "env_steps": "", "seconds": ""}
        row |= {"compile_seconds": "", "left_out": ""}
        try:
            row |= _trained(name, plan)
        except Exception as error:
            row["left_out"] = reason_of(error)
        store.add([row], replace=True)
        print({key: value for key, value in row.items() if value != ""}, flush=True)
        jax.clear_caches()


def _trained(name: str, plan: Plan) -> Row:
    recipe = recipes.read(ROOT / "agents" / "paper" / name / "eggroll.toml")
    if plan.bench:
        recipe = dataclasses.replace(recipe, options=recipe.options | {"population": 8}, policy={"hidden": [8]})
    agent = recipe.build()
    state = agent.init(seed_key(0))
    place = jax.tree.leaves(state)[0].sharding
    step, compiling = compiled(jax.jit(agent.step, out_shardings=place), state)
    state, _ = jax.block_until_ready(step(state))
    begun, done = time.perf_counter(), [(0.0, int(state.env_steps))]
    while len(done) < 3 or (done[-1][0] < plan.seconds and done[-1][1] < BUDGET):
        state, _ = jax.block_until_ready(step(state))
        done.append((time.perf_counter() - begun, int(state.env_steps)))
    middle = next(moment for moment in done if moment[0] >= done[-1][0] / 2)
    middle = middle if middle is not done[-1] else done[-2]
    rate = (done[-1][1] - middle[1]) / (done[-1][0] - middle[0])
    left = max(BUDGET - done[-1][1], 0.0)
    return {
        "seconds_for_5e8": rounded(done[-1][0] + left / rate, 4),
        "env_steps": done[-1][1],
        "seconds": rounded(done[-1][0], 4),
        "steps_per_second": rounded(rate, 4),
        "compile_seconds": rounded(compiling, 3),
        "peak_mib": rounded(held(step, agent.plan.devices) / 2**20, 4),
    }


PARTS: dict[str, Callable[[Path, Plan], None]] = {
    "layer": layer,
    "forward": forward,
    "kernel": kernel,
    "paper": paper,
    "speed": speed,
}
