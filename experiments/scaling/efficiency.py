"""Steps a second of 2 workers of Ray over twice those of 1, on an environment that Python steps.

    python -m experiments.scaling.efficiency                              # gymnasium/HalfCheetah-v5
    python -m experiments.scaling.efficiency gymnasium/Humanoid-v5 --workers 4 --generations 6

Both fleets are there all the time and play the same generations in turn, so that whatever else the machine does falls
on both alike. Efficiency is the median, over pairs of generations, of seconds of one over workers x seconds of all.
The machine needs a core for each worker; the driver has little to do meanwhile. Written: results/efficiency.json.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import tyro

import esrl
from esrl.cluster.fleet import Fleet
from esrl.cluster.opening import Cluster, opened
from esrl.core.runtime import cores
from esrl.core.types import seed_key
from experiments import script
from experiments.lab.store import results

RESULTS = results("scaling")


@dataclass
class Arguments:
    """The command line."""

    env: tyro.conf.Positional[str] = "gymnasium/HalfCheetah-v5"
    workers: int = 2
    population: int = 32
    block: int = 1  # pairs
    generations: int = 8  # of each fleet
    out: Path = RESULTS


def main() -> None:
    arguments = script.options(Arguments, __doc__)
    script.at_least(arguments, 1, "workers", "population", "block", "generations")
    agent = esrl.eggroll(arguments.env, population=arguments.population)
    state = agent.init(seed_key(0))
    fleets: dict[int, Fleet] = {}
    seconds: dict[int, list[float]] = {}
    for workers in (1, arguments.workers):
        # They share one Ray, which the first of them starts with cores for all.
        if not fleets:
            import ray

            ray.init(num_cpus=1 + arguments.workers, include_dashboard=False, log_to_driver=False)
        cluster = Cluster("local", workers, block_pairs=arguments.block)
        fleets[workers] = opened(agent, cluster)[1]
        fleets[workers].seconds = 300.0
        while fleets[workers].rollout(state) is not None and fleets[workers].metrics["workers"] < workers:
            pass  # until all of them are there; this compiles as well
        fleets[workers].rollout(state)
        seconds[workers] = []
    for generation in range(arguments.generations):
        for workers in sorted(fleets, reverse=bool(generation % 2)):
            begun = time.perf_counter()
            experience = fleets[workers].rollout(state)
            seconds[workers].append(time.perf_counter() - begun)
    pairs = zip(seconds[1], seconds[arguments.workers], strict=True)
    each = [one / (arguments.workers * many) for one, many in pairs]
    steps = int(jax.numpy.sum(experience.lengths))
    found = {
        "env": arguments.env,
        "workers": arguments.workers,
        "population": arguments.population,
        "block_pairs": arguments.block,
        "efficiency": statistics.median(each),
        "lowest": min(each),
        "highest": max(each),
        "steps_per_second_of_one": steps / statistics.median(seconds[1]),
        "cores": cores(),
        "load": os.getloadavg()[0],
    }
    for fleet in fleets.values():
        fleet.close()
    print(json.dumps(found))
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "efficiency.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
