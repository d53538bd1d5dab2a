"""`{{...}}` in a text, replaced by numbers of the result files, so that no sentence can say another than they do.

Two forms. A statistic of experiments/study/analysis.py, by place, measure and agents:

    {{study.all.end.iqm.eggroll}}                        0.91 [0.85, 0.97]
    {{study.gymnax-CartPole-v1.steps.iqm.ppo.value}}     or .low, .high, .interval, .runs
    {{study.all.end.improvement.eggroll.ppo}}            the probability that a run of the former is better

And a column of any question's table, CSV or Parquet, of the one row that fits, or over several (claims/thin.csv is
experiments/claims/results/thin.csv):

    {{claims/thin.csv: measured where quantity=excess relative to dense, layer=256x2, thin=off}}
    {{sweep/gymnax-CartPole-v1.parquet: final iqm return_mean where rank=1, sigma=0.1 | .1f}}

`final` takes the last row of every seed; iqm, mean, median, min, max, sum and count are over rows. After | stands a
format of Python's for numbers, .3g unless given.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.claims.table import same
from experiments.lab.stats import interquartile_mean
from experiments.lab.store import folder_name
from experiments.study.study_table import value

PLACE = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
OVER: dict[str, Any] = {"iqm": interquartile_mean, "mean": np.mean, "median": np.median}
OVER |= {"min": np.min, "max": np.max, "sum": np.sum, "count": len}


class UnknownValue(Exception):
    """A placeholder that no result file answers; its text is a sentence."""


def place(results: Path, name: str) -> Path:
    """A result by its question: of "claims/thin.csv" it is claims/results/thin.csv in the folder of questions."""
    question, _, rest = name.partition("/")
    return results / question / "results" / rest


def fill(text: str, results: Path) -> str:
    """The text with every placeholder replaced.

    Raises:
      UnknownValue: a placeholder that is not understood, or whose number is not in the files.
    """
    return PLACE.sub(lambda found: look_up(" ".join(found[1].split()), results), text)


def look_up(key: str, results: Path) -> str:
    """One placeholder's value."""
    try:
        return _statistic(key, results) if key.startswith("study.") else _cell(key, results)
    except UnknownValue as error:
        raise UnknownValue(f"{{{{{key}}}}}: {error}") from None


def read_table(path: Path) -> pd.DataFrame:
    """A CSV or Parquet file."""
    if not path.exists():
        raise UnknownValue(f"{path} is not there")
    return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)


def _statistic(key: str, results: Path) -> str:
    words = key.split(".")[1:]
    part = words.pop() if words[-1] in ("value", "low", "high", "interval", "runs") else ""
    if len(words) not in (4, 5):
        raise UnknownValue("a statistic is study.environment.at.measure.agent, and for improvement another agent")
    env, at, measure, agent, other = [*words, ""][:5]
    rows = read_table(place(results, "study/study/statistics.csv")).fillna({"agent": "", "other": ""})
    names = rows["environment"].map(folder_name)
    for column, wanted in ((names, env), (rows["at"], at), (rows["measure"], measure), (rows["agent"], agent)):
        if wanted not in set(column[rows.index]):
            raise UnknownValue(f"the statistics have no {wanted}")
        rows = rows[column[rows.index] == wanted]
    rows = rows[rows["other"] == other]
    if len(rows) != 1:
        raise UnknownValue(f"{len(rows)} statistics fit, but one must")
    row = rows.iloc[0]
    if part == "interval":
        return f"[{row['low']:.2f}, {row['high']:.2f}]"
    return value(row) if not part else str(row[part]) if part == "runs" else f"{row[part]:.2f}"


def _cell(key: str, results: Path) -> str:
    key, _, form = key.partition("|")
    file, colon, query = key.partition(":")
    if not colon:
        raise UnknownValue("it begins neither with study. nor with a file and a colon")
    wanted, _, where = query.partition(" where ")
    *words, column = wanted.split() or [""]
    rows = read_table(place(results, file.strip()))
    for condition in filter(None, (part.strip() for part in where.split(","))):
        name, _, text = (part.strip() for part in condition.partition("="))
        if name not in rows:
            raise UnknownValue(f"{file.strip()} has no column {name}")
        rows = rows[rows[name].map(lambda cell, text=text: same(cell, text))]
    if column not in rows:
        raise UnknownValue(f"{file.strip()} has no column {column}")
    if words and words[0] == "final":
        words, rows = words[1:], rows.sort_values("env_steps").groupby("seed").tail(1)
    if len(words) > 1 or (words and words[0] not in OVER):
        raise UnknownValue(f"{' '.join(words)} is none of final, {', '.join(OVER)}")
    if rows.empty or (not words and len(rows) > 1):
        raise UnknownValue(f"{len(rows)} rows of {file.strip()} fit" + ("" if rows.empty else ", but one must"))
    found = OVER[words[0]](rows[column]) if words else rows[column].iloc[0]
    if isinstance(found, str):
        return found
    try:
        return format(found, form.strip() or ".3g")
    except ValueError:
        raise UnknownValue(f"{form.strip()} is no format for numbers") from None
