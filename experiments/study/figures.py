"""Scores over all environments of a study, from the statistics.csv that experiments/study/analysis.py writes.

    python -m experiments.study.figures                      # plots/study.png, and results/study_profiles.png
    python -m experiments.study.figures --results experiments/study/results/compare --out runs/compare_study.png

First figure: above, each agent's interquartile mean, median, mean and optimality gap of normalized scores with 95 %
intervals, a color and a marker for each agent, at the end of the budget, after equal steps and after equal episodes;
below, the probability that a run of one agent is better than one of another. Second figure: performance profiles, the
part of all runs whose score is above a value. The curves over steps, seconds and episodes are those of
experiments/study/curves.py --results experiments/study/results/study.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.lines import Line2D

from experiments import script
from experiments.lab import figures
from experiments.lab.store import ROOT, results
from experiments.study.study_table import CHOSEN, HEADS, PLACES, name, select

STUDY = results("study")
MARKERS, DASHES = "osD^vP*X", ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1)), (0, (6, 3)))


def styles(rows: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """By agent: color, marker and line style, the same in every figure."""
    # Without what is one of two others in each environment.
    shown = set(select(rows, environment="all", measure="iqm")["agent"]) - {CHOSEN}
    made = zip(figures.colors(shown).items(), MARKERS * 9, DASHES * 9, strict=False)
    return {a: {"color": color, "marker": marker, "ls": dash} for (a, color), marker, dash in made if a in shown}


def bars(axes: Any, at: float, row: pd.Series, style: dict[str, Any]) -> None:
    """A value with its interval, lying; without an interval where there is none."""
    sides = [[row["value"] - row["low"]], [row["high"] - row["value"]]]
    reach = None if np.isnan(sides).any() else np.maximum(sides, 0.0)
    axes.errorbar([row["value"]], [at], xerr=reach, capsize=2, ms=4, lw=1.2, **{**style, "ls": "none"})


def aggregates(axes: Any, rows: pd.DataFrame, measure: str, look: dict[str, dict[str, Any]]) -> None:
    """One measure of every agent at every place."""
    for y, at in enumerate(PLACES):
        for i, (agent, style) in enumerate(look.items()):
            for _, row in select(rows, environment="all", at=at, agent=agent, measure=measure).iterrows():
                bars(axes, y + 0.22 * (i - (len(look) - 1) / 2), row, style)
    axes.set_yticks(range(len(PLACES)), PLACES.values())
    axes.set(title=HEADS[measure], ylim=(len(PLACES) - 0.5, -0.5))


def improvements(axes: Any, rows: pd.DataFrame, at: str, look: dict[str, dict[str, Any]]) -> None:
    """The probability of improvement of every pair, once, at one place."""
    names, here = list(look), select(rows, environment="all", at=at, measure="improvement")
    pairs = [(x, y) for i, x in enumerate(names) for y in names[i + 1 :]]
    for place, (x, y) in enumerate(pairs):
        for _, row in select(here, agent=x, other=y).iterrows():
            bars(axes, place, row, {"color": "0.2", "marker": "o"})
    axes.axvline(0.5, color="0.4", lw=0.8, ls="--", zorder=1)
    axes.set_yticks(range(len(pairs)), [f"{name(x)} over {name(y)}" for x, y in pairs])
    axes.set(xlim=(-0.03, 1.03), ylim=(len(pairs) - 0.5, -0.5), title=PLACES[at])


def draw(rows: pd.DataFrame, path: Path) -> None:
    """Aggregates above, probabilities of improvement below."""
    look = styles(rows)
    places = [at for at in PLACES if len(select(rows, environment="all", at=at))]
    figure = plt.figure(figsize=(9.5, 4.8))
    halves: Any = figure.subfigures(2, 1, height_ratios=(1.15, 1))
    above, below = halves
    for axes, measure in zip(above.subplots(1, len(HEADS), sharey=True), HEADS, strict=True):
        aggregates(axes, rows, measure, look)
    for axes, at in zip(below.subplots(1, len(places), sharey=True, squeeze=False)[0], places, strict=True):
        improvements(axes, rows, at, look)
    above.supxlabel("normalized score", fontsize=9)
    below.supxlabel("probability that a run is better", fontsize=9)
    above.subplots_adjust(left=0.16, right=0.99, bottom=0.23, top=0.9, wspace=0.12)
    below.subplots_adjust(left=0.16, right=0.99, bottom=0.26, top=0.86, wspace=0.08)
    legend(figure, look)
    figures.save(figure, path, bbox_inches="tight")
    plt.close(figure)


def profiles(rows: pd.DataFrame, path: Path) -> None:
    """A panel for each place, a line with its band for each agent."""
    look = styles(rows)
    places = [at for at in PLACES if len(select(rows, at=at, measure="profile"))]
    figure, grid = plt.subplots(1, len(places), figsize=(3.2 * len(places) + 0.3, 2.7), sharey=True, squeeze=False)
    for axes, at in zip(grid[0], places, strict=True):
        for agent, style in look.items():
            own = select(rows, at=at, measure="profile", agent=agent).sort_values("score")
            x = own["score"].astype(float)
            axes.plot(x, own["value"], lw=1.4, markevery=10, ms=4, **style)
            axes.fill_between(x, own["low"], own["high"], color=style["color"], alpha=0.15, lw=0)
        axes.set(title=PLACES[at], xlabel="normalized score", ylim=(-0.02, 1.02))
    grid[0, 0].set_ylabel("part of runs above it")
    figure.tight_layout()
    legend(figure, look)
    figures.save(figure, path, bbox_inches="tight")
    plt.close(figure)


def legend(figure: Any, look: dict[str, dict[str, Any]]) -> None:
    """The agents, above the figure."""
    handles = [Line2D([], [], ms=5, label=name(agent), **style) for agent, style in look.items()]
    figure.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=len(look), frameon=False)


@dataclass
class Arguments:
    """The command line."""

    results: Path = STUDY / "study"
    out: Path | None = None  # its profiles beside it; plots/study.png unless given


def main() -> None:
    arguments = script.options(Arguments, __doc__)
    csv = arguments.results / "statistics.csv"
    if not csv.exists():
        sys.exit(f"{csv} is not there; python -m experiments.study.analysis makes it")
    rows = pd.read_csv(csv).fillna({"agent": "", "other": ""})
    if not len(select(rows, environment="all")):
        sys.exit(f"{csv} has no environment with all agents")
    figures.begin()
    draw(rows, arguments.out or ROOT / "plots" / "study.png")
    beside = arguments.out or STUDY / "study.png"
    profiles(rows, beside.with_stem(f"{beside.stem}_profiles"))


if __name__ == "__main__":
    main()
