"""How close does a perturbed forward pass come to plain inference, and a generation to the same rollout without noise?

    python experiments/throughput.py                                  # every part, in sizes that fit this machine
    python experiments/throughput.py --part forward --widths 256 1024 --populations 2048 --dtypes float32 bfloat16
    python experiments/throughput.py --part layer --layer-width 8192 --layer-population 1024 --dtypes bfloat16
    python experiments/throughput.py --part generation --envs brax/ant --horizon 100
    python experiments/throughput.py --table                          # prints again what is there

forward: milliseconds of one step of the three-layer policy of `esrl.mlp` for a whole population, on all devices:
inference with shared weights, in esrl's chunks and all at once (the faster of the two is what the others are measured
against), noise of each rank that was drawn before, rank 1 drawn anew in every step, and dense noise, drawn before and
materialised. Timed is a scan of steps (throughput_cells.py) from its call until its result is there, as many scans as
fill a window. Drawing what is stored, and compiling, are not in it. Biases are perturbed, densely.
layer: the same of one linear layer without biases.
generation, growth: see throughput_generation.py and throughput_growth.py.

Everything in a group (a network, a population, a dtype) runs in turn in one process, `--repeats` windows of at least
`--seconds`: median [lowest, highest], and the fraction of inference window by window. Compile seconds are those of
tracing and compiling, without a persistent cache. Peak bytes are the compiler's figure: temporaries, arguments and
results of the program, on all devices.

The roofline is the longer of two times: operations at the speed of a large matrix product, and bytes that must move at
the speed of adding 1 to a large array, both measured at the start on all devices; what counts is said in
`throughput_cells.cost`. What fits into a cache moves faster than that, so a small network can be above its roofline.
`roofline_fraction_of_inference` is inference's roofline over the row's: what noise would leave without any other cost.
A row that would not fit the memory, or whose window would take more than `--seconds-limit`, says so and is left out.

Written to experiments/results/throughput/<name>-<part>.csv, with a JSON beside each.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone that is not installed
os.environ["ESRL_CACHE_DIR"] = ""  # so that compile seconds are real

import jax
import numpy as np
import throughput_generation as generation
import throughput_growth as growth
from ceilings import DTYPES, Ceilings, device_name, held, measure, on_cpu
from record import RESULTS, Row, read_rows
from throughput_cells import Kind, Work, cost, kinds, layer_work, policy_work, program, steps_for
from throughput_generation import run_generation
from throughput_growth import run_growth
from windows import Call, Table, compiled, first, ranged, reason_of, rounded, spread, table_head, turns

import esrl
from esrl import sharding

KEY: tuple[str, ...] = ("part", "network", "population", "dtype", "kind")
COLUMNS: tuple[str, ...] = (*KEY, "rank", "width", "devices", "chunk_lanes", "steps", "repeats")
COLUMNS += ("ms_per_step", "ms_per_step_lowest", "ms_per_step_highest")
COLUMNS += ("fraction_of_inference", "fraction_of_inference_lowest", "fraction_of_inference_highest")
COLUMNS += ("passes_per_second", "compile_seconds", "peak_bytes", "noise_bytes", "flops_per_step", "bytes_per_step")
COLUMNS += ("roofline_ms", "fraction_of_roofline", "roofline_fraction_of_inference", "left_out")
GROWTH = {
    "population": [256, 1024, 4096, 16384, 65536, 262144],
    "width": [32, 64, 128, 256, 512, 1024, 2048],
    "rank": [1, 2, 4, 8, 16, 32, 64],
    "episodes": [1, 2, 4, 8, 16],
}
REFERENCE = ("inference, in chunks", "inference, at once")


def group(work: Work, part: str, which: list[Kind], ceilings: Ceilings, arguments: argparse.Namespace) -> list[Row]:
    """The rows of one network, population and dtype."""
    mesh = sharding.default_mesh(work.pairs)
    chunk = _chunk(work, mesh, arguments.chunk)
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
        row["roofline_ms"] = rounded(1e3 * ideal)
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
    _timed(rows, calls, once, work, arguments)
    return list(rows.values())


def _call(program: Any, given: tuple[Any, ...], steps: int) -> Call:
    def call() -> tuple[float, ...]:
        jax.block_until_ready(program(*given))
        return (steps,)

    return call


def _chunk(work: Work, mesh: Any, lanes: int | None) -> int:
    """Pairs of a chunk: esrl's own choice, or the most that divide a device's pairs within a number of lanes."""
    if lanes is None:
        return sharding.default_chunk(work.pairs, work.lanes // work.pairs, mesh)
    local, each = work.pairs // mesh.size, work.lanes // work.pairs
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
    rows: dict[str, Row], calls: dict[str, Call], once: dict[str, float], work: Work, arguments: argparse.Namespace
) -> None:
    """Times what is compiled, in turn, and adds it to the rows."""
    found = turns(calls, once, arguments.repeats, arguments.seconds, arguments.seconds_limit * arguments.repeats)
    per_step = {name: windows[:, 0] / windows[:, 1] for name, windows in found.items()}
    plain = [name for name in REFERENCE if name in per_step]
    best = min(plain, key=lambda name: np.median(per_step[name])) if plain else None
    for name, seconds in per_step.items():
        row = rows[name]
        row |= {"repeats": len(seconds), **spread("ms_per_step", 1e3 * seconds)}
        row["passes_per_second"] = rounded(work.lanes / np.median(seconds))
        row["fraction_of_roofline"] = rounded(row["roofline_ms"] / row["ms_per_step"], 4)
        if best is not None:
            both = min(len(seconds), len(per_step[best]))
            row |= spread("fraction_of_inference", per_step[best][:both] / seconds[:both], 4)
            row["roofline_fraction_of_inference"] = rounded(rows[best]["roofline_ms"] / row["roofline_ms"], 4)


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


# ---- tables ---------------------------------------------------------------------------------------------------------

HEAD: tuple[str, ...] = (
    "part",
    "network",
    "population",
    "dtype",
    "kind",
    "ms a step",
    "of inference",
    "roofline allows",
)
HEAD += ("of its roofline", "passes/s", "compile s", "peak MiB", "noise MiB", "left out")


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


MEASURES: dict[str, Any] = {
    "forward": (run_forward, COLUMNS, KEY, HEAD, line),
    "layer": (run_layer, COLUMNS, KEY, HEAD, line),
    "generation": (run_generation, generation.COLUMNS, generation.KEY, generation.HEAD, generation.line),
    "growth": (run_growth, growth.COLUMNS, growth.KEY, growth.HEAD, growth.line),
}


def main() -> None:
    arguments = _parser().parse_args()
    esrl.configure()
    jax.config.update("jax_compilation_cache_dir", None)
    name = arguments.name or device_name()
    if arguments.table:
        for part in arguments.part:
            _, _, _, columns, shown = MEASURES[part]
            rows = read_rows(arguments.out / f"{name}-{part}.csv")
            print("\n".join([table_head(columns), *map(shown, rows), ""]) if rows else "", flush=True)
        return
    _defaults(arguments)
    settings = {key: value for key, value in vars(arguments).items() if key not in ("out", "name", "table")}
    begun = time.perf_counter()
    found = measure(tuple({"float32", *arguments.dtypes}))
    speeds = ", ".join(f"{dtype} {flops / 1e9:,.0f} Gflop/s" for dtype, flops in found.flops.items())
    print(f"ceilings: {speeds}, {found.bytes / 1e9:,.1f} GB/s; memory {found.memory / 2**30:.1f} GiB", flush=True)
    settings["ceilings"] = found._asdict()
    for part in arguments.part:
        run, columns, key, _, _ = MEASURES[part]
        print(f"\n{part}\n", flush=True)
        run(Table(arguments.out / f"{name}-{part}.csv", columns, key, settings), found, arguments)
        print(f"\n{part}: {time.perf_counter() - begun:.0f} s since the start", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=list(MEASURES), default=list(MEASURES))
    parser.add_argument("--widths", type=int, nargs="+", help="of the hidden layers")
    parser.add_argument("--populations", type=int, nargs="+", help="members, even numbers")
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES))
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--layer-width", type=int)
    parser.add_argument("--layer-population", type=int, default=1024)
    parser.add_argument("--envs", nargs="+", help="of the generations")
    parser.add_argument(
        "--generation-population", type=int, help="of the generations; each environment's own unless given"
    )
    parser.add_argument("--horizon", type=int, help="of the generations, at most; 0 leaves each environment its own")
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True, help="other libraries too")
    parser.add_argument("--base-population", type=int, default=1024, help="of what grows")
    parser.add_argument("--base-width", type=int, default=64, help="of what grows")
    parser.add_argument("--rank-width", type=int, default=256, help="where the rank grows")
    for factor, values in GROWTH.items():
        parser.add_argument(f"--growth-{factor}", type=int, nargs="*", default=values)
    parser.add_argument("--chunk", type=int, help="lanes of a chunk on a device; esrl's own choice unless given")
    parser.add_argument("--repeats", type=int, default=5, help="windows of each")
    parser.add_argument("--seconds", type=float, default=0.5, help="of each window, at least")
    parser.add_argument(
        "--seconds-limit", type=float, default=20.0, help="of each window, at most; else it is left out"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "throughput")
    parser.add_argument("--name", help="of the result files; the devices' unless given")
    parser.add_argument("--table", action="store_true", help="measure nothing; print what is there")
    return parser


def _defaults(arguments: argparse.Namespace) -> None:
    """Sizes that fit the machine, where none are given."""
    small = on_cpu()
    arguments.widths = arguments.widths or ([64, 256, 1024, 2048] if small else [64, 256, 1024, 2048, 4096, 8192])
    arguments.populations = arguments.populations or ([256, 2048] if small else [256, 2048, 16384, 65536, 262144])
    arguments.dtypes = arguments.dtypes or (["float32"] if small else ["float32", "bfloat16"])
    arguments.horizon = (100 if small else 0) if arguments.horizon is None else arguments.horizon
    arguments.layer_width = arguments.layer_width or (2048 if small else 8192)


if __name__ == "__main__":
    main()
