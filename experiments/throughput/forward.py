"""Forward passes beside plain inference: the parts forward and layer of throughput/run.py.

forward: milliseconds of one step of the three-layer policy of `esrl.mlp` for a whole population, on all devices:
inference with shared weights, in esrl's chunks and all at once (the faster of the two is what the others are measured
against), noise of each rank that was drawn before, rank 1 drawn anew in every step, and dense noise, drawn before and
materialised. Timed is a scan of steps (kinds.py) from its call until its result is there, as many scans as
fill a window. Drawing what is stored, and compiling, are not in it. Biases are perturbed, densely.
layer: the same of one linear layer without biases.

The roofline is the longer of two times: operations at the speed of a large matrix product, and bytes that must move at
the speed of adding 1 to a large array, both on all devices, measured in the same turns; what counts is said in
`kinds.cost`. What fits into a cache moves faster than that, so a small network can be above its roofline.
`roofline_fraction_of_inference` is inference's roofline over the row's: what noise would leave without any other cost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from esrl.algorithms import memory_plan
from esrl.core import sharding
from experiments.lab.store import Row
from experiments.throughput.kinds import Kind, Work, cost, kinds, layer_work, policy_work, program, steps_for
from experiments.throughput.machine_limits import Ceilings, held, waited
from experiments.throughput.part import Bench, Part
from experiments.throughput.timing import Call, compiled, first, reason_of, rounded, spread

KEY: tuple[str, ...] = ("part", "network", "population", "dtype", "kind")
COLUMNS: tuple[str, ...] = ("rank", "width", "devices", "chunk_lanes", "steps", "repeats")
COLUMNS += ("ms_per_step", "ms_per_step_lowest", "ms_per_step_highest")
COLUMNS += ("fraction_of_inference", "fraction_of_inference_lowest", "fraction_of_inference_highest")
COLUMNS += ("passes_per_second", "compile_seconds", "peak_bytes", "noise_bytes", "flops_per_step", "bytes_per_step")
COLUMNS += ("gflops_ceiling", "gbytes_ceiling")
COLUMNS += ("roofline_ms", "fraction_of_roofline", "roofline_fraction_of_inference")
CELLS = {
    "ms a step": ("ms_per_step", "[.3g]"),
    "of inference": ("fraction_of_inference", "[.3g]"),
    "roofline allows": ("roofline_fraction_of_inference", ".3g"),
    "of its roofline": ("fraction_of_roofline", ".3g"),
    "passes/s": ("passes_per_second", ",.0f"),
    "compile s": ("compile_seconds", ".2g"),
    "peak MiB": ("peak_bytes", "MiB"),
    "noise MiB": ("noise_bytes", "MiB"),
}
REFERENCE = ("inference, in chunks", "inference, at once")


def run_forward(bench: Bench, add: Callable[[Row], None]) -> None:
    """Every width, population and dtype."""
    options = bench.options
    for dtype in options.dtypes:
        for width in options.widths:
            for population in options.populations:
                _group(policy_work(width, population, dtype), "forward", kinds(options.ranks), bench, add)


def run_layer(bench: Bench, add: Callable[[Row], None]) -> None:
    """One linear layer."""
    options = bench.options
    for dtype in options.dtypes:
        work = layer_work(options.layer_width or 0, options.layer_population, dtype)
        _group(work, "layer", [kind for kind in kinds((1,)) if kind.rank <= 1], bench, add)


def _group(work: Work, part: str, which: list[Kind], bench: Bench, add: Callable[[Row], None]) -> None:
    """The rows of one network, population and dtype."""
    mesh, ceilings = sharding.default_mesh(work.pairs), bench.ceilings
    chunk = chunk_of(work, mesh, bench.options.chunk)
    steps = steps_for(work, chunk, ceilings, bench.options.seconds)
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
        row["left_out"] = bench.too_much(taken + need.held, ideal * steps)
        if row["left_out"]:
            continue
        try:
            function, given = program(work, kind, size, steps, mesh)()
            run, seconds = compiled(function, *given)
            call = waited(run, given, steps)
            once[kind.name] = first(call)
        except Exception as error:
            row["left_out"] = reason_of(error)
            continue
        calls[kind.name] = call
        taken += need.held
        row |= {"compile_seconds": rounded(seconds, 3), "peak_bytes": held(run, mesh.size)}
    if calls:
        _timed(rows, calls, once, work, bench)
    for row in rows.values():
        add(row)
    jax.clear_caches()


def chunk_of(work: Work, mesh: Any, lanes: int | None = None) -> int:
    """Pairs of a chunk that divide a device's pairs: as many lanes as asked for, or about what esrl plays at once."""
    local, each = work.pairs // mesh.size, work.lanes // work.pairs
    if lanes is None:
        noise = 4 * sum(leaf.num_random for leaf in work.leaves)
        lanes = each * memory_plan.default_chunk(work.pairs, each, noise, mesh, None)
    return max(c for c in range(1, local + 1) if local % c == 0 and (c == 1 or c * each <= lanes))


def _described(work: Work, part: str, kind: Kind, chunk: int, steps: int, devices: int) -> Row:
    width = max(max(leaf.matrix_shape) for leaf in work.leaves)
    lanes = chunk * work.lanes // work.pairs
    names = {"part": part, "network": work.name, "population": work.population, "dtype": work.dtype, "kind": kind.name}
    return {**names, "rank": kind.rank, "width": width, "devices": devices, "chunk_lanes": lanes, "steps": steps}


def _timed(rows: dict[str, Row], calls: dict[str, Call], once: dict[str, float], work: Work, bench: Bench) -> None:
    """Times what is compiled, in turn with what the ceilings are measured by, and adds it to the rows."""
    calls |= {"flops": bench.loads.products[work.dtype], "bytes": bench.loads.add}
    once |= {name: first(calls[name]) for name in ("flops", "bytes")}
    found = bench.turns(calls, once)
    flops, moved = (float(np.median(windows[:, 1] / windows[:, 0])) for windows in map(found.pop, ("flops", "bytes")))
    now = Ceilings({work.dtype: flops}, moved, bench.ceilings.memory)
    per_step = {name: windows[:, 0] / windows[:, 1] for name, windows in found.items()}
    plain = [name for name in REFERENCE if name in per_step]
    best = min(plain, key=lambda name: np.median(per_step[name]), default="")
    for name, seconds in per_step.items():
        row = rows[name]
        ideal = now.seconds(row["flops_per_step"], row["bytes_per_step"], work.dtype)
        row |= {"gflops_ceiling": rounded(flops / 1e9, 4), "gbytes_ceiling": rounded(moved / 1e9, 4)}
        row["roofline_ms"] = rounded(1e3 * ideal)
        row |= {"repeats": len(seconds), **spread("ms_per_step", 1e3 * seconds)}
        row["passes_per_second"] = rounded(work.lanes / np.median(seconds))
        row["fraction_of_roofline"] = rounded(row["roofline_ms"] / row["ms_per_step"], 4)
        if best:
            both = min(len(seconds), len(per_step[best]))  # windows of the same turn are compared
            row |= spread("fraction_of_inference", per_step[best][:both] / seconds[:both], 4)
    for name in per_step if best else ():
        allowed = rows[best]["roofline_ms"] / rows[name]["roofline_ms"]
        rows[name]["roofline_fraction_of_inference"] = rounded(allowed, 4)


NAMES = {name: name for name in KEY}
FORWARD, LAYER = (Part(run, KEY, COLUMNS, NAMES, CELLS) for run in (run_forward, run_layer))
