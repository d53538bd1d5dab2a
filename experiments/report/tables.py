"""Tables of the report in Markdown, each from result files alone; an empty text where there are none."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pandas as pd

import esrl
from esrl.core.options import options_of
from experiments import script
from experiments.ablation import analysis as effects
from experiments.claims import table as claims_table
from experiments.lab.stats import about, final, interquartile_mean, interval, read
from experiments.paper import compare
from experiments.paper.recipes import DATA
from experiments.study import study_table
from experiments.study.recipe_headers import HEAD, line, measures

PLAIN = {"seed", "generation", "env_steps", "episodes", "seconds", "seconds_compile", "seconds_evaluate", "used"}
PLAIN |= {"return_mean", "return_std", "length_mean", "runs_together", "recipe", "settings", "base", "commit"}
PLAIN |= {"versions", "machine", "date"}
NAMES = {"rank_transform": "shaping", "deterministic_policy": "deterministic"}  # paper's words: esrl's


def comparison(folder: Path) -> str:
    """Every agent in every environment, as experiments/study/recipe_headers.py prints it."""
    if not any(folder.glob("*/*.csv")):
        return ""
    groups = read(folder).groupby(["env", "agent"], sort=False)
    return "\n".join([script.table(HEAD), *(line(env, agent, measures(rows)) for (env, agent), rows in groups)])


def statistics(folder: Path) -> str:
    """The tables of experiments/study/analysis.py, and what it left out."""
    csv = folder / "statistics.csv"
    if not csv.exists():
        return ""
    notes = csv.with_suffix(".json")
    left = json.loads(notes.read_text()).get("left out", []) if notes.exists() else []
    return study_table.markdown(pd.read_csv(csv)) + "\n\n" + "\n".join(f"- {note}" for note in left)


def settings(folder: Path) -> str:
    """Budget, options, seeds, commit and machine of each measured pair."""
    if not any(folder.glob("*/*.csv")):
        return ""
    made = []
    for (env, agent), rows in read(folder).groupby(["env", "agent"], sort=False):
        found = about(folder, env, agent)
        recipe, measured = found["recipe"], found["measured"]
        seeds = sorted(rows["seed"].unique())
        limits = {**recipe, **recipe.get("final", {})}
        budget = [f"{limits[k]:g} {k}" for k in ("seconds", "env_steps", "generations") if limits.get(k)]
        options = {**recipe.get("policy", {}), **recipe.get("options", {})}
        shown = ", ".join(f"{key} {value}" for key, value in options.items())
        where = {f"{m['machine']['processor']}, cores: {m['machine']['cores']}" for m in measured}
        cells = [f"`{env}`", study_table.name(agent), f"{len(seeds)} ({seeds[0]} to {seeds[-1]})", ", ".join(budget)]
        cells += [shown, ", ".join(dict.fromkeys(m["commit"] for m in measured)), "; ".join(sorted(where))]
        cells += [f"{len(found['failed'])} failed" if found["failed"] else ""]
        made.append([cell or "–" for cell in cells])
    return script.table(["environment", "agent", "seeds", "budget", "settings", "commit", "machine", ""], made)


def steps(path: Path) -> str:
    """EGGROLL beside the paper's at no more steps, from what experiments/paper/compare.py wrote."""
    return compare.markdown(pd.read_csv(path).to_dict("records")) if path.exists() else ""


def paper(folder: Path) -> str:
    """Ours beside the paper's."""
    return compare.table(folder, DATA) if any(folder.glob("*/*.csv")) else ""


def sweep(path: Path) -> str:
    """Final returns over seeds of a sweep or an ablation: a line for each setting, columns for sigmas if there are."""
    rows = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, dtype={"rank": str})
    own = [column for column in rows if column not in PLAIN]
    varied = [c for c in own if rows[c].astype(str).nunique() > 1 or c in ("env", "rank", "population")]
    down = [column for column in varied if column != "sigma"]
    across = ["sigma"] if "sigma" in varied else []
    cells = {}
    for key, group in rows.groupby([*down, *across], sort=False, dropna=False):
        cells[tuple(key)] = score(final(group)["return_mean"])
    if not across:
        return script.table([*down, "final return, IQM [95 %]"], [[*map(plain, k), v] for k, v in cells.items()])
    sigmas = sorted({key[-1] for key in cells})
    settings = list(dict.fromkeys(key[:-1] for key in cells))
    made = [[*map(plain, s), *(cells.get((*s, sigma), "–") for sigma in sigmas)] for s in settings]
    return script.table([*down, *(f"sigma {sigma:g}" for sigma in sigmas)], made)


def ablation(folder: Path) -> str:
    """What each changed factor is worth, as experiments/ablation/run.py counts it."""
    if not any(folder.glob("*.parquet")):
        return ""
    found, left = effects.effects(effects.read(folder))
    return effects.table(found) + "\n\n" + "\n".join(f"- {note}" for note in left)


def score(returns: pd.Series) -> str:
    """The interquartile mean with its interval, and the number of runs."""
    low, high = interval(returns)
    bounds = f" [{low:.4g}, {high:.4g}]" if low == low else ""
    return f"{interquartile_mean(returns):.4g}{bounds} ({len(returns)})"


def forward(path: Path) -> str:
    """Forward passes beside inference."""
    rows = pd.read_csv(path)
    names = ("kind", "hidden", "population", "dtype", "ms_per_step", "fraction_of_inference")
    shown = [name for name in names if name in rows]
    return script.table(shown, [[plain(x) for x in row] for row in rows[shown].itertuples(index=False)])


def plain(cell: Any) -> str:
    return f"{cell:g}" if isinstance(cell, float) else str(cell)


def claims(folder: Path) -> str:
    """The claims in numbers."""
    parts = [path.stem for path in sorted(folder.glob("*.csv"))]
    return claims_table.table(folder, parts) if parts else ""


def defaults() -> str:
    """EGGROLL's defaults beside the values that the paper's search tried."""
    space = tomllib.loads(DATA.read_text())["search_space"]["es"]
    known = options_of(esrl.eggroll)
    made = []
    for name, values in space.items():
        own = NAMES.get(name, name)
        if own in known:
            default = known[own].default
            made.append([f"`{own}`", f"`{default}`", f"`{name}`: " + ", ".join(map(str, values))])
    return script.table(["option", "esrl's default", "the paper's search space"], made)


def tuned(folder: Path) -> str:
    """Each study: trials by how they ended, and the best one's return and settings."""
    made = []
    for path in sorted(folder.glob("*/trials/*.csv")):
        rows = pd.read_csv(path)
        states = rows["state"].value_counts()
        good = rows[(rows["state"] == "complete") & rows["value"].notna()]
        if "chosen" in rows and rows["chosen"].any():
            top = rows[rows["chosen"]].iloc[0]
        else:
            top = good.loc[good["value"].idxmax()] if len(good) else None
        names = rows.columns[rows.columns.get_loc("value") + 1 : rows.columns.get_loc("env_steps")]
        best = {} if top is None else {name: top[name] for name in names if pd.notna(top[name])}
        shown = ", ".join(f"{name.rpartition('.')[2]} {plain(x)}" for name, x in best.items())
        counts = ", ".join(f"{number} {state}" for state, number in states.items())
        value = "–" if top is None else f"{top['value']:.4g}"
        cells = [path.parent.parent.name, study_table.name(path.stem), str(len(rows)), counts]
        made.append([*cells, f"{rows['seconds'].sum():.0f}", value, "–" if top is None else shown])
    head = ["environment", "agent", "trials", "of which", "seconds of training", "best trial's return", "its settings"]
    return script.table(head, made) if made else ""
