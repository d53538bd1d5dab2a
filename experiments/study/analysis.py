"""Normalized scores of a comparison over its environments, with intervals: which agent is better, and how sure that is.

    python -m experiments.study.analysis                              # of study/results/study; prints Markdown
    python -m experiments.study.compare --recipes agents/study --seconds 60 --seeds 10 --out runs/long
    python -m experiments.study.analysis --results runs/long

A run's score is (return - random) / (reference - random), with the random policy's return in the same held-out worlds,
and for reference the environment's maximum (references.toml) or, where it has none, the interquartile mean
of the best agent's final returns in this study. So 0 is the random policy's and 1 that of a perfect, or of the best,
agent; scores may be lower and higher. Every run is scored at three places:

    end       of its budget, which is equal wall-clock where runs had equal seconds of training
    steps     after as many environment steps as every run of every agent has made on that environment
    episodes  after as many episodes as every run of every agent has finished there

between two evaluations by linear interpolation (runs that are so fast that this is before their first evaluation are
named: their score there is little more than that of their start). Intervals are 95 % percentile bootstrap intervals,
stratified by environment, made by rliable; so is the probability that a run of one agent is better than a run of
another (ties count half). Over all environments "median" is that of the environments' means. With fewer than two runs
there is no interval.

`chosen` is whichever of `eggroll` and `eggroll_ac` had the better score in the tuning trials of an environment: what
somebody who tries both has, and who sees no final run before the choice.

Written to <results>/statistics.csv, a row for each number, with a JSON beside it: measure, at, environment (or "all"),
agent, other (the agent it is compared with), score (of a performance profile: value is the part of runs above it),
value, low, high, runs.
"""

from __future__ import annotations

import fnmatch
import itertools
import json
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tyro
from rliable import library, metrics

from experiments import script
from experiments.lab.stats import AGENTS, about, final, interquartile_mean, random_returns, read
from experiments.lab.store import ROOT, Row, folder_name, origin, results, write_rows, written
from experiments.study.study_table import CHOSEN, HEADS, markdown

STUDY = results("study") / "study"
AT = {"end": None, "steps": "env_steps", "episodes": "episodes"}
USED = ("seconds_training", "env_steps", "episodes")  # what a run used until its end
TAUS = np.round(np.linspace(-0.2, 1.2, 71), 3)

Scores = dict[str, np.ndarray]  # by agent: [runs, environments]
OF_CHOICE = ("eggroll", "eggroll_ac")


def maximum(env: str) -> float | None:
    """The return of a perfect agent, or None where no rule of the environment says it."""
    patterns = tomllib.loads((ROOT / "experiments" / "study" / "references.toml").read_text())["maximum"]
    name = env.partition("?")[0]
    return next((float(value) for key, value in patterns.items() if fnmatch.fnmatchcase(name, key)), None)


def tuned(folder: Path, env: str, agent: str) -> float:
    """The score of the trial that was chosen, in the worlds of tuning; NaN where no trials are kept."""
    path = folder / folder_name(env) / "trials" / f"{agent}.csv"
    if not path.exists():
        return np.nan
    trials = pd.read_csv(path)
    return float(trials.loc[trials["chosen"], "value"].max())


def choices(rows: pd.DataFrame, folder: Path) -> dict[str, str]:
    """By environment, which of `OF_CHOICE` had the better score in tuning; none where one has no trials."""
    found = {}
    for env, here in rows.groupby("env", sort=False):
        scores = {agent: tuned(folder, str(env), agent) for agent in OF_CHOICE if agent in set(here["agent"])}
        if len(scores) == len(OF_CHOICE) and not np.isnan(list(scores.values())).any():
            found[str(env)] = max(scores, key=lambda agent: scores[agent])
    return found


def with_chosen(rows: pd.DataFrame, chosen: dict[str, str]) -> pd.DataFrame:
    """The rows, and the chosen agents' once more under the name `CHOSEN`."""
    parts = [rows[(rows["env"] == env) & (rows["agent"] == agent)] for env, agent in chosen.items()]
    return pd.concat([rows, *(part.assign(agent=CHOSEN) for part in parts)], ignore_index=True)


def returns_at(rows: pd.DataFrame, at: str) -> tuple[dict[str, pd.Series], float]:
    """Each agent's returns by seed in one environment, and the steps or episodes where (NaN at the end).

    Empty where runs did not count episodes.
    """
    column = AT[at]
    if column is None:
        return {a: final(runs).set_index("seed")["return_mean"] for a, runs in rows.groupby("agent")}, np.nan
    if rows[column].isna().any():
        return {}, np.nan
    where = float(rows.groupby(["agent", "seed"])[column].max().min())
    found: dict[str, dict[int, float]] = {}
    for (agent, seed), run in rows.sort_values("env_steps").groupby(["agent", "seed"]):
        found.setdefault(str(agent), {})[seed] = float(np.interp(where, run[column], run["return_mean"]))
    return {agent: pd.Series(values) for agent, values in found.items()}, where


def references(rows: pd.DataFrame, random: dict[str, float]) -> tuple[dict[str, tuple[float, float, str]], list[str]]:
    """By environment: the returns of scores 0 and 1, and whose the latter is; and why the others are left out."""
    found, left = {}, []
    for env, here in rows.groupby("env", sort=False):
        ends = returns_at(here, "end")[0]
        best = {a: float(interquartile_mean(returns)) for a, returns in ends.items() if a != CHOSEN}
        agent, known = max(best, key=lambda a: best[a]), maximum(str(env))
        top, whose = (best[agent], agent) if known is None else (known, "maximum")
        if env not in random:
            left.append(
                f"{env}: no random.csv; compare.py {env} --agents random --no-random --first-seed 1000 measures it"
            )
        elif not top > random[str(env)]:
            left.append(f"{env}: no agent is better than the random policy ({top:.4g} and {random[str(env)]:.4g})")
        else:
            found[str(env)] = random[str(env)], top, whose
    return found, left


def aggregates(scores: np.ndarray) -> np.ndarray:
    """IQM, median, mean and optimality gap of scores [runs, environments]; of one environment the median over runs."""
    middle = metrics.aggregate_median(scores) if scores.shape[1] > 1 else np.median(scores)
    whole = metrics.aggregate_mean(scores), metrics.aggregate_optimality_gap(scores)
    return np.array([metrics.aggregate_iqm(scores), middle, *whole])


def improvement(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Probability [1] that a run of X is above one of Y, ties half, mean over environments; of [runs, environments]."""
    differences = x[:, None] - y[None]
    return np.array([((differences > 0) + 0.5 * (differences == 0)).mean()])


def profile(scores: np.ndarray, taus: np.ndarray) -> np.ndarray:
    """The part of scores above each threshold."""
    return (scores[..., None] > taus).mean((0, 1))


def statistics(scores: Scores, resamples: int, whole: bool) -> list[Row]:
    """Every measure of some agents' scores, and their profiles if the scores are `whole`, of all environments.

    rliable draws from NumPy's global generator whatever it is given, so that is seeded here, and put back.
    """
    rows, state = [], np.random.get_state()
    np.random.seed(0)
    try:
        points, bounds = library.get_interval_estimates(scores, aggregates, reps=resamples)
        for agent, values in scores.items():
            for name, value, (low, high) in zip(HEADS, points[agent], bounds[agent].T, strict=True):
                rows.append(_row(name, agent, value, low, high, [values]))
        pairs = {(x, y): [scores[x], scores[y]] for x, y in itertools.combinations(scores, 2)}
        points, bounds = library.get_interval_estimates(pairs, improvement, reps=resamples)
        for (x, y), both in pairs.items():
            value, (low, high) = points[x, y][0], bounds[x, y][:, 0]
            rows.append(_row("improvement", x, value, low, high, both, other=y))
            rows.append(_row("improvement", y, 1 - value, 1 - high, 1 - low, both, other=x))
        if whole:
            points, bounds = library.create_performance_profile(
                scores, TAUS, custom_profile_func=profile, reps=resamples
            )
            for agent, values in scores.items():
                for tau, value, (low, high) in zip(TAUS, points[agent], bounds[agent].T, strict=True):
                    rows.append(_row("profile", agent, value, low, high, [values], score=float(tau)))
    finally:
        np.random.set_state(state)
    return rows


def _row(measure: str, agent: str, value: float, low: float, high: float, scores: list[np.ndarray], **own: Any) -> Row:
    runs = min((len(x) for x in scores), default=0)
    low, high = (float(low), float(high)) if runs > 1 else (np.nan, np.nan)
    number = {"value": float(value), "low": low, "high": high, "runs": runs}
    return {"measure": measure, "agent": agent, "other": "", "score": "", **own, **number}


def matrices(normal: dict[str, dict[str, pd.Series]]) -> Scores:
    """Each agent's scores [runs, environments] from those by environment and agent.

    Its runs are those of the seeds that it has in every environment. Agents that miss an environment are left out.
    """
    agents = [agent for agent in next(iter(normal.values())) if all(agent in found for found in normal.values())]
    made = {}
    for agent in agents:
        seeds = set.intersection(*(set(found[agent].index) for found in normal.values()))
        if seeds:
            made[agent] = np.stack([found[agent][sorted(seeds)] for found in normal.values()], axis=1)
    return made


def ordered(found: dict[str, pd.Series]) -> dict[str, pd.Series]:
    """By agent, in the order of every table."""
    return {a: found[a] for a in [*(a for a in AGENTS if a in found), *sorted(found.keys() - AGENTS.keys())]}


def study(rows: pd.DataFrame, random: dict[str, float], resamples: int) -> tuple[list[Row], list[str]]:
    """Every row of the result, and sentences on what was left out."""
    known, notes = references(rows, random)
    made, main_agents = [], set(AGENTS) & set(rows["agent"])
    for env, (bottom, top, whose) in known.items():
        here = rows[rows["env"] == env]
        made += [{"at": "end", "environment": env, **_row("random", "", bottom, np.nan, np.nan, [])}]
        made += [{"at": "end", "environment": env, **_row("reference", whose, top, np.nan, np.nan, [])}]
        for agent, runs in here.groupby("agent", sort=False):
            last = final(runs)
            middle = {name: last[name].median() if last[name].notna().any() else np.nan for name in USED}
            used = [_row(name, str(agent), value, np.nan, np.nan, [last]) for name, value in middle.items()]
            made += [{"at": "end", "environment": env, **row} for row in used]
    for at in AT:
        normal = {}
        for env, (bottom, top, _) in known.items():
            found, where = returns_at(rows[rows["env"] == env], at)
            if not found:
                notes.append(f"{env}: its runs did not count {at}")
                continue
            notes += early(rows[rows["env"] == env], at, where)
            normal[env] = {a: (returns - bottom) / (top - bottom) for a, returns in ordered(found).items()}
            scores = {agent: values.to_numpy()[:, None] for agent, values in normal[env].items()}
            if at != "end":
                made.append({"at": at, "environment": env, **_row("where", "", where, np.nan, np.nan, [])})
            made += [{"at": at, "environment": env, **row} for row in statistics(scores, resamples, whole=False)]
        if normal:
            main = {env: found for env, found in normal.items() if main_agents <= set(found)}
            notes += [f"{env}: not in the whole, an agent is missing" for env in normal if env not in main]
            whole = statistics(matrices(main), resamples, whole=True) if main else []
            made += [{"at": at, "environment": "all", **row} for row in whole]
    return made, list(dict.fromkeys(notes))


def early(rows: pd.DataFrame, at: str, where: float) -> list[str]:
    """Sentences on agents that were first scored after more steps or episodes than those where they are compared."""
    column, found = AT[at], []
    if column is None:
        return []
    scored = rows[rows["generation"] > 0].groupby(["env", "agent", "seed"])[column].min()
    for (env, agent), first in scored.groupby(["env", "agent"]):
        late = int((first > where).sum())
        if late:
            found.append(
                f"{env}, {agent}: {late} of {len(first)} runs were first scored after {first.median():.3g} {at}, at the"
                f" {where:.3g} where all are compared they are interpolated from the start"
            )
    return found


def recipes(folder: Path, rows: pd.DataFrame) -> dict[str, Any]:
    """What the JSON says of the runs: budgets by environment and agent."""
    keys = ("seconds", "env_steps", "generations", "num_evals", "eval_episodes")
    found = {}
    for env, agent in rows[["env", "agent"]].drop_duplicates().itertuples(index=False):
        recipe = about(folder, env, agent)["recipe"]
        found[f"{env}, {agent}"] = {key: recipe[key] for key in keys if key in recipe} | recipe.get("final", {})
    return found


@dataclass
class Arguments:
    """The command line."""

    envs: tyro.conf.Positional[tuple[str, ...]] = ()  # all with results unless given
    results: Path = STUDY
    resamples: int = 2000  # of every bootstrap


def main() -> None:
    arguments = script.options(Arguments, __doc__)
    script.at_least(arguments, 2, "resamples")
    rows = read(arguments.results, arguments.envs)
    chosen = choices(rows, arguments.results)
    made, notes = study(with_chosen(rows, chosen), random_returns(arguments.results), arguments.resamples)
    if not made:
        sys.exit("nothing to normalize: " + "; ".join(notes))
    csv = arguments.results / "statistics.csv"
    order = ["measure", "at", "environment", "agent", "other", "score", "value", "low", "high", "runs"]
    write_rows(csv, [{name: row[name] for name in order} for row in made])
    of = {"resamples": arguments.resamples, "runs": recipes(arguments.results, rows), CHOSEN: chosen}
    noted = {"recipe": of, "measured": [{**origin(), "runs": ["statistics"]}], "failed": {}, "left out": notes}
    written(csv.with_suffix(".json"), json.dumps(noted, indent=1) + "\n")
    print(markdown(pd.read_csv(csv)))
    if notes:
        print("\n" + "\n".join(f"- {note}" for note in notes))


if __name__ == "__main__":
    main()
