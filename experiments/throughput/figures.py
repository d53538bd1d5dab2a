"""The figures of experiments/throughput/run.py: fraction of plain inference against width, and how cost grows.

    python -m experiments.throughput.figures                 # every machine measured
    python -m experiments.throughput.figures 2-x-cpu --out runs/throughput.png

From <name>-forward.csv plots/throughput-<name>.png: a panel for each population and dtype. Points are medians over
windows, bars the lowest and highest window. The dotted line of a kind's color is what its roofline allows: the
operations and bytes that it needs beside those of inference.

From <name>-growth.csv results/growth-<name>-<measure>.png, for each measure (forward, generation): time and memory
against population, width, rank and episodes, three rows of panels, a column for each factor. Seconds and compiled
memory are drawn with gray guides of slope 1: parallel to them, twice as much takes twice as long. The third row is the
time of a unit: of a lane step, with the width of a lane step and a weight, with the rank of a lane step and a rank. Its
knee, the first point within 10 % of the lowest, is marked and printed: from there on, more costs in proportion.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.ticker import NullLocator
from tyro.conf import Positional

from experiments import script
from experiments.lab.figures import save
from experiments.lab.store import ROOT, result_names, results

RESULTS = results("throughput")
INFERENCE = "inference"
FACTORS = ("population", "width", "rank", "episodes")
FLAT = 1.1  # of the lowest time per unit
ROWS = {"seconds": "seconds", "peak_bytes": "compiled memory, bytes", "ns_per_unit": "ns per unit"}
UNITS = {"width": "lane step and weight", "rank": "lane step and rank"}


@dataclass(frozen=True)
class Options:
    names: Positional[tuple[str, ...]] = ()  # of the result files
    results: Path = RESULTS
    out: Path | None = None  # of one name; of growth, the measure is added to it


def order(kinds: pd.Series) -> list[str]:
    """Kinds of noise as the legend has them: ranks by number, what is drawn in every step, dense."""
    shown = sorted({kind for kind in kinds if not kind.startswith(INFERENCE)})
    stored = [kind for kind in shown if kind.startswith("rank") and kind.split()[-1].isdigit()]
    return sorted(stored, key=lambda kind: int(kind.split()[1])) + [
        kind for kind in reversed(shown) if kind not in stored
    ]


def draw_forward(rows: pd.DataFrame, path: Path) -> None:
    """Fraction of inference: a row of panels for each dtype, a panel for each population, a line for each kind."""
    dtypes, populations = rows["dtype"].unique(), sorted(rows["population"].unique())
    kinds = order(rows["kind"])
    colors = dict(zip(kinds, sns.color_palette("colorblind", len(kinds)), strict=True))
    size = (2.7 * len(populations) + 0.6, 2.4 * len(dtypes) + 0.6)
    figure, grid = plt.subplots(len(dtypes), len(populations), figsize=size, sharey=True, sharex=True, squeeze=False)
    for dtype, line in zip(dtypes, grid, strict=True):
        for population, axes in zip(populations, line, strict=True):
            here = rows[(rows["dtype"] == dtype) & (rows["population"] == population)]
            for kind in kinds:
                _line(axes, here[here["kind"] == kind].sort_values("hidden"), kind, colors[kind])
            axes.axhline(1, color="0.3", lw=0.8, ls="--", zorder=1)
            axes.set(xscale="log", title=f"{dtype}, population {population:,}")
            axes.set_xticks(sorted(rows["hidden"].unique()))
            axes.tick_params(axis="x", labelrotation=45)
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_locator(NullLocator())
    for axes in grid[-1]:
        axes.set_xlabel("width of three layers")
    for axes in grid[:, 0]:
        axes.set_ylabel("fraction of inference")
        axes.set_ylim(0, None)
    handles = {h.get_label(): h for axes in grid.flat for h in axes.get_legend_handles_labels()[0]}
    figure.legend(
        handles.values(), handles, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=len(handles), frameon=False
    )
    figure.tight_layout()
    save(figure, path, bbox_inches="tight")
    plt.close(figure)


def _line(axes: Any, rows: pd.DataFrame, kind: str, color: Any) -> None:
    if rows.empty:
        return
    middle = rows["fraction_of_inference"].to_numpy()
    lowest, highest = (rows[f"fraction_of_inference_{end}"].to_numpy() for end in ("lowest", "highest"))
    bars, hidden = [middle - lowest, highest - middle], rows["hidden"].to_numpy()
    axes.errorbar(hidden, middle, yerr=bars, color=color, marker="o", ms=3, lw=1.2, capsize=2, label=kind)
    axes.plot(hidden, rows["roofline_fraction_of_inference"].to_numpy(), color=color, lw=0.8, ls=":")


def knee(values: np.ndarray, each: np.ndarray) -> float:
    """The first value from which the time of a unit is within 10 % of the lowest."""
    return float(values[np.argmax(each <= FLAT * each.min())])


def draw_growth(rows: pd.DataFrame, measure: str, path: Path) -> None:
    """Seconds, memory and the time of a unit: a column of panels for each factor."""
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
    save(figure, path)
    plt.close(figure)


def _guides(axes: Any, values: np.ndarray, heights: np.ndarray) -> None:
    """Lines of slope 1 over the panel, which keeps its limits."""
    low, high = axes.get_ylim()
    for start in heights.max() / values.max() * 10.0 ** np.arange(-4, 5):
        axes.plot(values, start * values, color="0.8", lw=0.6, zorder=0)
    axes.set_ylim(low, high)


def main() -> None:
    given = script.options(Options, __doc__)
    paths = [path for part in ("forward", "growth") for path in given.results.glob(f"*-{part}.csv")]
    every = sorted({path.stem.rpartition("-")[0] for path in paths})
    matplotlib.use("Agg")
    sns.set_theme(context="paper", style="whitegrid", rc={"grid.color": "0.9"})
    for name in result_names(given.results, "-forward.csv", list(given.names) or every, given.out):
        forward, growth = (given.results / f"{name}-{part}.csv" for part in ("forward", "growth"))
        if forward.exists():
            rows = pd.read_csv(forward)
            rows = rows[rows["fraction_of_inference"].notna()]
            rows["hidden"] = rows["network"].str.partition("x")[2].astype(int)
            draw_forward(rows, given.out or ROOT / "plots" / f"throughput-{name}.png")
        if growth.exists():
            rows = pd.read_csv(growth)
            out = given.out or RESULTS / f"growth-{name}.png"
            for measure, part in rows[rows["seconds"].notna()].groupby("measure"):
                draw_growth(part, str(measure), out.with_stem(f"{out.stem}-{measure}"))


if __name__ == "__main__":
    main()
