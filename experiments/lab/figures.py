"""What the figures share."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib
import seaborn as sns

from experiments.lab.stats import AGENTS


def begin() -> None:
    """Draws to files, in the style of all figures."""
    matplotlib.use("Agg")
    sns.set_theme(context="paper", style="whitegrid", rc={"grid.color": "0.9"})


def colors(agents: Iterable[str]) -> dict[str, Any]:
    """A color for each agent, the same in every figure."""
    names = [*AGENTS, *sorted(set(agents) - AGENTS.keys())]
    return dict(zip(names, sns.color_palette("colorblind", len(names)), strict=True))


def threshold_line(axes: Any, value: float | None) -> None:
    """A dashed line at the return at which an environment counts as solved, if there is one."""
    if value is not None:
        axes.axhline(value, color="0.3", lw=0.8, ls="--", zorder=1)


def legend_above(grid: Any, columns: int) -> None:
    """Moves a seaborn grid's legend above its panels."""
    sns.move_legend(grid, "lower center", bbox_to_anchor=(0.5, 1.0), ncol=columns, title=None)
    grid.figure.tight_layout()


def save(figure: Any, path: Path, **options: Any) -> None:
    """Writes a figure (of matplotlib, or a seaborn grid) whole or not at all: a kill leaves the old picture."""
    temporary = path.with_name(f"{path.stem}.part{path.suffix}")
    figure.savefig(temporary, **{"dpi": 110, **options})
    os.replace(temporary, path)
