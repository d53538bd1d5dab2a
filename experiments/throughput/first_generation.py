"""Seconds to the first generation from a cold start, and with the compilation cache; compiled memory of a generation.

    python -m experiments.throughput.first_generation

Each start is a process of its own: it imports esrl, makes the environment and the agent, and runs one generation. The
first one has an empty cache, the second finds what the first left. Memory is what the compiler says of its programs.
Written to experiments/throughput/results/first_generation.csv, with a JSON beside it.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass

import esrl
from experiments import script
from experiments.lab.recipes import FORMER
from experiments.lab.store import Row, Store, results

START = """
import time; begun = time.perf_counter()
import jax, esrl
from esrl.core.types import seed_key
agent = esrl.eggroll({env!r}, esrl.mlp(), population={population}, **{former})
state, metrics = jax.block_until_ready(agent.step(agent.init(seed_key(0))))
print(time.perf_counter() - begun)
"""

MEMORY = """
import json, jax, esrl
from esrl.core.types import seed_key
agent = esrl.eggroll({env!r}, esrl.mlp(), population={population}, chunk_pairs={chunk}, **{former})
state = jax.eval_shape(agent.init, seed_key(0))
batch = jax.eval_shape(agent.rollout, state)
programs = dict(rollout=jax.jit(agent.rollout).lower(state), update=jax.jit(agent.update).lower(state, batch))
sizes = {{k + "_mib": p.compile().memory_analysis().temp_size_in_bytes / 2**20 for k, p in programs.items()}}
print(json.dumps({{**sizes, "chunk": agent.plan.chunk, "devices": agent.plan.devices}}))
"""


def python(code: str, cache: str, **environment: str) -> str:
    """The last line that a fresh process prints."""
    env = {**os.environ, "ESRL_CACHE_DIR": cache, **environment}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout.strip().splitlines()[-1]


@dataclass(frozen=True)
class Options:
    env: str = "gymnasium/phys2d/CartPole-v1"
    population: int = 2048
    repeats: int = 3


def main() -> None:
    given = script.options(Options, __doc__)
    start = START.format(env=given.env, population=given.population, former=FORMER)
    cold, warm = [], []
    for _ in range(given.repeats):
        with tempfile.TemporaryDirectory() as cache:
            cold.append(float(python(start, cache)))
            warm.append(float(python(start, cache)))
    both = [("empty cache", x) for x in cold] + [("second process", x) for x in warm]
    rows: list[Row] = [{"env": given.env, "population": given.population, "what": w, "seconds": x} for w, x in both]
    print(f"{given.env}, 3x256, population {given.population}: first generation, process start to end")
    print(f"  empty cache {min(cold):.1f} to {max(cold):.1f} s, second process {min(warm):.1f} to {max(warm):.1f} s")

    for label, chunk, devices in (("as chosen", None, None), ("one device, all at once", 512, "1")):
        flags = {} if devices is None else {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        sizes = json.loads(
            python(MEMORY.format(env="brax/ant", population=1024, chunk=chunk, former=FORMER), "", **flags)
        )
        rows.append({"env": "brax/ant", "population": 1024, "what": label, **sizes})
        print(
            f"brax/ant, 3x256, population 1024, T=1000, {label}: temporary memory of each device"
            f" {sizes['rollout_mib']:.1f} MiB in the rollout, {sizes['update_mib']:.1f} MiB in the update"
            f" ({sizes['chunk']} pairs at once, {sizes['devices']} device(s))"
        )
    esrl.configure()  # only now, so that the processes have neither its devices nor its cache
    Store(results("throughput") / "first_generation.csv", ("env", "population", "what")).add(rows, replace=True)


if __name__ == "__main__":
    main()
