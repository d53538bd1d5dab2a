"""A run as a learning curve: held-out returns by environment steps and by seconds of one core, and comparing them."""

from __future__ import annotations

import numpy as np
import pandas as pd

import esrl
from experiments.lab.budget import CoreClock, one_core
from experiments.lab.stats import interquartile_mean, interval
from experiments.lab.store import Row


def measure(
    agent: esrl.Agent,
    env_steps: float,
    seed: int,
    num_evals: int,
    early_evals: int,
    eval_episodes: int,
    seconds: float | None = None,
) -> list[Row]:
    """The evaluations of a run: `env_steps`, `seconds` and `return_mean`.

    Seconds are those that one core was at work on training, without compiling and evaluating: the clock's, less what
    other processes had (of a process that is bound to one core, see lab/budget.py). Arguments are those of
    `esrl.iterate`.
    """
    run = esrl.iterate(
        agent,
        env_steps=env_steps,
        seconds=seconds,
        seed=seed,
        num_evals=num_evals,
        early_evals=early_evals,
        eval_episodes=eval_episodes,
    )
    rows: list[Row] = []
    if one_core():
        run.clock = CoreClock()
    for _, _, row in run:
        if "start_return_mean" in row:
            rows.append({"env_steps": 0, "seconds": 0.0, "return_mean": row["start_return_mean"]})
        if "eval_return_mean" in row:
            now = {"env_steps": row["env_steps"], "seconds": row["seconds_training"]}
            rows.append({**now, "return_mean": row["eval_return_mean"]})
    return rows


def at(rows: pd.DataFrame, column: str, value: float) -> np.ndarray:
    """The return of each seed at a value of a column, linear between evaluations."""
    return np.array([np.interp(value, run[column], run["return_mean"]) for _, run in rows.groupby("seed")])


def better(first: np.ndarray, second: np.ndarray) -> float:
    """The probability that a run of the first beats one of the second, half for a tie (Mann and Whitney)."""
    return float(np.mean((first[:, None] > second) + 0.5 * (first[:, None] == second)))


def cell(values: np.ndarray) -> str:
    """Interquartile mean and interval."""
    low, high = interval(values)
    return f"{interquartile_mean(values):.4g} [{low:.4g}, {high:.4g}]"
