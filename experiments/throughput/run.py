"""How close does a perturbed forward pass come to plain inference, and a generation to the same rollout without noise?

    python -m experiments.throughput.run                                  # every part, in sizes that fit this machine
    python -m experiments.throughput.run --part forward --widths 256 1024 --populations 2048 --dtypes float32 bfloat16
    python -m experiments.throughput.run --part layer --layer-width 8192 --layer-population 1024 --dtypes bfloat16
    python -m experiments.throughput.run --part generation --envs brax/ant --horizon 100
    python -m experiments.throughput.run --table                          # prints again what is there

What each part times is said in forward.py (forward and layer), generation.py and growth.py.

Everything in a group (a network, a population, a dtype) runs in turn in one process, `--repeats` windows of at least
`--seconds`: median [lowest, highest], and the fraction of inference window by window. Compile seconds are those of
tracing and compiling, without a persistent cache. Peak bytes are the compiler's figure: temporaries, arguments and
results of the program, on all devices.

A row that would not fit the memory, or whose window would take more than `--seconds-limit`, says so and is left out.

Written to experiments/throughput/results/<name>-<part>.csv, with a JSON beside each.
"""

from __future__ import annotations

import dataclasses
import os
import time

os.environ["ESRL_CACHE_DIR"] = ""  # so that compile seconds are real

import jax

import esrl
from experiments import script
from experiments.lab.store import Store
from experiments.throughput.forward import FORWARD, LAYER
from experiments.throughput.generation import GENERATION
from experiments.throughput.growth import GROWTH
from experiments.throughput.machine_limits import device_name, loads, measure
from experiments.throughput.part import Bench, Options

PARTS = {"forward": FORWARD, "layer": LAYER, "generation": GENERATION, "growth": GROWTH}


def main() -> None:
    options = script.options(Options, __doc__)
    esrl.configure()
    jax.config.update("jax_compilation_cache_dir", None)
    name = options.name or device_name()
    if options.table:
        for part in options.part:
            rows = Store(options.out / f"{name}-{part}.csv", PARTS[part].key).read()
            print("\n".join([PARTS[part].head(), *map(PARTS[part].line, rows), ""]) if rows else "", flush=True)
        return
    options.fit()
    begun, using = time.perf_counter(), loads({"float32", *options.dtypes})
    found = measure(using)
    speeds = ", ".join(f"{dtype} {flops / 1e9:,.0f} Gflop/s" for dtype, flops in found.flops.items())
    print(f"ceilings: {speeds}, {found.bytes / 1e9:,.1f} GB/s; memory {found.memory / 2**30:.1f} GiB", flush=True)
    own = {key: value for key, value in dataclasses.asdict(options).items() if key not in ("out", "name", "table")}
    for part in options.part:
        print(f"\n{part}\n", flush=True)
        path = options.out / f"{name}-{part}.csv"
        PARTS[part].measure(Bench(options, found, using), path, {**own, "ceilings": found._asdict()})
        print(f"\n{part}: {time.perf_counter() - begun:.0f} s since the start", flush=True)


if __name__ == "__main__":
    main()
