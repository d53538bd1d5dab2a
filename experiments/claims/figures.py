"""Each claim about EGGROLL as a figure: measurements beside theory, from the files of experiments/claims/run.py.

    python -m experiments.claims.figures                     # every part measured, as results/claims-<part>.png
    python -m experiments.claims.figures thin --out runs/thin.png

Points are measurements with 95 % intervals (1.96 standard errors), dashed lines are theory; where points are joined by
a thin line there is no theory. Where the horizontal axis has names, theory is a short bar.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from tyro.conf import Positional

from experiments import script
from experiments.lab.record import result_names, results

RESULTS = results("claims")
MARKERS, LINES = "osD^vPX*", ("--", (0, (5, 1)), (0, (1, 1)), "-.", (0, (3, 1, 1, 1, 1, 1)))


class Panel(NamedTuple):
    """What one panel shows.

    Attributes:
      quantity: rows of this quantity.
      x, hue: columns on the horizontal axis, and of a line each.
      title: above it. where: rows with these settings alone.
      scales: of the axes, as in "log-linear"; "names" for a horizontal axis of names.
      factor: what values are multiplied by.
    """

    quantity: str
    x: str
    hue: str
    title: str
    where: dict[str, Any] = {}  # noqa: RUF012
    scales: str = "log-log"
    factor: float = 1.0


def _grid(scheme: str, rank: int) -> Panel:
    title = f"final loss, {scheme}, {'rank 1' if rank else 'dense'}"
    return Panel("final loss over the first", "sigma", "population", title, {"scheme": scheme, "rank": rank})


NORMAL = {"distribution": "normal"}
FIGURES = {
    "error-rank": [
        Panel("squared error", "rank", "distribution", "squared error, 64x64", {"m": 64}, "log-linear"),
        Panel("excess over dense", "rank", "m", "excess over dense, normal factors", NORMAL),
        Panel("squared error of a pair", "rank", "fitness", "squared error of a pair, 16x16"),
        Panel(
            "mean along G over dense noise's, less 1", "rank", "fitness", "distance of means from dense", factor=-1.0
        ),
    ],
    "error-width": [
        Panel("excess relative to dense", "m", "noise", "excess relative to dense", NORMAL),
        Panel("cosine with 64 pairs", "m", "noise", "cosine with the gradient, 64 pairs", NORMAL),
        Panel("squared error", "m", "noise", "squared error", NORMAL),
    ],
    "update-rank": [
        Panel("rank of the update", "pairs", "noise", "rank of the update, 48x32", {"m": 48}),
        Panel("rank of the update", "pairs", "noise", "rank of the update, 32x64", {"m": 32}),
    ],
    "thin": [
        Panel("excess relative to dense", "layer", "thin", "excess relative to dense", scales="names-linear"),
        Panel("numbers of a perturbation", "layer", "thin", "random numbers of a member", scales="names-log"),
    ],
    "antithetic": [
        Panel("squared error", "fitness", "scheme", "squared error, rank 1", {"rank": 1}, "names-log"),
        Panel("ratio of squared errors", "fitness", "noise", "leave one out / antithetic", scales="names-log"),
    ],
    "crn": [
        Panel("variance over worlds of f+ - f-", "env", "crn", "Var over worlds of f+ - f-", scales="names-log"),
        Panel("variance of f+ - f-", "env", "crn", "Var of f+ - f-", scales="names-log"),
        Panel("variance of the estimate along the gradient", "env", "crn", "Var of the estimate", scales="names-log"),
    ],
    "spectrum": [
        Panel("singular value", "index", "noise", "singular values, 32 pairs", {"pairs": 32}, "linear-linear"),
        Panel("singular value", "index", "noise", "singular values, 2048 pairs", {"pairs": 2048}, "linear-linear"),
        Panel("fourth spectral moment", "pairs", "noise", "fourth spectral moment"),
        Panel("distance to Marchenko-Pastur (KS)", "pairs", "noise", "distance to Marchenko-Pastur"),
    ],
    "quadratic": [
        Panel(name, "condition", "noise", f"{name} to 0.1 % of the loss")
        for name in ("iterations", "evaluations", "seconds")
    ]
    + [Panel("loss after one step over the first", "noise", "condition", "loss after one step", scales="names-linear")],
    "step": [
        Panel("fitness", "step", "noise", "share of steps climbed", scales="linear-linear"),
        Panel("slope of the smoothed steps", "distance", "noise", "slope at a distance in sigmas", scales="linear-log"),
    ],
    "moons": [
        Panel("held-out accuracy", x, "noise", f"held-out accuracy over {name}", scales="log-linear")
        for x, name in (("step", "steps"), ("step_evaluations", "evaluations"), ("step_seconds", "seconds"))
    ],
    "grid": [_grid(scheme, rank) for scheme in ("antithetic", "leave one out") for rank in (0, 1)],
    "wrong-update": [
        Panel("loss over its first value", "step", "update", "loss on a quadratic, rank 1", {"rank": 1}, "linear-log"),
        Panel("projection on the gradient", "update", "noise", "projection on the gradient", scales="names-linear"),
    ],
}
LABELS = {"m": "width m = n", "rank": "rank R", "pairs": "pairs P", "step_evaluations": "evaluations"}
LABELS |= {"step_seconds": "seconds", "distance": "distance, sigmas"}


def chosen(rows: pd.DataFrame, panel: Panel) -> pd.DataFrame:
    """A panel's rows; a logarithmic axis has none at 0 (dense noise, as a rank)."""
    rows = rows[rows["quantity"] == panel.quantity]
    for column, value in panel.where.items():
        numbers = pd.to_numeric(rows[column], errors="coerce")
        rows = rows[numbers == value] if isinstance(value, int | float) else rows[rows[column] == value]
    if not panel.scales.startswith("names"):
        rows = rows.assign(**{panel.x: pd.to_numeric(rows[panel.x], errors="coerce")}).dropna(subset=[panel.x])
        rows = rows[rows[panel.x] > 0] if panel.scales.startswith("log") else rows
    return rows


def draw(rows: pd.DataFrame, panels: list[Panel], path: Path) -> None:
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
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _lines(axes: Any, rows: pd.DataFrame, panel: Panel) -> None:
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


def _named(axes: Any, rows: pd.DataFrame, panel: Panel) -> None:
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
    matplotlib.use("Agg")
    sns.set_theme(context="paper", style="whitegrid", rc={"grid.color": "0.9"})
    for name in result_names(given.results, ".csv", list(given.parts), given.out):
        path = given.results / f"{name}.csv"
        if name not in FIGURES or not path.exists():
            sys.exit(f"{path} is no result of experiments/claims/run.py")
        draw(pd.read_csv(path), FIGURES[name], given.out or RESULTS / f"claims-{name}.png")


if __name__ == "__main__":
    main()
