"""Each claim about EGGROLL as a figure: measurements beside theory, from the files of experiments/claims/run.py.

    python -m experiments.claims.figures                     # every part measured, as results/claims-<part>.png
    python -m experiments.claims.figures thin --out runs/thin.png

Points are measurements with 95 % intervals (1.96 standard errors), dashed lines are theory; where points are joined by
a thin line there is no theory. Where the horizontal axis has names, theory is a short bar.

A line of figures.csv is a panel of its part's figure: the quantity, the columns on the horizontal axis (x) and of a
line each (hue), the title, settings that its rows have (where), the scales of both axes ("names-log" for names across),
and the factor that values are multiplied by.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from tyro.conf import Positional

from experiments import script
from experiments.claims.table import matching
from experiments.lab.figures import save
from experiments.lab.store import result_names, results

RESULTS = results("claims")
FIGURES = Path(__file__).with_name("figures.csv")
MARKERS, LINES = "osD^vPX*", ("--", (0, (5, 1)), (0, (1, 1)), "-.", (0, (3, 1, 1, 1, 1, 1)))
LABELS = {"m": "width m = n", "rank": "rank R", "pairs": "pairs P", "step_evaluations": "evaluations"}
LABELS |= {"step_seconds": "seconds", "distance": "distance, sigmas"}


def chosen(rows: pd.DataFrame, panel: Any) -> pd.DataFrame:
    """A panel's rows; a logarithmic axis has none at 0 (dense noise, as a rank)."""
    rows = matching(rows, panel.quantity, panel.where)
    if not panel.scales.startswith("names"):
        rows = rows.assign(**{panel.x: pd.to_numeric(rows[panel.x], errors="coerce")}).dropna(subset=[panel.x])
        rows = rows[rows[panel.x] > 0] if panel.scales.startswith("log") else rows
    return rows


def draw(rows: pd.DataFrame, panels: list[Any], path: Path) -> None:
    """A figure of so many panels, at most two in a row when there are four, else all in one."""
    wide = 2 if len(panels) > 3 else len(panels)
    high = math.ceil(len(panels) / wide)
    figure, grid = plt.subplots(high, wide, figsize=(3.7 * wide, 3.0 * high), squeeze=False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        here = chosen(rows, panel)
        across, up = panel.scales.split("-")
        if across == "names":
            _named(axes, here, panel)
        else:
            _lines(axes, here, panel)
            axes.set_xscale(across)
        axes.set_yscale(up)
        axes.set_title(panel.title)
        axes.set_xlabel("" if across == "names" else LABELS.get(panel.x, panel.x))
        if axes.get_legend_handles_labels()[0]:
            axes.legend(title=LABELS.get(panel.hue, panel.hue), fontsize=7, title_fontsize=7)
    figure.tight_layout()
    save(figure, path)
    plt.close(figure)


def _lines(axes: Any, rows: pd.DataFrame, panel: Any) -> None:
    """A marker and color for each hue; theory dashed through where there is one, else a thin line."""
    for i, (hue, here) in enumerate(rows.groupby(panel.hue, sort=False, dropna=False)):
        here = here.sort_values(panel.x)
        color = sns.color_palette("colorblind")[i % 10]
        values, errors = here["measured"] * panel.factor, 1.96 * here["standard_error"].fillna(0)
        style = {"color": color, "marker": MARKERS[i % len(MARKERS)], "ms": 4, "lw": 0.9, "capsize": 2}
        known = here["theory"].notna().any()
        axes.errorbar(here[panel.x], values, errors, ls="" if known else "-", label=_name(hue), **style)
        if known:
            line = {"color": color, "lw": 1.1, "ls": LINES[i % len(LINES)], "zorder": 1}
            axes.plot(here[panel.x], here["theory"] * panel.factor, **line)


def _named(axes: Any, rows: pd.DataFrame, panel: Any) -> None:
    """Names along the axis, the hues beside each other; theory is a bar across the point."""
    names, hues = list(dict.fromkeys(rows[panel.x])), list(dict.fromkeys(rows[panel.hue]))
    for i, hue in enumerate(hues):
        here = rows[rows[panel.hue] == hue]
        places = np.array([names.index(name) for name in here[panel.x]]) + 0.6 * ((i + 0.5) / len(hues) - 0.5)
        color = sns.color_palette("colorblind")[i % 10]
        style = {"color": color, "marker": MARKERS[i % len(MARKERS)], "ms": 5, "capsize": 2, "ls": "", "lw": 0.9}
        errors = 1.96 * here["standard_error"].fillna(0)
        axes.errorbar(places, here["measured"] * panel.factor, errors, label=_name(hue), **style)
        half = 0.25 / len(hues)
        axes.hlines(here["theory"] * panel.factor, places - half, places + half, color="0.2", ls="--", lw=1.1, zorder=3)
    axes.set_xticks(range(len(names)), names, rotation=25, ha="right", fontsize=7)


def _name(hue: Any) -> str:
    return f"{hue:g}" if isinstance(hue, int | float) else str(hue)


@dataclass(frozen=True)
class Options:
    parts: Positional[tuple[str, ...]] = ()  # every one measured unless given
    results: Path = RESULTS
    out: Path | None = None  # of one part; experiments/claims/results/claims-<part>.png unless given


def main() -> None:
    given = script.options(Options, __doc__)
    panels = pd.read_csv(FIGURES, keep_default_na=False)
    matplotlib.use("Agg")
    sns.set_theme(context="paper", style="whitegrid", rc={"grid.color": "0.9"})
    for name in result_names(given.results, ".csv", list(given.parts), given.out):
        path = given.results / f"{name}.csv"
        mine = list(panels[panels["part"] == name].itertuples())
        if not mine or not path.exists():
            sys.exit(f"{path} is no result of experiments/claims/run.py")
        draw(pd.read_csv(path), mine, given.out or RESULTS / f"claims-{name}.png")


if __name__ == "__main__":
    main()
