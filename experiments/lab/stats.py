"""Statistics over the seeds of a comparison, from its result files: what the tables and the figures show."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from esrl.core.statistics import interquartile_mean as interquartile_mean
from esrl.core.statistics import interval as interval
from experiments.lab.store import folder_name, results, todays

COMPARE, SWEEP = results("study") / "compare", results("sweep")
AGENTS = {
    "eggroll": "EGGROLL",
    "eggroll_ac": "EGGROLL-AC",
    "open_es": "OpenES",
    "ppo": "PPO",
}  # in every table's and figure's order
RANDOM = "random"  # the file of the random policy's scores
THRESHOLDS = {  # held-out return at which an environment counts as solved, by its name in any suite
    "acrobot": -100.0,
    "ant": 2000.0,
    "cartpole": 475.0,
    "halfcheetah": 2000.0,
    "hopper": 1100.0,  # standing still is worth 1000
    "inverteddoublependulum": 9000.0,
    "invertedpendulum": 950.0,
    "lunarlander": 200.0,
    "mountaincar": -110.0,
    "mountaincarcontinuous": 90.0,
    "pendulum": -200.0,
    "walker2d": 1000.0,
}


def threshold(env: str) -> float | None:
    """The return to reach in an environment, or None: "gymnasium/phys2d/CartPole-v1" is 475."""
    name = env.partition("?")[0].rpartition("/")[2].partition("-v")[0]
    return THRESHOLDS.get(name.replace("_", "").lower())


def read(folder: Path = COMPARE, envs: Sequence[str] = ()) -> pd.DataFrame:
    """Every row of a comparison, or of some environments, by agent in the order of `AGENTS`; the random policy apart.

    `seconds` become those of a run alone: of training, plus what the most compiling run of its agent and environment
    compiled, which the others shared. `seconds_training` are without it. Files of older versions have no `episodes`
    (NaN here), and their seconds include scoring.
    """
    frames = []
    for path in sorted(folder.glob("*/*.csv")):
        frame = pd.read_csv(path)
        if path.stem != RANDOM and (not envs or frame["env"][0].partition("?")[0] in envs):
            frames.append(_alone(frame))
    if not frames:
        raise SystemExit(f"{folder} has no results{' of ' + ', '.join(envs) if envs else ''}")
    order = [*AGENTS, *sorted({frame["agent"][0] for frame in frames} - AGENTS.keys())]
    frames.sort(key=lambda frame: (frame["env"][0].lower(), order.index(frame["agent"][0])))
    return pd.concat(frames, ignore_index=True)


def _alone(frame: pd.DataFrame) -> pd.DataFrame:
    """A CSV's rows with the seconds of runs alone."""
    compiled = frame["seconds_compile"].fillna(0.0) if "seconds_compile" in frame else pd.Series(0.0, frame.index)
    older = "seconds_evaluate" not in frame
    training = frame["seconds"] - compiled if older else frame["seconds"]
    new = {"seconds_training": training, "seconds": training + compiled.max(), "seconds_compile": compiled}
    return frame.assign(**({"episodes": np.nan} if "episodes" not in frame else {}), **new)


def random_returns(folder: Path = COMPARE) -> dict[str, float]:
    """The random policy's mean return by environment, where it was scored."""
    frames = [pd.read_csv(path) for path in sorted(folder.glob(f"*/{RANDOM}.csv"))]
    return {frame["env"][0]: float(frame["return_mean"].mean()) for frame in frames}


def about(folder: Path, env: str, agent: str) -> dict[str, Any]:
    """The JSON beside a CSV; an empty one where there is none, as beside another library's."""
    path = folder / folder_name(env) / f"{agent}.json"
    return todays(json.loads(path.read_text())) if path.exists() else {"recipe": {}, "measured": [], "failed": {}}


def final(rows: pd.DataFrame) -> pd.DataFrame:
    """The last row of each seed."""
    return rows.sort_values("env_steps").groupby("seed").tail(1)


def reaching(rows: pd.DataFrame, value: float, column: str) -> tuple[float, int]:
    """A column's median where seeds first score at least `value`, infinite where one never does; and how many do."""
    good = rows[rows["return_mean"] >= value]
    first = good.groupby("seed")[column].min()
    never = [math.inf] * (rows["seed"].nunique() - len(first))
    return float(np.median([*first, *never])), len(first)


def curves(rows: pd.DataFrame, column: str, points: int = 60, log: bool = False) -> pd.DataFrame:
    """The curves of each agent's seeds at common values of a column, where all of them have one; linear in between.

    `log` spaces the values by their logarithm, from the first evaluation after the start on.
    """
    found = []
    for (env, agent), group in rows.groupby(["env", "agent"], sort=False):
        runs = [run.sort_values("env_steps") for _, run in group.groupby("seed")]
        last = min(run[column].max() for run in runs)
        first = max((run[column][run[column] > 0] if log else run[column]).min() for run in runs)
        if not first < last:
            continue
        grid = np.geomspace(first, last, points) if log else np.linspace(first, last, points)
        for run in runs:
            values = {column: grid, "return_mean": np.interp(grid, run[column], run["return_mean"])}
            found.append(pd.DataFrame({"env": env, "agent": agent, "seed": run["seed"].iloc[0], **values}))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()
