"""Fraction of plain inference against width for every kind of noise, from the files of experiments/throughput/run.py.

    python -m experiments.throughput.figures                 # every machine measured, as plots/throughput-<name>.png
    python -m experiments.throughput.figures 2-x-cpu --out runs/throughput.png

A panel for each population and dtype. Points are medians over windows, bars the lowest and highest window. The dotted
line of a kind's colour is what its roofline allows: the operations and bytes that it needs beside those of inference.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.ticker import NullLocator

from experiments.lab.record import ROOT, result_names, results

RESULT = results("throughput")
INFERENCE = "inference"


def order(kinds: pd.Series) -> list[str]:
    """Kinds of noise as the legend has them: ranks by number, what is drawn in every step, dense."""
    shown = sorted({kind for kind in kinds if not kind.startswith(INFERENCE)})
    stored = [kind for kind in shown if kind.startswith("rank") and kind.split()[-1].isdigit()]
    return sorted(stored, key=lambda kind: int(kind.split()[1])) + [
        kind for kind in reversed(shown) if kind not in stored
    ]


def draw(rows: pd.DataFrame, path: Path) -> None:
    """A row of panels for each dtype, a panel for each population, a line for each kind."""
    dtypes, populations = rows["dtype"].unique(), sorted(rows["population"].unique())
    kinds = order(rows["kind"])
    colours = dict(zip(kinds, sns.color_palette("colorblind", len(kinds)), strict=True))
    size = (2.7 * len(populations) + 0.6, 2.4 * len(dtypes) + 0.6)
    figure, grid = plt.subplots(len(dtypes), len(populations), figsize=size, sharey=True, sharex=True, squeeze=False)
    for dtype, line in zip(dtypes, grid, strict=True):
        for population, axes in zip(populations, line, strict=True):
            here = rows[(rows["dtype"] == dtype) & (rows["population"] == population)]
            for kind in kinds:
                _line(axes, here[here["kind"] == kind].sort_values("hidden"), kind, colours[kind])
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
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


def _line(axes: Any, rows: pd.DataFrame, kind: str, colour: Any) -> None:
    if rows.empty:
        return
    middle = rows["fraction_of_inference"].to_numpy()
    lowest, highest = (rows[f"fraction_of_inference_{end}"].to_numpy() for end in ("lowest", "highest"))
    bars, hidden = [middle - lowest, highest - middle], rows["hidden"].to_numpy()
    axes.errorbar(hidden, middle, yerr=bars, color=colour, marker="o", ms=3, lw=1.2, capsize=2, label=kind)
    axes.plot(hidden, rows["roofline_fraction_of_inference"].to_numpy(), color=colour, lw=0.8, ls=":")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="of the result files")
    parser.add_argument("--results", type=Path, default=RESULT)
    parser.add_argument("--out", type=Path, help="of one name; plots/throughput-<name>.png unless given")
    arguments = parser.parse_args()
    names = result_names(arguments.results, "-forward.csv", arguments.names, arguments.out)
    matplotlib.use("Agg")
    sns.set_theme(context="paper", style="whitegrid", rc={"grid.color": "0.9"})
    for name in names:
        rows = pd.read_csv(arguments.results / f"{name}-forward.csv")
        rows = rows[rows["fraction_of_inference"].notna()]
        rows["hidden"] = rows["network"].str.partition("x")[2].astype(int)
        draw(rows, arguments.out or ROOT / "plots" / f"throughput-{name}.png")


if __name__ == "__main__":
    main()
