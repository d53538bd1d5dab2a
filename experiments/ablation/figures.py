"""What each choice is worth against esrl's defaults, from the files of experiments/ablation/run.py: a forest plot.

    python -m experiments.ablation.figures                # every environment, as results/ablation.png
    python -m experiments.ablation.figures gymnax/CartPole-v1 --out runs/cartpole.png

Dots are interquartile means over seeds of the difference to the base, bars their 95 % paired bootstrap intervals: 0 is
the base, -1 has learnt nothing (ablation/analysis.py). The black diamond is of all environments together.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import tyro

from experiments import script
from experiments.ablation.analysis import ALL, MEASURES, effects, read
from experiments.lab import figures
from experiments.lab.store import results

RESULTS = results("ablation")
MARKERS = "osv^PX*<>"
WIDEST = 1.5  # effects beyond are at the edge: a run that falls apart must not hide the others


def draw(found: pd.DataFrame, path: Path) -> None:
    """A row for each factor's value, a panel for each measure, a mark for each environment."""
    rows = list(found[["factor", "value"]].drop_duplicates().itertuples(index=False, name=None))
    factors = list(dict.fromkeys(factor for factor, _ in rows))
    heights = {row: i + 0.7 * factors.index(row[0]) for i, row in enumerate(rows)}  # a gap before each factor
    envs = sorted(found["env"].unique(), key=lambda env: env == ALL)
    size = (8, 1.3 + (0.12 + 0.05 * len(envs)) * max(heights.values()))
    figure, panels = plt.subplots(1, len(MEASURES), sharey=True, sharex=True, figsize=size)
    for axes, (measure, title) in zip(panels, MEASURES.items(), strict=True):
        for i, env in enumerate(envs):
            own = found[(found["env"] == env) & (found["measure"] == measure)]
            _marks(axes, own, heights, env, i, len(envs))
        axes.axvline(0, color="0.2", lw=0.8, zorder=1)
        axes.set_title(title)
        axes.grid(False, axis="y")
        for factor in factors[1:]:
            first = min(height for (name, _), height in heights.items() if name == factor)
            axes.axhline(first - 0.85, color="0.8", lw=0.6, zorder=0)
    edge = min(WIDEST, 1.1 * np.nanmax(np.abs(found[["effect", "low", "high"]].to_numpy(float))))
    panels[0].set_xlim(-edge, edge)
    panels[0].set_yticks(list(heights.values()), [f"{factor}: {value}" for factor, value in rows])
    panels[0].set_ylim(max(heights.values()) + 0.8, -0.8)
    figure.supxlabel("difference to the base, in units of what the base learns", fontsize="medium")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=min(len(envs), 3), frameon=False)
    figure.tight_layout()
    figures.save(figure, path, bbox_inches="tight")


def _marks(axes: plt.Axes, own: pd.DataFrame, heights: dict, env: str, i: int, count: int) -> None:
    """One environment's dots and intervals, a little below the former's."""
    offset = (i - (count - 1) / 2) * min(0.16, 0.8 / count)
    y = [heights[row] + offset for row in own[["factor", "value"]].itertuples(index=False, name=None)]
    whole = env == ALL
    color = "black" if whole else sns.color_palette("colorblind")[i % 10]
    x = own["effect"].clip(-WIDEST, WIDEST)
    axes.hlines(y, own["low"], own["high"], color=color, lw=1.4 if whole else 0.9, zorder=2)
    axes.scatter(x, y, s=24 if whole else 13, color=color, marker="D" if whole else MARKERS[i % 9], label=env, zorder=3)


@dataclass
class Arguments:
    """The command line."""

    envs: tyro.conf.Positional[tuple[str, ...]] = ()  # all that were measured unless given
    results: Path = RESULTS
    out: Path = RESULTS / "ablation.png"


def main() -> None:
    arguments = script.options(Arguments, __doc__)
    found, left_out = effects(read(arguments.results, arguments.envs))
    for sentence in left_out:
        print(sentence)
    if found.empty:
        sys.exit("no environment is left to draw")
    figures.begin()
    draw(found, arguments.out)


if __name__ == "__main__":
    main()
