"""What time and memory do as population, width, rank or episodes grow: a part of throughput/run.py.

One factor at a time, from a base of `--base-population` members, 3x`--base-width`, rank 1 and one episode each. Ranks
are those of 3x`--rank-width`: a matrix whose factors would be no smaller than itself gets dense noise.

generation: CartPole from fresh parameters, whole `agent.step`s of EGGROLL. Episodes of different lengths would not
compare, so its time is also given for each lane step that was run, live or masked; what is done once in a generation
(noise, update) is in it. forward: a scan of a fixed number of network steps, noise of rank R drawn before it, as in the
part forward. Its seconds are those of one step of all lanes.

`ns_per_unit` is the time of one unit of what grows: of a lane step; with the width, of a lane step and a weight; with
the rank, of a lane step and a rank. It falls as long as fixed costs are shared by more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import jax

import esrl
from esrl.core import sharding
from esrl.core.types import seed_key
from esrl.perturbation import noise as noises
from experiments.lab.recipes import FORMER
from experiments.lab.store import Row
from experiments.throughput.forward import chunk_of
from experiments.throughput.generation import trained_by
from experiments.throughput.kinds import Kind, cost, policy_work, program, steps_for
from experiments.throughput.machine_limits import held, waited
from experiments.throughput.part import Bench, Options, Part
from experiments.throughput.timing import Call, compiled, first, reason_of, rounded, spread

ENV = "gymnasium/phys2d/CartPole-v1"
FACTORS = ("population", "width", "rank", "episodes")
KEY: tuple[str, ...] = ("measure", "factor", *FACTORS)
COLUMNS: tuple[str, ...] = ("value", "repeats", "seconds", "seconds_lowest", "seconds_highest", "lane_steps")
COLUMNS += ("ns_per_lane_step", "ns_per_lane_step_lowest", "ns_per_lane_step_highest", "ns_per_unit")
COLUMNS += ("compile_seconds", "peak_bytes", "noise_bytes")
CELLS = {
    "s": ("seconds", "[.3g]"),
    "ns a lane step": ("ns_per_lane_step", "[.3g]"),
    "ns a unit": ("ns_per_unit", ".3g"),
    "compile s": ("compile_seconds", ".2g"),
    "peak MiB": ("peak_bytes", "MiB"),
}


def points(options: Options) -> Iterator[Row]:
    """Every factor's values, with the others at the base."""
    base = {"population": options.base_population, "width": options.base_width, "rank": 1, "episodes": 1}
    for factor in FACTORS:
        for value in getattr(options, f"growth_{factor}"):
            wide = {"width": options.rank_width} if factor == "rank" else {}
            yield {**base, **wide, factor: value, "factor": factor, "value": value}


def run_growth(bench: Bench, add: Callable[[Row], None]) -> None:
    """Both measures at every point."""
    for measure, run in (("forward", _forward), ("generation", _generation)):
        found: dict[tuple[int, ...], Row] = {}  # the base is a point of every factor, and measured once
        for point in points(bench.options):
            here = tuple(point[factor] for factor in FACTORS)
            if here not in found:
                try:
                    found[here] = run(point, bench)
                except Exception as error:
                    found[here] = {"left_out": reason_of(error)}
            row = {"measure": measure, **point, **found[here]}
            if "ns_per_lane_step" in row:
                row["ns_per_unit"] = rounded(row["ns_per_lane_step"] / _units(point))
            add(row)
            jax.clear_caches()


def _forward(point: Row, bench: Bench) -> Row:
    work = policy_work(point["width"], point["population"], "float32", point["episodes"])
    mesh = sharding.default_mesh(work.pairs)
    chunk = chunk_of(work, mesh)
    kind = Kind("", noises.low_rank(point["rank"]), point["rank"])
    steps = steps_for(work, chunk, bench.ceilings, bench.options.seconds)
    need = cost(work, kind, chunk, mesh.size)
    why = bench.too_much(need.held, steps * bench.ceilings.seconds(need.flops, need.moved, work.dtype))
    if why:
        return {"left_out": why}
    function, given = program(work, kind, chunk, steps, mesh)()
    run, seconds = compiled(function, *given)
    fixed = {"compile_seconds": rounded(seconds, 3), "peak_bytes": held(run, mesh.size), "noise_bytes": int(need.noise)}
    return {**fixed, **_timed(waited(run, given, steps, float(steps * work.lanes)), bench)}


def _generation(point: Row, bench: Bench) -> Row:
    options = FORMER | {
        "population": point["population"],
        "rank": point["rank"],
        "episodes_per_member": point["episodes"],
    }
    agent = esrl.eggroll(ENV, esrl.mlp((point["width"],) * 3), **options)
    side = trained_by(agent, agent.init(seed_key(0)))
    least = (
        2.0 * agent.plan.lanes * agent.plan.num_params * 10
    )  # episodes of fresh parameters last longer than 10 steps
    why = bench.too_much(float(side.peak_bytes or 0), least / bench.ceilings.flops["float32"])
    if why:
        return {"left_out": why}

    def call() -> tuple[float, ...]:
        _, every, number = side.call()
        return number, every

    fixed = {"compile_seconds": rounded(side.compile_seconds, 3), "peak_bytes": int(side.peak_bytes or 0)}
    return {**fixed, "noise_bytes": 4 * side.noise_floats, **_timed(call, bench)}


def _timed(call: Call, bench: Bench) -> Row:
    seconds, number, every = bench.turns({"": call}, {"": first(call)})[""].T
    row = {"repeats": len(seconds), **spread("seconds", seconds / number), "lane_steps": int((every / number).mean())}
    return {**row, **spread("ns_per_lane_step", 1e9 * seconds / every)}


def _units(point: Row) -> int:
    """What a lane step is divided by: the rank, or the weights of the three-layer policy's matrices."""
    if point["factor"] == "width":
        return 4 * point["width"] + 2 * point["width"] ** 2 + 2 * point["width"]
    return point["rank"] if point["factor"] == "rank" else 1


NAMES = {name: name for name in ("measure", "factor", "value")}
GROWTH = Part(run_growth, KEY, COLUMNS, NAMES, CELLS)
