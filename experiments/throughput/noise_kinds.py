"""Do noise of signs, noise in fewer bytes, and products in bfloat16 learn as well as normal float32 noise?

    python -m experiments.throughput.noise_kinds                       # CartPole and Pendulum, five seeds
    python -m experiments.throughput.noise_kinds brax/inverted_double_pendulum --seeds 5 --env-steps 6e6
    python -m experiments.throughput.noise_kinds --table               # prints again what is there

Each kind is the recipe agents/<environment>/eggroll.toml with nothing else changed, and no tuning for any of them. The
seeds of a kind train in one compiled program; returns are those of the unperturbed parameters on held-out episodes:
the interquartile mean over seeds with its 95 % bootstrap interval, at the end, and on average over all evaluations but
the first (which says how fast it learns). Seconds are those of all seeds together, compiling included.

Written after each kind to experiments/throughput/results/noise_kinds/<environment>.csv, with a JSON beside it.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import jax
import pandas as pd
from tyro.conf import Positional

import esrl
from esrl.training import recipe as recipes
from experiments import script
from experiments.lab.stats import interquartile_mean, interval
from experiments.lab.store import ROOT, Row, Store, folder_name, plain, results

RESULTS = results("throughput") / "noise_kinds"
HEAD = ("environment", "noise", "seeds", "env steps", "last return, IQM [95 %]", "mean return", "seconds")
KINDS: dict[str, dict[str, str]] = {
    "normal, float32": {},
    "normal, bfloat16": {"noise_dtype": "bfloat16"},
    "rademacher, int8": {"noise_distribution": "rademacher", "noise_dtype": "int8"},
    "normal, products in bfloat16": {"precision": "bfloat16"},
}


def measure(recipe: esrl.Recipe, kind: str, seeds: int) -> list[Row]:
    """A row for each seed and evaluation."""
    begun = time.perf_counter()
    agent = recipe.override({}, None, KINDS[kind]).build()
    budget: Row = {"env_steps": recipe.env_steps, "num_evals": recipe.num_evals}
    many = esrl.train_many(agent, range(seeds), **budget, eval_episodes=recipe.eval_episodes)
    seconds = round(time.perf_counter() - begun, 2)
    names = ("seed", "generation", "env_steps", "eval_return_mean")
    return [{"env": recipe.env, "kind": kind, **{k: row[k] for k in names}, "seconds": seconds} for row in many.rows]


def line(rows: list[Row]) -> str:
    """A kind's row of the table, from its rows."""
    runs = pd.DataFrame(rows).astype({"env_steps": float, "eval_return_mean": float}).groupby("seed")
    scores = runs["eval_return_mean"].last(), runs["eval_return_mean"].apply(lambda run: run.iloc[1:].mean())
    cells = [f"{interquartile_mean(x):.4g} [{', '.join(f'{end:.4g}' for end in interval(x))}]" for x in scores]
    steps = runs["env_steps"].last().median()
    return script.line([rows[0]["env"], rows[0]["kind"], len(runs), f"{steps:.3g}", *cells, rows[0]["seconds"]])


@dataclass(frozen=True)
class Options:
    envs: Positional[tuple[str, ...]] = ("gymnasium/phys2d/CartPole-v1", "gymnasium/phys2d/Pendulum-v0")
    seeds: int = 5  # 0 to SEEDS - 1
    env_steps: float | None = None  # of each run; the recipe's unless given
    kinds: tuple[str, ...] = tuple(KINDS)
    table: bool = False  # measure nothing; print what is there
    out: Path = RESULTS


def main() -> None:
    given = script.options(Options, __doc__)
    unknown = set(given.kinds) - KINDS.keys()
    if unknown:
        script.wrong(f"{', '.join(unknown)}: no such kind; there are {'; '.join(KINDS)}")
    print(script.table(HEAD))
    for env in given.envs:
        store = Store(given.out / f"{folder_name(env)}.csv", ("kind",))
        budget: Row = {"env_steps": given.env_steps} if given.env_steps else {}
        recipe = recipes.read(ROOT / "agents" / env / "eggroll.toml").override({"num_evals": 10, **budget})
        for kind in given.kinds:
            if not given.table:
                store.add(measure(recipe, kind, given.seeds), replace=True, about={"recipe": plain(recipe)})
                jax.clear_caches()
            mine = [row for row in store.read() if row["kind"] == kind]
            if mine:
                print(line(mine), flush=True)


if __name__ == "__main__":
    main()
