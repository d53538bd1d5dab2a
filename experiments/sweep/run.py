"""Rank x sigma x population, and any other option, on an environment: what low rank costs, and where.

    python -m experiments.sweep.run                                            # CartPole on a laptop
    python -m experiments.sweep.run gymnax/Pendulum-v1 --ranks 1 4 dense --sigmas 0.03 0.1 --populations 64 --seeds 5
    python -m experiments.sweep.run brax/hopper --vary hidden=64x64,256x256 optimizer=adam,sgd --env-steps 1e7
    python -m experiments.sweep.run gymnax/CartPole-v1 --agent ppo --learning-rates 1e-4 3e-4 --vary gamma=0.98,0.99
    python -m experiments.sweep.run brax/hopper --ray-address auto             # on the nodes of a Ray cluster
    python -m experiments.sweep.run gymnax/CartPole-v1 --table                 # what is there, as Markdown

Every combination is measured with every seed. Rank "dense" (or 0) is dense noise, OpenES. All else is that of --recipe,
of the recipe agents/<environment>/<agent>.toml, or of the suite's defaults.

Written to experiments/sweep/results/<environment>.csv: see lab/run.py for its columns; rank, sigma, population,
learning_rate, episodes_per_member, shaping and what --vary names have one each. What is there already is left out, so
that a sweep that was killed goes on, and more values and seeds extend it.
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
import tyro

import esrl
from experiments import script
from experiments.lab import pool
from experiments.lab import run as cells
from experiments.lab.recipes import base_recipe, own_recipe, typed, value, varied
from experiments.lab.stats import SWEEP, interquartile_mean, interval
from experiments.lab.store import Row, folder_name

COLUMNS = ("rank", "sigma", "population", "learning_rate", "episodes_per_member", "shaping")
LAPTOP = {"rank": ["1", "4", "dense"], "sigma": ["0.02", "0.05", "0.1", "0.2"], "population": ["64", "256"]}
FULL = {
    "rank": ["1", "2", "4", "16", "dense"],
    "sigma": ["0.01", "0.02", "0.05", "0.1", "0.2"],
    "population": ["64", "256", "1024", "4096"],
}
PPO = {"learning_rate": ["1e-4", "3e-4", "1e-3"]}


@dataclass
class Arguments:
    """The command line."""

    env: tyro.conf.Positional[str] = "gymnax/CartPole-v1"
    agent: Literal["eggroll", "open_es", "ppo"] = "eggroll"
    ranks: tuple[str, ...] = ()  # whole numbers, and "dense" for OpenES
    sigmas: tuple[str, ...] = ()
    populations: tuple[str, ...] = ()
    learning_rates: tuple[str, ...] = ()
    episodes_per_member: tuple[str, ...] = ()
    shapings: tuple[str, ...] = ()
    vary: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=V1,V2 ...")] = ()  # any other option, or [policy] key
    seeds: int | None = None  # 0 to SEEDS - 1; 5, in full 10
    env_steps: float | None = None  # budget of every run; 3e5, in full the recipe's
    evaluations: int = 10  # of each run, beside the start
    episodes: int = 64  # held-out ones of each evaluation
    recipe: Path | None = None  # what everything else is taken from
    processes: int | None = None  # cells at once; one for each core unless given
    ray_address: str | None = None  # of a Ray cluster whose nodes measure: auto or HOST:PORT (lab/remote.py)
    full: bool = False  # more ranks, sigmas, populations, seeds and steps
    again: bool = False  # measure anew what is there already
    table: bool = False  # only print what is there
    out: Path = SWEEP


def axes(arguments: Arguments) -> dict[str, list[Any]]:
    """Each swept option with its values."""
    defaults = PPO if arguments.agent == "ppo" else FULL if arguments.full else LAPTOP
    if arguments.agent == "open_es":
        defaults = {**defaults, "rank": ["dense"]}
    given = {name: getattr(arguments, f"{name}s") for name in (*COLUMNS[:4], "shaping")}
    given["episodes_per_member"] = arguments.episodes_per_member
    texts: dict[str, Any] = dict(defaults) | {name: values for name, values in given.items() if values}
    for entry in arguments.vary:
        name, equals, values = entry.partition("=")
        if not equals or not values:
            raise esrl.EsrlError(f"--vary takes NAME=V1,V2, not {entry!r}")
        texts[name.replace("-", "_")] = values.split(",")
    agent = arguments.agent
    return {name: list(dict.fromkeys(_value(agent, name, text) for text in values)) for name, values in texts.items()}


def _value(agent: str, name: str, text: str) -> Any:
    if name != "rank" or agent == "ppo":
        found = typed(agent, name, text)
        return tuple(found) if isinstance(found, list) else found
    if text not in ("0", "dense") and not text.isdigit():
        raise esrl.EsrlError(f'{text} is no rank; give whole numbers, or "dense"')
    return "dense" if text in ("0", "dense") else str(int(text))


def plan(base: esrl.Recipe, swept: dict[str, list[Any]], seeds: int, path: Path) -> cells.Plan:
    """Every combination with every seed."""
    runs = []
    names = list(dict.fromkeys([*COLUMNS, *swept]))
    for point in itertools.product(*swept.values()):
        listed = [list(x) if isinstance(x, tuple) else x for x in point]
        recipe = varied(base, dict(zip(swept, listed, strict=True)))
        columns = {name: value(recipe, name) for name in names}
        runs += [cells.Run(recipe, seed, columns) for seed in range(seeds)]
    return cells.Plan(cells.table(path), base, runs, cells.stepped_by_python(base), tidy)


def swept_columns(rows: list[Row]) -> list[str]:
    """The columns of a table that are an option's."""
    names = list(rows[0])
    return names[names.index("agent") + 1 : names.index("seed")]


def tidy(rows: list[Row], known: dict[str, Any]) -> list[Row]:
    """The rows, each with every option's column: what earlier runs had is in their recipes."""
    names = list(dict.fromkeys(name for row in rows for name in swept_columns([row])))
    found = {key: {name: value(esrl.Recipe(**recipe), name) for name in names} for key, recipe in known.items()}
    order = ["env", "agent", *names, *(name for name in rows[0] if name not in ("env", "agent", *names))]
    return [{name: {**row, **found[row["settings"]]}[name] for name in order} for row in rows]


def table(rows: list[Row]) -> str:
    """Final held-out returns as Markdown: a line for each setting, with the options that differ between settings."""
    last = final_rows(pd.DataFrame(rows))
    names = [name for name in ("agent", *swept_columns(rows)) if last[name].nunique(dropna=False) > 1]
    lines = []
    for _, group in last.groupby("settings", sort=False):
        low, high = interval(group["return_mean"])
        shown = ["" if pd.isna(x) else f"{x:g}" if isinstance(x, float) else str(x) for x in group[names].iloc[0]]
        scores = [f"{interquartile_mean(group['return_mean']):.4g}", f"[{low:.4g}, {high:.4g}]"]
        lines.append([*shown, len(group), f"{group.env_steps.median():.3g}", *scores])
    return script.table([*names, "seeds", "env steps", "return, IQM", "95 %"], lines)


def final_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """The last row of each run."""
    return rows.sort_values("generation", kind="stable").groupby(["settings", "seed"], sort=False).tail(1).sort_index()


def sweep(arguments: Arguments, path: Path) -> list[str]:
    """Measures what a table misses; returns a sentence for each cell that failed."""
    steps = arguments.env_steps or (None if arguments.full else 3e5)
    run: dict[str, Any] = {"num_evals": arguments.evaluations, "eval_episodes": arguments.episodes}
    run |= {"env_steps": float(steps)} if steps else {}
    file = arguments.recipe or own_recipe(arguments.env, arguments.agent)
    base = base_recipe(arguments.env, arguments.agent, file, run, {"hidden": [64, 64]})
    wanted = plan(base, axes(arguments), arguments.seeds or (10 if arguments.full else 5), path)
    return cells.measure([wanted], arguments.processes, arguments.again, arguments.ray_address)


def main() -> None:
    arguments = script.options(Arguments, __doc__)
    script.at_least(arguments, 1, "seeds", "env_steps", "evaluations", "episodes", "processes")
    path = arguments.out / f"{folder_name(arguments.env)}.csv"
    failed: list[str] = []
    if not arguments.table:
        with pool.stoppable(f"stopped; what is done is in {path}, and the same command goes on"):
            failed = sweep(arguments, path)
    rows = cells.table(path).read()
    if not rows and not failed:
        sys.exit(f"{path} has no results")
    if rows:
        print(table(rows))
    if failed:
        sys.exit("failed: " + "; ".join(failed))


if __name__ == "__main__":
    main()
