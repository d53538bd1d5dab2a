"""Time and memory against population, width, rank and episodes, from the growth files of experiments/throughput/run.py.

    python -m experiments.throughput.growth_figures        # every machine, as results/growth-<name>-<measure>.png
    python -m experiments.throughput.growth_figures 2-x-cpu --out runs/growth.png

For each measure (forward, generation) three rows of panels, a column for each factor. Seconds and compiled memory are
drawn with grey guides of slope 1: parallel to them, twice as much takes twice as long. The third row is the time of a
unit: of a lane step, with the width of a lane step and a weight, with the rank of a lane step and a rank. Its knee, the
first point within 10 % of the lowest, is marked and printed: from there on, more costs in proportion.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt

from experiments.lab.record import result_names, results

RESULT = results("throughput")
FACTORS = ("population", "width", "rank", "episodes")
FLAT = 1.1  # of the lowest time per unit
ROWS = {"seconds": "seconds", "peak_bytes": "compiled memory, bytes", "ns_per_unit": "ns per unit"}
UNITS = {"width": "lane step and weight", "rank": "lane step and rank"}


def knee(values: np.ndarray, each: np.ndarray) -> float:
    """The first value from which the time of a unit is within 10 % of the lowest."""
    return float(values[np.argmax(each <= FLAT * each.min())])


def draw(rows: pd.DataFrame, measure: str, path: Path) -> None:
    """A column of panels for each factor."""
    factors = [factor for factor in FACTORS if factor in set(rows["factor"])]
    figure, grid = plt.subplots(3, len(factors), figsize=(2.7 * len(factors) + 0.4, 6.2), sharex="col", squeeze=False)
    for column, factor in zip(grid.T, factors, strict=True):
        here = rows[rows["factor"] == factor].sort_values("value")
        values, each = here["value"].to_numpy(float), here["ns_per_unit"].to_numpy(float)
        for axes, name in zip(column, ROWS, strict=True):
            axes.plot(here["value"], here[name], marker="o", ms=3, lw=1.2)
            axes.set(xscale="log", yscale="log")
            if name != "ns_per_unit":
                _guides(axes, values, here[name].to_numpy(float))
        column[0].fill_between(here["value"], here["seconds_lowest"], here["seconds_highest"], alpha=0.2, lw=0)
        found = knee(values, each)
        print(f"{path.stem}, {measure}: per {UNITS.get(factor, 'lane step')} flat from {factor} {found:g}")
        column[2].axvline(found, color="0.3", lw=0.8, ls="--", zorder=1)
        column[2].set_title(f"per {UNITS.get(factor, 'lane step')}; flat from {found:g}", fontsize=8)
        column[2].set_xlabel(factor)
    for axes, label in zip(grid[:, 0], ROWS.values(), strict=True):
        axes.set_ylabel(label)
    figure.suptitle(measure)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _guides(axes: Any, values: np.ndarray, heights: np.ndarray) -> None:
    """Lines of slope 1 over the panel, which keeps its limits."""
    low, high = axes.get_ylim()
    for start in heights.max() / values.max() * 10.0 ** np.arange(-4, 5):
        axes.plot(values, start * values, color="0.8", lw=0.6, zorder=0)
    axes.set_ylim(low, high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="of the result files")
    parser.add_argument("--results", type=Path, default=RESULT)
    parser.add_argument("--out", type=Path, help="of one name; the measure is added to it")
    arguments = parser.parse_args()
    names = result_names(arguments.results, "-growth.csv", arguments.names, arguments.out)
    matplotlib.use("Agg")
    sns.set_theme(context="paper", style="whitegrid", rc={"grid.color": "0.9"})
    for name in names:
        rows = pd.read_csv(arguments.results / f"{name}-growth.csv")
        out = arguments.out or results("throughput") / f"growth-{name}.png"
        for measure, part in rows[rows["seconds"].notna()].groupby("measure"):
            draw(part, str(measure), out.with_stem(f"{out.stem}-{measure}"))


if __name__ == "__main__":
    main()
