"""What a changed factor is worth: differences to the base of the same seed, with bootstrap intervals.

A run's two scores are its final held-out return, and the area under its learning curve: the mean return over the
budget's environment steps, linear in between. A difference to the base is divided by what the base has learnt, its
final return less its start, averaged over seeds: -1 has learnt nothing, 0 is the base, 1 twice as much. An effect is
the interquartile mean of the differences over seeds; over all environments it is that of all their seeds. Intervals are
95 % percentile bootstrap, of seeds, within each environment; what the base has learnt is held fixed. An environment
where the base's own learning is not clear of 0 (its interval) has no effects.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from experiments import script
from experiments.lab.run import read_all
from experiments.lab.stats import interquartile_mean, interval

BASE, ALL = "base", "all environments"
MEASURES = {"area": "area under the curve", "final": "final return"}
RESAMPLES = 2000


def read(folder: Path, envs: Sequence[str] = ()) -> pd.DataFrame:
    """Every row of these environments' tables, or of all; leaves with a sentence where there is none."""
    return pd.concat(read_all(folder, envs), ignore_index=True)


def scores(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each run: env, factor, value, seed, start, final and area."""
    found = []
    for (env, factor, value, seed), run in rows.groupby(["env", "factor", "value", "seed"], sort=False):
        run = run.sort_values("env_steps")
        steps, returns = run["env_steps"].to_numpy(float), run["return_mean"].to_numpy(float)
        area = np.trapezoid(returns, steps) / max(steps[-1] - steps[0], 1.0)
        ends = {"start": returns[0], "final": returns[-1], "area": area}
        found.append({"env": env, "factor": factor, "value": value, "seed": seed, **ends})
    return pd.DataFrame(found)


def effects(rows: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """A row for each env (and all), factor, value and measure; and a sentence for each env that is left out.

    Columns: env, factor, value, measure, effect, low, high, seeds (pairs of runs that it is of).
    """
    per_run, left_out, differences = scores(rows), [], []
    for env, group in per_run.groupby("env", sort=False):
        base = group[group["factor"] == BASE].set_index("seed")
        learnt = base["final"] - base["start"]
        low, _ = interval(learnt)
        if not (low > 0 or (len(learnt) == 1 and learnt.iloc[0] > 0)):
            left_out.append(f"{env} is left out: its base has not learnt (final less start {learnt.mean():.3g})")
            continue
        for (factor, value), runs in group[group["factor"] != BASE].groupby(["factor", "value"], sort=False):
            runs = runs.set_index("seed")
            seeds = runs.index.intersection(base.index)
            for measure in MEASURES:
                values = (runs.loc[seeds, measure] - base.loc[seeds, measure]) / learnt.mean()
                differences.append((env, factor, value, measure, values.to_numpy()))
    found: dict[tuple, list[np.ndarray]] = {}
    for env, *key, values in differences:
        found.setdefault((env, *key), []).append(values)
        found.setdefault((ALL, *key), []).append(values)
    if len({env for env, *_ in differences}) < 2:
        found = {key: values for key, values in found.items() if key[0] != ALL}
    names = ("env", "factor", "value", "measure")
    factors = list(dict.fromkeys(factor for _, factor, *_ in found))  # tables are in the order in which cells ended
    together = sorted(found.items(), key=lambda item: (factors.index(item[0][1]), item[0][2]))
    effects = [dict(zip(names, key, strict=True)) | effect(values) for key, values in together]
    return pd.DataFrame(effects, columns=[*names, "effect", "low", "high", "seeds"]), left_out


def effect(strata: Sequence[np.ndarray]) -> dict[str, float]:
    """The interquartile mean of differences in strata, and its interval: each resample draws within each stratum."""
    whole = np.concatenate(strata)
    low = high = np.nan
    if min(map(len, strata)) > 1:
        random = np.random.default_rng(0)
        drawn = [values[random.integers(len(values), size=(RESAMPLES, len(values)))] for values in strata]
        low, high = np.quantile(interquartile_mean(np.concatenate(drawn, axis=1), axis=1), [0.025, 0.975])
    return {"effect": float(interquartile_mean(whole)), "low": float(low), "high": float(high), "seeds": len(whole)}


def table(found: pd.DataFrame) -> str:
    """Effects as Markdown, a line for each environment and value."""
    lines = []
    for env in sorted(found["env"].unique(), key=lambda env: env != ALL):
        for (factor, value), group in found[found["env"] == env].groupby(["factor", "value"], sort=False):
            by = group.set_index("measure")
            shown = [f"{x.effect:+.2f} [{x.low:+.2f}, {x.high:+.2f}]" for x in (by.loc[name] for name in MEASURES)]
            lines.append([env, factor, value, *shown, group["seeds"].iloc[0]])
    return script.table(["environment", "factor", "value", *MEASURES.values(), "seeds"], lines)
