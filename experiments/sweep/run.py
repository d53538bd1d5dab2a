"""Rank x sigma x population, and any other option, on an environment: what low rank costs, and where.

    python -m experiments.sweep.run                                            # CartPole on a laptop
    python -m experiments.sweep.run gymnax/Pendulum-v1 --ranks 1 4 dense --sigmas 0.03 0.1 --populations 64 --seeds 5
    python -m experiments.sweep.run brax/hopper --vary hidden=64x64,256x256 optimizer=adam,sgd --env-steps 1e7
    python -m experiments.sweep.run gymnax/CartPole-v1 --agent ppo --learning-rates 1e-4 3e-4 --vary gamma=0.98,0.99
    python -m experiments.sweep.run gymnax/CartPole-v1 --table                 # what is there, as Markdown

Every combination is measured with every seed. Rank "dense" (or 0) is dense noise, OpenES. All else is that of --recipe,
of the recipe agents/<environment>/<agent>.toml, or of the suite's defaults.

Written to experiments/sweep/results/<environment>.parquet: see lab/run.py for its columns; rank, sigma, population,
learning_rate, episodes_per_member, shaping and what --vary names have one each. What is there already is left out, so
that a sweep that was killed goes on, and more values and seeds extend it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd

import esrl
from esrl.training import recipe as recipes
from experiments.lab import pool
from experiments.lab import run as cells
from experiments.lab.recipes import base_recipe, typed, value, varied
from experiments.lab.record import ROOT, Row, folder_name, read_table, results
from experiments.lab.stats import interquartile_mean, interval

COLUMNS = ("rank", "sigma", "population", "learning_rate", "episodes_per_member", "shaping")
LAPTOP = {"rank": ["1", "4", "dense"], "sigma": ["0.02", "0.05", "0.1", "0.2"], "population": ["64", "256"]}
FULL = {
    "rank": ["1", "2", "4", "16", "dense"],
    "sigma": ["0.01", "0.02", "0.05", "0.1", "0.2"],
    "population": ["64", "256", "1024", "4096"],
}
PPO = {"learning_rate": ["1e-4", "3e-4", "1e-3"]}


def axes(arguments: argparse.Namespace) -> dict[str, list[Any]]:
    """Each swept option with its values."""
    defaults = PPO if arguments.agent == "ppo" else FULL if arguments.full else LAPTOP
    if arguments.agent == "open_es":
        defaults = {**defaults, "rank": ["dense"]}
    given = {name: getattr(arguments, f"{name}s", None) for name in COLUMNS[:4]}
    given |= {"episodes_per_member": arguments.episodes_per_member, "shaping": arguments.shapings}
    texts = dict(defaults) | {name: values for name, values in given.items() if values}
    for entry in arguments.vary:
        name, equals, values = entry.partition("=")
        if not equals or not values:
            raise esrl.EsrlError(f"--vary takes NAME=V1,V2, not {entry!r}")
        texts[name.replace("-", "_")] = values.split(",")
    return {
        name: list(dict.fromkeys(_value(arguments.agent, name, text) for text in values))
        for name, values in texts.items()
    }


def _value(agent: str, name: str, text: str) -> Any:
    if name != "rank" or agent == "ppo":
        found = typed(agent, name, text)
        return tuple(found) if isinstance(found, list) else found
    if text not in ("0", "dense") and not text.isdigit():
        raise esrl.EsrlError(f'{text} is no rank; give whole numbers, or "dense"')
    return "dense" if text in ("0", "dense") else str(int(text))


def plan(base: esrl.Recipe, swept: dict[str, list[Any]], seeds: int, table: Path, host: bool) -> cells.Plan:
    """Every combination with every seed."""
    runs = []
    names = list(dict.fromkeys([*COLUMNS, *swept]))
    for point in itertools.product(*swept.values()):
        recipe = varied(base, dict(zip(swept, map(_listed, point), strict=True)))
        columns = {name: value(recipe, name) for name in names}
        runs += [cells.Run(recipe, seed, columns) for seed in range(seeds)]
    return cells.Plan(table, base, runs, host)


def _listed(found: Any) -> Any:
    return list(found) if isinstance(found, tuple) else found


def swept_columns(rows: list[Row]) -> list[str]:
    """The columns of a table that are an option's."""
    names = list(rows[0])
    return names[names.index("agent") + 1 : names.index("seed")]


def tidy(rows: list[Row]) -> list[Row]:
    """The rows in order, each with every option's column: what earlier runs had is in their recipes."""
    names = list(dict.fromkeys(name for row in rows for name in swept_columns([row])))
    recipes_of = {row["settings"]: esrl.Recipe(**json.loads(row["recipe"])) for row in rows}
    found = {key: {name: value(recipe, name) for name in names} for key, recipe in recipes_of.items()}
    return [{"env": row["env"], "agent": row["agent"], **found[row["settings"]], **row} for row in rows]


def table(rows: list[Row]) -> str:
    """Final held-out returns as Markdown: a line for each setting, with the options that differ between settings."""
    found = pd.DataFrame(rows)
    last = final_rows(found)
    names = [name for name in ("agent", *swept_columns(rows)) if last[name].nunique(dropna=False) > 1]
    lines = [
        f"| {' | '.join([*names, 'seeds', 'env steps', 'return, IQM', '95 %'])} |",
        "|---" * (len(names) + 4) + "|",
    ]
    for _, group in last.groupby("settings", sort=False):
        low, high = interval(group["return_mean"])
        shown = ["" if pd.isna(x) else f"{x:g}" if isinstance(x, float) else str(x) for x in group[names].iloc[0]]
        scores = [f"{interquartile_mean(group['return_mean']):.4g}", f"[{low:.4g}, {high:.4g}]"]
        lines.append(f"| {' | '.join([*shown, str(len(group)), f'{group.env_steps.median():.3g}', *scores])} |")
    return "\n".join(lines)


def final_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """The last row of each run."""
    return rows.sort_values("generation", kind="stable").groupby(["settings", "seed"], sort=False).tail(1).sort_index()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env", nargs="?", default="gymnax/CartPole-v1")
    parser.add_argument("--agent", choices=list(recipes.AGENTS), default="eggroll")
    parser.add_argument("--ranks", nargs="+", help='whole numbers, and "dense" for OpenES')
    parser.add_argument("--sigmas", nargs="+")
    parser.add_argument("--populations", nargs="+")
    parser.add_argument("--learning-rates", nargs="+")
    parser.add_argument("--episodes-per-member", nargs="+")
    parser.add_argument("--shapings", nargs="+")
    parser.add_argument("--vary", nargs="+", default=[], metavar="NAME=V1,V2", help="any other option, or [policy] key")
    parser.add_argument("--seeds", type=int, help="0 to SEEDS - 1; 5, in full 10")
    parser.add_argument("--env-steps", type=float, help="budget of every run; 3e5, in full the recipe's")
    parser.add_argument("--evaluations", type=int, default=10, help="of each run, beside the start")
    parser.add_argument("--episodes", type=int, default=64, help="held-out ones of each evaluation")
    parser.add_argument("--recipe", type=Path, help="what everything else is taken from")
    parser.add_argument("--processes", type=int, help="cells at once; one for each core unless given")
    parser.add_argument("--full", action="store_true", help="more ranks, sigmas, populations, seeds and steps")
    parser.add_argument("--again", action="store_true", help="measure anew what is there already")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    parser.add_argument("--out", type=Path, default=results("sweep"))
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    path = arguments.out / f"{folder_name(arguments.env)}.parquet"
    failed: list[str] = []
    if not arguments.table:
        with pool.stoppable(f"stopped; what is done is in {path}, and the same command goes on"):
            try:
                failed = sweep(arguments, path)
            except esrl.EsrlError as error:
                sys.exit(str(error))
    rows = read_table(path)
    if not rows and not failed:
        sys.exit(f"{path} has no results")
    if rows:
        print(table(rows))
    if failed:
        sys.exit("failed: " + "; ".join(failed))


def sweep(arguments: argparse.Namespace, path: Path) -> list[str]:
    """Measures what a table misses; returns a sentence for each cell that failed."""
    for name in ("seeds", "env_steps", "evaluations", "episodes", "processes"):
        if (given := getattr(arguments, name)) is not None and given < 1:
            raise esrl.EsrlError(f"--{name.replace('_', '-')} is {given:g}, but must be at least 1")
    steps = arguments.env_steps or (None if arguments.full else 3e5)
    run = {"evaluations": arguments.evaluations, "evaluate_episodes": arguments.episodes}
    run |= {"env_steps": float(steps)} if steps else {}
    base = base_recipe(arguments.env, arguments.agent, recipe_file(arguments), run, {"hidden": [64, 64]})
    seeds = arguments.seeds or (10 if arguments.full else 5)
    wanted = plan(base, axes(arguments), seeds, path, False)
    wanted = wanted._replace(host=cells.stepped_by_python(base), tidy=tidy)
    return cells.measure([wanted], arguments.processes, arguments.again)


def recipe_file(arguments: argparse.Namespace) -> Path | None:
    """The recipe to vary: what was given, or the environment's own if it has one."""
    own = ROOT / "agents" / arguments.env.partition("?")[0] / f"{arguments.agent}.toml"
    return arguments.recipe or (own if own.exists() else None)


if __name__ == "__main__":
    main()
