"""Held-out return of each agent over env steps, seconds and episodes, from the files of experiments/study/compare.py.

    python -m experiments.study.curves              # compare.png, compare_seconds.png, compare_episodes.png in results/
    python -m experiments.study.curves brax/hopper brax/ant --out runs/brax.png
    python -m experiments.study.curves --results experiments/study/results/study --out runs/curves.png

Lines are interquartile means over seeds, bands their 95 % bootstrap intervals. A dashed line is the return at which
study/recipe_headers.py counts the environment as solved. Seconds are those of a run alone: of training, and what
compiling took before. Where agents' steps or episodes differ more than tenfold, their axis is logarithmic. Episodes are
drawn where runs counted them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import seaborn as sns
import tyro
from matplotlib.ticker import EngFormatter, NullFormatter

from experiments import script
from experiments.lab import figures
from experiments.lab.stats import AGENTS, COMPARE, curves, final, interquartile_mean, interval, read, threshold

FIGURE = COMPARE.with_suffix(".png")
LABELS = {"env_steps": "environment steps", "seconds": "seconds", "episodes": "episodes"}
FAR = 10.0  # agents whose ends differ by more have a logarithmic axis


def apart(rows: pd.DataFrame, column: str) -> bool:
    """Whether agents of an environment end so far apart that only a logarithmic axis shows all."""
    ends = final(rows.assign(seed=rows["agent"] + rows["seed"].astype(str) + rows["env"]))
    spread = ends.groupby(["env", "agent"])[column].median().groupby("env").agg(["max", "min"])
    return column != "seconds" and bool((spread["max"] > FAR * spread["min"]).any())


def draw(rows: pd.DataFrame, column: str, path: Path) -> None:
    """A panel for each environment, a color and a line style for each agent."""
    shown = [*(a for a in AGENTS if a in set(rows["agent"])), *sorted(set(rows["agent"]) - AGENTS.keys())]
    log = apart(rows, column)
    found = curves(rows, column, log=log)
    if found.empty:
        return
    palette = figures.colors(shown)
    grid = sns.relplot(
        found,
        kind="line",
        x=column,
        y="return_mean",
        hue="agent",
        hue_order=shown,
        style="agent",
        style_order=shown,
        palette={agent: palette[agent] for agent in shown},
        col="env",
        col_wrap=min(3, found["env"].nunique()),
        estimator=interquartile_mean,
        errorbar=interval,
        height=2.5,
        aspect=1.35,
        facet_kws={"sharex": False, "sharey": False},
    )
    for env, axes in grid.axes_dict.items():
        figures.threshold_line(axes, threshold(env))
        if log:
            axes.set_xscale("log")
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    grid.set_titles("{col_name}").set_axis_labels(LABELS[column], "held-out return")
    for text in grid.legend.get_texts():
        text.set_text(AGENTS.get(text.get_text(), text.get_text()))
    figures.legend_above(grid, len(shown))
    figures.save(grid, path)


@dataclass
class Arguments:
    """The command line."""

    envs: tyro.conf.Positional[tuple[str, ...]] = ()  # all with results unless given
    results: Path = COMPARE
    out: Path = FIGURE  # over steps; others beside it


def main() -> None:
    arguments = script.options(Arguments, __doc__)
    figures.begin()
    rows = read(arguments.results, arguments.envs)
    draw(rows, "env_steps", arguments.out)
    draw(rows, "seconds", arguments.out.with_stem(f"{arguments.out.stem}_seconds"))
    counted = rows.groupby("env").filter(lambda runs: runs["episodes"].notna().all())
    if len(counted):
        draw(counted, "episodes", arguments.out.with_stem(f"{arguments.out.stem}_episodes"))


if __name__ == "__main__":
    main()
