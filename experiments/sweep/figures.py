"""Final held-out return against sigma for every rank and population, from the files of experiments/sweep/run.py.

    python -m experiments.sweep.figures                      # every environment swept, as results/sweep.png
    python -m experiments.sweep.figures gymnasium/phys2d/CartPole-v1 --out runs/cartpole.png

Points are interquartile means over seeds, bars their 95 % bootstrap intervals. A dashed line is the return at which
study/recipe_headers.py counts the environment as solved. Where other options were swept too, the figure takes their
most frequent values, and says which. Runs of PPO, which has no sigma, are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import seaborn as sns
import tyro
from matplotlib.ticker import NullLocator

from experiments import script
from experiments.lab import figures
from experiments.lab.run import read_all
from experiments.lab.stats import SWEEP, interquartile_mean, interval, threshold

SHOWN = ("rank", "sigma", "population")


def chosen(rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The last row of each run of evolution strategies, with the other options at their most frequent values.

    Also those values, as a text; "" where only rank, sigma and population were swept.
    """
    rows = rows[rows["rank"].notna()]
    last = rows.sort_values("generation").groupby(["settings", "seed"], sort=False).tail(1)
    names, said = list(last.columns), []
    for name in names[names.index("agent") + 1 : names.index("seed")]:
        if name not in SHOWN and last[name].nunique(dropna=False) > 1:
            value = last[name].value_counts(dropna=False).index[0]
            last = last[last[name].isna() if pd.isna(value) else last[name] == value]
            said.append(f"{name} {value}")
    return last, ", ".join(said)


def draw(rows: pd.DataFrame, path: Path, said: str = "") -> None:
    """A row of panels for each environment, a panel for each population, a line for each rank.

    Args:
      rows: the last one of each run.
      path: of the figure.
      said: written below it.
    """
    last = rows.copy()
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
        height=2.3 if several else 2.8,
        aspect=1.35,
        facet_kws={"sharey": "row"},
    )
    for key, axes in grid.axes_dict.items():
        figures.threshold_line(axes, threshold(key[0] if several else last["env"].iloc[0]))
    grid.set(xscale="log", xticks=sorted(set(last["sigma"])))
    grid.set_axis_labels("sigma", "final held-out return")
    grid.set_titles("{row_name}\npopulation {col_name}" if several else "population {col_name}")
    for axes in grid.axes.flat:
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_visible(axes.has_data())  # an environment may not have a population
    if said:
        grid.figure.text(0.5, -0.01, said, ha="center", va="top")
    for text in grid.legend.get_texts():
        text.set_text("dense (OpenES)" if text.get_text() == "dense" else f"rank {text.get_text()}")
    figures.legend_above(grid, len(ranks))
    figures.save(grid, path)


@dataclass
class Arguments:
    """The command line."""

    envs: tyro.conf.Positional[tuple[str, ...]] = ()  # all that were swept unless given
    results: Path = SWEEP
    out: Path = SWEEP / "sweep.png"


def main() -> None:
    arguments = script.options(Arguments, __doc__)
    figures.begin()
    rows, said = zip(*map(chosen, read_all(arguments.results, arguments.envs)), strict=True)
    draw(pd.concat(rows, ignore_index=True), arguments.out, "; ".join(dict.fromkeys(filter(None, said))))


if __name__ == "__main__":
    main()
