"""Final held-out return against sigma for every rank and population, from the files of experiments/sweep.py.

    python plots/sweep.py                      # every environment swept, as plots/sweep.png
    python plots/sweep.py gymnasium/phys2d/CartPole-v1 --out plots/cartpole_sweep.png

Points are interquartile means over seeds, bars their 95 % bootstrap intervals. A dashed line is the return at which
experiments/table.py counts the environment as solved.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import matplotlib
import pandas as pd
import seaborn as sns
from matplotlib.ticker import NullLocator

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "experiments"))

from record import ROOT, folder_name
from summary import SWEEP, interquartile_mean, interval, threshold


def draw(rows: pd.DataFrame, path: Path) -> None:
    """A row of panels for each environment, a panel for each population, a line for each rank."""
    runs = ["env", "rank", "population", "sigma", "seed"]
    last = rows.sort_values("env_steps").groupby(runs, as_index=False).tail(1)
    ranks = sorted(set(last["rank"]), key=lambda rank: float("inf") if rank == "dense" else int(rank))
    last["beside"] = last["sigma"] * 1.03 ** last["rank"].map(ranks.index)  # so that bars do not cover each other
    several = last["env"].nunique() > 1
    grid = sns.relplot(
        last,
        kind="line",
        x="beside",
        y="return_mean",
        hue="rank",
        hue_order=ranks,
        style="rank",
        style_order=ranks,
        palette=sns.color_palette("colorblind", len(ranks)),
        markers=True,
        dashes=False,
        col="population",
        row="env" if several else None,
        estimator=interquartile_mean,
        errorbar=interval,
        err_style="bars",
        err_kws={"capsize": 2, "elinewidth": 1},
        height=2.8,
        aspect=1.25,
        facet_kws={"sharey": "row"},
    )
    for key, axes in grid.axes_dict.items():
        aim = threshold(key[0] if several else last["env"].iloc[0])
        if aim is not None:
            axes.axhline(aim, color="0.3", lw=0.8, ls="--", zorder=1)
    grid.set(xscale="log", xticks=sorted(set(last["sigma"])))
    for axes in grid.axes.flat:
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
    grid.set_axis_labels("sigma", "final held-out return")
    grid.set_titles("{row_name}, population {col_name}" if several else "population {col_name}")
    for text in grid.legend.get_texts():
        text.set_text("dense (OpenES)" if text.get_text() == "dense" else f"rank {text.get_text()}")
    sns.move_legend(grid, "lower center", bbox_to_anchor=(0.5, 1.0), ncol=len(ranks), title=None)
    grid.figure.tight_layout()
    grid.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("envs", nargs="*")
    parser.add_argument("--results", type=Path, default=SWEEP)
    parser.add_argument("--out", type=Path, default=ROOT / "plots" / "sweep.png")
    arguments = parser.parse_args()
    names = [folder_name(env) for env in arguments.envs] or sorted(
        path.stem for path in arguments.results.glob("*.csv")
    )
    if not names:
        sys.exit(f"{arguments.results} has no results")
    matplotlib.use("Agg")
    sns.set_theme(context="paper", style="whitegrid", rc={"grid.color": "0.9"})
    frames = [pd.read_csv(arguments.results / f"{name}.csv", dtype={"rank": str}) for name in names]
    draw(pd.concat(frames, ignore_index=True), arguments.out)


if __name__ == "__main__":
    main()
