"""Held-out scores over evaluations, from the table of experiments/objectives/run.py, as results/objectives.png.

    python -m experiments.objectives.figures
    python -m experiments.objectives.figures --out runs/objectives.png

A panel for each task, a line for each run. The language models' scores are minus bits for each byte, and all of them
share a panel; its dashed line is the model of order 2. An evaluation of the integer network reads one place of the
text, one of the others eight. What is measured from the start on is drawn from its first score on, as evaluations are
on a logarithmic axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import seaborn as sns
from matplotlib.ticker import NullFormatter

from experiments import script
from experiments.lab import figures
from experiments.lab.store import Store, results

TABLE, FIGURE = results("objectives") / "objectives.csv", results("objectives") / "objectives.png"
COUNTED = "order 2"
PANELS = {  # of each task: its panel, and what its methods are called there
    "likelihood": ("digits by likelihood: accuracy", "{}"),
    "accuracy": ("digits by right answers: accuracy", "{}"),
    "order": ("digits by order: correlation of ranks", "{}"),
    "bits": ("language model: minus bits for each byte", "{}"),
    "wide_bits": ("language model: minus bits for each byte", "{}, 64 units"),
    "integer_bits": ("language model: minus bits for each byte", "{}, 64 units"),
}


def draw(rows: pd.DataFrame, path: Path) -> None:
    """A panel for each task that was measured, a line for each method and seed.

    Args:
      rows: `task`, `method`, `seed`, `evaluations`, `score`.
      path: of the figure.
    """
    shown = rows.assign(panel=[PANELS[task][0] for task in rows["task"]])
    shown["name"] = [PANELS[task][1].format(method) for task, method in zip(rows["task"], rows["method"], strict=True)]
    curves = shown[(shown["evaluations"] > 0) & (shown["method"] != COUNTED)]
    names = list(dict.fromkeys(curves["name"]))
    grid = sns.relplot(
        curves,
        kind="line",
        x="evaluations",
        y="score",
        hue="name",
        hue_order=names,
        palette=sns.color_palette("colorblind", len(names)),
        units="seed",
        estimator=None,
        col="panel",
        col_wrap=2,
        height=2.6,
        aspect=1.5,
        facet_kws={"sharex": False, "sharey": False},
    )
    for panel, axes in grid.axes_dict.items():
        for value in shown[(shown["panel"] == panel) & (shown["method"] == COUNTED)]["score"]:
            figures.threshold_line(axes, value)
    grid.set(xscale="log")
    for axes in grid.axes.flat:
        axes.xaxis.set_minor_formatter(NullFormatter())  # numbers of a short axis cover each other
    grid.set_axis_labels("evaluations", "held-out score")
    grid.set_titles("{col_name}")
    figures.legend_above(grid, 3)
    figures.save(grid, path)


@dataclass
class Arguments:
    """The command line."""

    table: Path = TABLE
    out: Path = FIGURE


def main() -> None:
    given = script.options(Arguments, __doc__)
    rows = Store(given.table, key=("task", "method", "seed")).read()
    if not rows:
        script.wrong(f"{given.table} has no rows; measure them with python -m experiments.objectives.run")
    figures.begin()
    draw(pd.DataFrame(rows), given.out)


if __name__ == "__main__":
    main()
