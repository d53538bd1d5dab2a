"""How close does a perturbed forward pass come to plain inference, and a generation to the same rollout without noise?

    python -m experiments.throughput.run                                  # every part, in sizes that fit this machine
    python -m experiments.throughput.run --part forward --widths 256 1024 --populations 2048 --dtypes float32 bfloat16
    python -m experiments.throughput.run --part layer --layer-width 8192 --layer-population 1024 --dtypes bfloat16
    python -m experiments.throughput.run --part generation --envs brax/ant --horizon 100
    python -m experiments.throughput.run --table                          # prints again what is there

What each part times is said in forward.py (forward and layer), generation.py and
growth.py.

Everything in a group (a network, a population, a dtype) runs in turn in one process, `--repeats` windows of at least
`--seconds`: median [lowest, highest], and the fraction of inference window by window. Compile seconds are those of
tracing and compiling, without a persistent cache. Peak bytes are the compiler's figure: temporaries, arguments and
results of the program, on all devices.

A row that would not fit the memory, or whose window would take more than `--seconds-limit`, says so and is left out.

Written to experiments/throughput/results/<name>-<part>.csv, with a JSON beside each.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

os.environ["ESRL_CACHE_DIR"] = ""  # so that compile seconds are real

import jax

import esrl
from experiments.lab.record import read_rows, results
from experiments.lab.timing import Table, table_head
from experiments.throughput import forward, generation, growth
from experiments.throughput.machine_limits import DTYPES, device_name, loads, measure, on_cpu

GROWTH = {
    "population": [256, 1024, 4096, 16384, 65536, 262144],
    "width": [32, 64, 128, 256, 512, 1024, 2048],
    "rank": [1, 2, 4, 8, 16, 32, 64],
    "episodes": [1, 2, 4, 8, 16],
}

MEASURES: dict[str, Any] = {
    "forward": (forward.run_forward, forward.COLUMNS, forward.KEY, forward.HEAD, forward.line),
    "layer": (forward.run_layer, forward.COLUMNS, forward.KEY, forward.HEAD, forward.line),
    "generation": (generation.run_generation, generation.COLUMNS, generation.KEY, generation.HEAD, generation.line),
    "growth": (growth.run_growth, growth.COLUMNS, growth.KEY, growth.HEAD, growth.line),
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
    arguments.loads = loads({"float32", *arguments.dtypes})
    found = measure(arguments.loads)
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
    parser.add_argument("--out", type=Path, default=results("throughput"))
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
