"""Rank, sigma and population: where the final held-out return is good, and how far from there it still is.

    python experiments/sweep.py gymnasium/phys2d/CartPole-v1 --ranks 1 4 dense --sigmas 0.01 0.03 0.1 0.3 \\
        --populations 64 256 --seeds 5 --env-steps 1e6

Everything else is that of the recipe agents/<environment>/eggroll.toml, or of --recipe. Rank "dense" (or 0) is dense
noise, OpenES. The runs of a rank and a population, every sigma with every seed, train at once in one compiled program;
`seconds` are those of all of them together so far.

Written after each rank and population to experiments/results/sweep/<environment>.csv, a row for each run and
evaluation, with a JSON beside it; runs that are there already are left out. Returns are those of the unperturbed
parameters on held-out episodes.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
import time
import traceback
from pathlib import Path

import jax
import numpy as np
from record import RESULTS, ROOT, About, Row, folder_name, plain, read_rows, write_rows

import esrl
from esrl import recipe as recipes


def with_noise(recipe: esrl.Recipe, rank: str, population: int) -> esrl.Recipe:
    """The recipe with another rank, "dense" for OpenES, and another population."""
    options = {k: v for k, v in recipe.options.items() if k not in ("rank", "thin", "chunk")}
    options["population"] = population
    if rank == "dense":
        return dataclasses.replace(recipe, agent="open_es", options=options)
    thin = {k: v for k, v in recipe.options.items() if k == "thin"}
    return dataclasses.replace(recipe, agent="eggroll", options={**options, **thin, "rank": int(rank)})


def cell(recipe: esrl.Recipe, rank: str, population: int, runs: list[tuple[float, int]]) -> list[Row]:
    """The rows of every (sigma, seed) at one rank and population."""
    agent = with_noise(recipe, rank, population).build()
    many = esrl.train_many(
        agent,
        [seed for _, seed in runs],
        hyper={"sigma": [sigma for sigma, _ in runs]},
        env_steps=recipe.env_steps,
        generations=recipe.generations,
        evaluations=recipe.evaluations,
        evaluate_episodes=recipe.evaluate_episodes,
    )
    rows = []
    for row in many.rows:
        sigma, seed = runs[row["run"]]
        common = {"env": recipe.env, "rank": rank, "population": population, "sigma": sigma, "seed": seed}
        counts = {k: row[k] for k in ("generation", "env_steps", "seconds")}
        rows.append({**common, **counts, **{k: row[f"eval_{k}"] for k in ("return_mean", "return_std")}})
    return rows


def done(rows: list[Row], rank: str, population: int) -> set[tuple[float, int]]:
    """The (sigma, seed) that are measured at a rank and population."""
    here = [row for row in rows if row["rank"] == rank and int(row["population"]) == population]
    return {(float(row["sigma"]), int(row["seed"])) for row in here}


def sweep(recipe: esrl.Recipe, csv: Path, ranks: list[str], populations: list[int], wanted: list) -> list[str]:
    """Measures what is not in the CSV yet, cell by cell; returns the cells that failed.

    Args:
      wanted: (sigma, seed) of every cell.
    """
    rows, about, failed = read_rows(csv), About(csv.with_suffix(".json"), plain(recipe)), []
    for rank, population in itertools.product(ranks, populations):
        name = f"rank {rank}, population {population}"
        measured = done(rows, rank, population)
        runs, begun = [run for run in wanted if run not in measured], time.perf_counter()
        if not runs:
            print(f"{name}: there already", flush=True)
            continue
        try:
            new = cell(recipe, rank, population, runs)
        except Exception as error:
            traceback.print_exc()
            about.failed(name, f"{type(error).__name__}: {error}")
            failed.append(name)
            continue
        rows += new
        write_rows(csv, rows)
        about.ran([name])
        last = {(row["sigma"], row["seed"]): row["return_mean"] for row in new}
        means = {
            s: np.mean([r for (sigma, _), r in last.items() if sigma == s]) for s in dict.fromkeys(s for s, _ in runs)
        }
        shown = ", ".join(f"{mean:.1f} at sigma {sigma:g}" for sigma, mean in means.items())
        print(f"{name}: {shown}; {len(runs)} runs in {time.perf_counter() - begun:.1f} s", flush=True)
        jax.clear_caches()
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env", nargs="?", default="gymnasium/phys2d/CartPole-v1")
    parser.add_argument("--ranks", nargs="+", default=["1", "4", "dense"])
    parser.add_argument("--sigmas", nargs="+", type=float, default=[0.01, 0.03, 0.1, 0.3])
    parser.add_argument("--populations", nargs="+", type=int, default=[64, 256])
    parser.add_argument("--seeds", type=int, default=5, help="0 to SEEDS - 1")
    parser.add_argument("--env-steps", type=float, help="budget of every run; the recipe's unless given")
    parser.add_argument("--evaluations", type=int, default=5, help="of each run")
    parser.add_argument("--episodes", type=int, default=128, help="held-out ones of each evaluation")
    parser.add_argument("--again", action="store_true", help="measure anew what is there already")
    parser.add_argument("--recipe", type=Path, help="what everything else is taken from")
    parser.add_argument("--out", type=Path, default=RESULTS / "sweep")
    arguments = parser.parse_args()
    ranks = ["dense" if rank == "0" else rank for rank in arguments.ranks]
    for rank in ranks:
        if rank != "dense" and not rank.isdigit():
            parser.error(f'{rank} is no rank; give whole numbers, or "dense"')
    path = arguments.recipe or ROOT / "agents" / arguments.env.partition("?")[0] / "eggroll.toml"
    run = {"env": arguments.env, "evaluations": arguments.evaluations, "evaluate_episodes": arguments.episodes}
    run |= {"env_steps": arguments.env_steps} if arguments.env_steps else {}
    recipe = recipes.read(path).override(run)
    csv = arguments.out / f"{folder_name(arguments.env)}.csv"
    if arguments.again:
        csv.unlink(missing_ok=True)
    if not csv.exists():
        csv.with_suffix(".json").unlink(missing_ok=True)
    elif About(csv.with_suffix(".json"), {}).values["recipe"] != plain(recipe):
        sys.exit(f"{csv} was measured with another recipe, budget or evaluations; --again measures anew")
    wanted = list(itertools.product(arguments.sigmas, range(arguments.seeds)))
    failed = sweep(recipe, csv, ranks, arguments.populations, wanted)
    if failed:
        sys.exit("failed: " + "; ".join(failed))


if __name__ == "__main__":
    main()
