"""The tables of experiments/study/analysis.py in Markdown, from its statistics.csv alone."""

from __future__ import annotations

import numpy as np
import pandas as pd

from experiments.lab.stats import AGENTS
from experiments.script import table as lines

HEADS = {"iqm": "IQM", "median": "median", "mean": "mean", "optimality_gap": "optimality gap"}
CHOSEN = "chosen"  # whichever of EGGROLL's two agents the tuning trials chose
PLACES = {"end": "end of the budget", "steps": "equal env steps", "episodes": "equal episodes"}


def number(x: float) -> str:
    """A score in two decimals; a dash for none."""
    return "–" if not np.isfinite(x) else f"{round(x, 2) + 0.0:.2f}"  # no -0.00


def count(x: float) -> str:
    """A number of anything in three digits: "2.1M", "85", a dash for none."""
    if not np.isfinite(x):
        return "–"
    return f"{x / 1e6:.3g}M" if abs(x) >= 1e6 else f"{x / 1e3:.3g}k" if abs(x) >= 1e4 else f"{x:.4g}"


def value(row: pd.Series) -> str:
    """A value with its interval: "0.91 [0.85, 0.97]"."""
    bounds = f" [{number(row['low'])}, {number(row['high'])}]" if np.isfinite(row["low"]) else ""
    return number(row["value"]) + bounds


def name(agent: str) -> str:
    return "EGGROLL or EGGROLL-AC, as tuned" if agent == CHOSEN else AGENTS.get(agent, agent)


def select(rows: pd.DataFrame, **where: str) -> pd.DataFrame:
    """The rows with these values."""
    for key, wanted in where.items():
        rows = rows[rows[key] == wanted]
    return rows


def whole(rows: pd.DataFrame) -> str:
    """Aggregates of each agent over all environments, at each place."""
    made = []
    for at, place in PLACES.items():
        here = select(rows, at=at, environment="all")
        for agent in here["agent"].unique():
            own = select(here, agent=agent).drop_duplicates("measure").set_index("measure")
            if "iqm" not in own.index:
                continue
            cells = [value(own.loc[measure]) if measure in own.index else "–" for measure in HEADS]
            made.append([place, name(agent), str(own.loc["iqm", "runs"]), *cells])
    return lines(["at", "agent", "runs per environment", *HEADS.values()], made)


def improvements(rows: pd.DataFrame) -> str:
    """The probability of improvement of every pair of agents, each pair once."""
    made, seen = [], set()
    for row in select(rows, measure="improvement", environment="all").itertuples():
        if (row.at, row.other, row.agent) not in seen:
            seen.add((row.at, row.agent, row.other))
            cells = value(pd.Series(row._asdict()))
            made.append([PLACES[row.at], f"{name(row.agent)} over {name(row.other)}", cells])
    return lines(["at", "a run of", "is better with probability"], made)


def environments(rows: pd.DataFrame) -> str:
    """Every environment's scores, and what its runs used."""
    made = []
    for env in rows.loc[rows["environment"] != "all", "environment"].unique():
        here = select(rows, environment=env)
        for agent in select(here, measure="iqm", at="end")["agent"]:
            own = select(here, agent=agent)
            found = [select(own, measure=m, at="end")["value"] for m in ("seconds_training", "env_steps", "episodes")]
            used = [np.nan if x.empty else x.iloc[0] for x in found]
            scores = [select(own, measure="iqm", at=at) for at in PLACES]
            runs = str(scores[0]["runs"].iloc[0])
            cells = ["–" if found.empty else value(found.iloc[0]) for found in scores]
            made.append([f"`{env}`", name(agent), runs, *map(count, used), *cells])
    head = ["environment", "agent", "runs", "seconds", "env steps", "episodes", *(f"IQM, {p}" for p in PLACES.values())]
    return lines(head, made)


def scale(rows: pd.DataFrame) -> str:
    """The returns that scores of 0 and 1 stand for, and where steps and episodes are equal."""
    made = []
    for row in select(rows, measure="reference").itertuples():
        here = select(rows, environment=row.environment)
        random = select(here, measure="random")["value"].iloc[0]
        whose = "the maximum" if row.agent == "maximum" else f"{name(row.agent)}'s"
        where = [select(here, measure="where", at=at)["value"] for at in ("steps", "episodes")]
        cells = ["–" if x.empty else count(x.iloc[0]) for x in where]
        made.append([f"`{row.environment}`", count(random), count(row.value), whose, *cells])
    head = ["environment", "random policy", "score of 1", "which is", "equal steps at", "equal episodes at"]
    return lines(head, made)


def markdown(rows: pd.DataFrame) -> str:
    """All tables; 95 % bootstrap intervals in brackets."""
    rows = rows.fillna({"agent": "", "other": ""})
    tables = [environments(rows), scale(rows)]
    if (rows["environment"] == "all").any():
        tables = [whole(rows), improvements(rows), *tables]
    return "\n\n".join(tables)
