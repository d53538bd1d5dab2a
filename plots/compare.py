"""Held-out return of each agent over environment steps and over seconds, from the files of experiments/compare.py.

    python plots/compare.py                    # plots/compare.png, and over seconds plots/compare_seconds.png
    python plots/compare.py brax/hopper brax/ant --out plots/brax.png

Lines are interquartile means over seeds, bands their 95 % bootstrap intervals. A dashed line is the return at which
experiments/table.py counts the environment as solved. Seconds are those of a run alone, compiling included.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import matplotlib
import pandas as pd
import seaborn as sns
from matplotlib.ticker import EngFormatter

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "experiments"))

from record import ROOT
from summary import AGENTS, COMPARE, curves, interquartile_mean, interval, read, threshold

LABELS = {"env_steps": "environment steps", "seconds": "seconds"}


def draw(rows: pd.DataFrame, column: str, path: Path) -> None:
    """A panel for each environment, a colour for each agent."""
    shown = [agent for agent in AGENTS if agent in set(rows["agent"])]
    colours = dict(zip(AGENTS, sns.color_palette("colorblind"), strict=False))
    grid = sns.relplot(
        curves(rows, column),
        kind="line",
        x=column,
        y="return_mean",
        hue="agent",
        hue_order=shown,
        palette=[colours[agent] for agent in shown],
        col="env",
        col_wrap=min(3, rows["env"].nunique()),
        estimator=interquartile_mean,
        errorbar=interval,
        height=2.5,
        aspect=1.35,
        facet_kws={"sharex": False, "sharey": False},
    )
    for env, axes in grid.axes_dict.items():
        aim = threshold(env)
        if aim is not None:
            axes.axhline(aim, color="0.3", lw=0.8, ls="--", zorder=1)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    grid.set_titles("{col_name}").set_axis_labels(LABELS[column], "held-out return")
    for text in grid.legend.get_texts():
        text.set_text(AGENTS[text.get_text()])
    sns.move_legend(grid, "lower center", bbox_to_anchor=(0.5, 1.0), ncol=len(shown), title=None)
    grid.figure.tight_layout()
    grid.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("envs", nargs="*")
    parser.add_argument("--results", type=Path, default=COMPARE)
    parser.add_argument(
        "--out", type=Path, default=ROOT / "plots" / "compare.png", help="over steps; seconds beside it"
    )
    arguments = parser.parse_args()
    matplotlib.use("Agg")
    sns.set_theme(context="paper", style="whitegrid", rc={"grid.color": "0.9"})
    rows = read(arguments.results, arguments.envs)
    draw(rows, "env_steps", arguments.out)
    draw(rows, "seconds", arguments.out.with_stem(f"{arguments.out.stem}_seconds"))


if __name__ == "__main__":
    main()
