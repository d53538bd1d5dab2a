"""Forward passes beside plain inference: the parts forward and layer of throughput/run.py.

forward: milliseconds of one step of the three-layer policy of `esrl.mlp` for a whole population, on all devices:
inference with shared weights, in esrl's chunks and all at once (the faster of the two is what the others are measured
against), noise of each rank that was drawn before, rank 1 drawn anew in every step, and dense noise, drawn before and
materialised. Timed is a scan of steps (kinds.py) from its call until its result is there, as many scans as
fill a window. Drawing what is stored, and compiling, are not in it. Biases are perturbed, densely.
layer: the same of one linear layer without biases.

The roofline is the longer of two times: operations at the speed of a large matrix product, and bytes that must move at
the speed of adding 1 to a large array, both on all devices, measured in the same turns; what counts is said in
`throughput_cells.cost`. What fits into a cache moves faster than that, so a small network can be above its roofline.
`roofline_fraction_of_inference` is inference's roofline over the row's: what noise would leave without any other cost.
"""

from __future__ import annotations

import argparse
from typing import Any

import jax
import numpy as np

from esrl.algorithms import memory_plan as footprint
from esrl.core import sharding
from experiments.lab.record import Row
from experiments.lab.timing import Call, Table, compiled, first, ranged, reason_of, rounded, spread, table_head, turns
from experiments.throughput.kinds import Kind, Work, cost, kinds, layer_work, policy_work, program, steps_for
from experiments.throughput.machine_limits import Ceilings, held

KEY: tuple[str, ...] = ("part", "network", "population", "dtype", "kind")
COLUMNS: tuple[str, ...] = (*KEY, "rank", "width", "devices", "chunk_lanes", "steps", "repeats")
COLUMNS += ("ms_per_step", "ms_per_step_lowest", "ms_per_step_highest")
COLUMNS += ("fraction_of_inference", "fraction_of_inference_lowest", "fraction_of_inference_highest")
COLUMNS += ("passes_per_second", "compile_seconds", "peak_bytes", "noise_bytes", "flops_per_step", "bytes_per_step")
COLUMNS += ("gflops_ceiling", "gbytes_ceiling")
COLUMNS += ("roofline_ms", "fraction_of_roofline", "roofline_fraction_of_inference", "left_out")
HEAD: tuple[str, ...] = ("part", "network", "population", "dtype", "kind", "ms a step", "of inference")
HEAD += ("roofline allows", "of its roofline", "passes/s", "compile s", "peak MiB", "noise MiB", "left out")
REFERENCE = ("inference, in chunks", "inference, at once")


def group(work: Work, part: str, which: list[Kind], ceilings: Ceilings, arguments: argparse.Namespace) -> list[Row]:
    """The rows of one network, population and dtype."""
    mesh = sharding.default_mesh(work.pairs)
    chunk = chunk_of(work, mesh, arguments.chunk)
    steps = steps_for(work, chunk, ceilings, arguments.seconds)
    rows: dict[str, Row] = {}
    calls: dict[str, Call] = {}
    once: dict[str, float] = {}
    taken = 0.0
    for kind in which:
        size = work.pairs // mesh.size if kind.whole else chunk
        need = cost(work, kind, size, mesh.size)
        ideal = ceilings.seconds(need.flops, need.moved, work.dtype)
        rows[kind.name] = row = _described(work, part, kind, size, steps, mesh.size)
        row |= {"noise_bytes": int(need.noise), "flops_per_step": int(need.flops), "bytes_per_step": int(need.moved)}
        row["left_out"] = _too_much(taken + need.held, ceilings.memory, ideal * steps, arguments.seconds_limit)
        if row["left_out"]:
            continue
        try:
            function, given = program(work, kind, size, steps, mesh)()
            run, seconds = compiled(function, *given)
            calls[kind.name] = _call(run, given, steps)
            once[kind.name] = first(calls[kind.name])
        except Exception as error:
            row["left_out"] = reason_of(error)
            calls.pop(kind.name, None)
            continue
        taken += need.held
        row |= {"compile_seconds": rounded(seconds, 3), "peak_bytes": held(run, mesh.size)}
    _timed(rows, calls, once, work, ceilings, arguments)
    return list(rows.values())


def _call(program: Any, given: tuple[Any, ...], steps: int) -> Call:
    def call() -> tuple[float, ...]:
        jax.block_until_ready(program(*given))
        return (steps,)

    return call


def chunk_of(work: Work, mesh: Any, lanes: int | None = None) -> int:
    """Pairs of a chunk that divide a device's pairs: as many lanes as asked for, or about what esrl plays at once."""
    local, each = work.pairs // mesh.size, work.lanes // work.pairs
    if lanes is None:
        noise = 4 * sum(leaf.floats for leaf in work.leaves)
        lanes = each * footprint.default_chunk(work.pairs, each, noise, mesh, None)
    return max(c for c in range(1, local + 1) if local % c == 0 and (c == 1 or c * each <= lanes))


def _described(work: Work, part: str, kind: Kind, chunk: int, steps: int, devices: int) -> Row:
    width = max(max(leaf.sides) for leaf in work.leaves)
    lanes = chunk * work.lanes // work.pairs
    names = {"part": part, "network": work.name, "population": work.population, "dtype": work.dtype, "kind": kind.name}
    return {**names, "rank": kind.rank, "width": width, "devices": devices, "chunk_lanes": lanes, "steps": steps}


def _too_much(memory: float, most: float, seconds: float, limit: float) -> str:
    if memory > most:
        return f"would hold {memory / 2**30:.3g} GiB, of {most / 2**30:.3g}"
    return f"would take {seconds:.3g} s or more a window" if seconds > limit else ""


def _timed(
    rows: dict[str, Row],
    calls: dict[str, Call],
    once: dict[str, float],
    work: Work,
    ceilings: Ceilings,
    arguments: argparse.Namespace,
) -> None:
    """Times what is compiled, in turn with what the ceilings are measured by, and adds it to the rows."""
    if not calls:
        return
    calls |= {"flops": arguments.loads.products[work.dtype], "bytes": arguments.loads.add}
    once |= {name: first(calls[name]) for name in ("flops", "bytes")}
    found = turns(calls, once, arguments.repeats, arguments.seconds, arguments.seconds_limit * arguments.repeats)
    flops, moved = (float(np.median(windows[:, 1] / windows[:, 0])) for windows in map(found.pop, ("flops", "bytes")))
    now = Ceilings({work.dtype: flops}, moved, ceilings.memory)
    per_step = {name: windows[:, 0] / windows[:, 1] for name, windows in found.items()}
    plain = [name for name in REFERENCE if name in per_step]
    best = min(plain, key=lambda name: np.median(per_step[name])) if plain else None
    for name, seconds in per_step.items():
        row = rows[name]
        ideal = now.seconds(row["flops_per_step"], row["bytes_per_step"], work.dtype)
        row |= {"gflops_ceiling": rounded(flops / 1e9, 4), "gbytes_ceiling": rounded(moved / 1e9, 4)}
        row["roofline_ms"] = rounded(1e3 * ideal)
        row |= {"repeats": len(seconds), **spread("ms_per_step", 1e3 * seconds)}
        row["passes_per_second"] = rounded(work.lanes / np.median(seconds))
        row["fraction_of_roofline"] = rounded(row["roofline_ms"] / row["ms_per_step"], 4)
        if best is not None:
            both = min(len(seconds), len(per_step[best]))
            row |= spread("fraction_of_inference", per_step[best][:both] / seconds[:both], 4)
    for name in per_step:
        if best is not None:
            allowed = rows[best]["roofline_ms"] / rows[name]["roofline_ms"]
            rows[name]["roofline_fraction_of_inference"] = rounded(allowed, 4)


def run_forward(table: Table, ceilings: Ceilings, arguments: argparse.Namespace) -> None:
    """Every width, population and dtype."""
    print(table_head(HEAD), flush=True)
    for dtype in arguments.dtypes:
        for width in arguments.widths:
            for population in arguments.populations:
                work = policy_work(width, population, dtype)
                _report(table, group(work, "forward", kinds(arguments.ranks), ceilings, arguments))


def run_layer(table: Table, ceilings: Ceilings, arguments: argparse.Namespace) -> None:
    """One linear layer."""
    print(table_head(HEAD), flush=True)
    for dtype in arguments.dtypes:
        work = layer_work(arguments.layer_width, arguments.layer_population, dtype)
        which = [kind for kind in kinds((1,)) if kind.rank <= 1]
        _report(table, group(work, "layer", which, ceilings, arguments))


def _report(table: Table, rows: list[Row]) -> None:
    for row in rows:
        table.add(row)
        print(line(row), flush=True)
    jax.clear_caches()


def line(row: Row) -> str:
    """One line of the Markdown table."""
    names = [str(row[name]) for name in KEY]
    if row.get("left_out"):
        return "| " + " | ".join([*names, *["–"] * 8, row["left_out"]]) + " |"
    ranges = [ranged(row, name) for name in ("ms_per_step", "fraction_of_inference")]
    plain = [f"{float(row[k]):.3g}" if row.get(k) not in ("", None) else "–" for k in COLUMNS[-3:-1][::-1]]
    sizes = [f"{float(row[name]) / 2**20:.3g}" for name in ("peak_bytes", "noise_bytes")]
    rates = [f"{float(row['passes_per_second']):,.0f}", f"{float(row['compile_seconds']):.2g}"]
    return "| " + " | ".join([*names, *ranges, *plain, *rates, *sizes, ""]) + " |"
