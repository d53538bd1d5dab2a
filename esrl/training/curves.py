"""Learning curves: of one run, and of runs that differ by their seeds joined into one line. Needs no JAX."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from esrl.core.errors import EsrlError, nearest
from esrl.core.extras import import_extra
from esrl.core.statistics import interquartile_mean, interval
from esrl.training.logs import Row

AXES = {  # what a curve is over: the metric, and what is written below it
    "env_steps": ("env_steps", "environment steps"),
    "seconds": ("seconds_training", "seconds of training"),
    "generations": ("generation", "generations"),
}
POINTS = 100  # of a joined line whose runs were scored at different places
POPULATION, HELD_OUT = "#9aa7b8", "#d1495b"
MOST = 1000  # rows without a score that are kept of a run


class Curve(NamedTuple):
    """The held-out scores of one run: places `x`, means, and standard deviations over episodes (or NaN); each [n]."""

    x: np.ndarray
    mean: np.ndarray
    std: np.ndarray


class Joined(NamedTuple):
    """Runs as one line: places, interquartile mean, the ends of its interval (NaN for one run), and how many runs."""

    x: np.ndarray
    middle: np.ndarray
    low: np.ndarray
    high: np.ndarray
    runs: int


class Kept:
    """The rows of a run that are kept in memory: the first, those with a score, and about a thousand others."""

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self._first: Row | None = None
        self._last: Row | None = None
        self._every, self._limit = 1, MOST

    def add(self, row: Row) -> None:
        """Takes a generation's row."""
        self._first, self._last = self._first or row, row
        if self._wanted(row):
            self._rows.append(row)
        if len(self._rows) > self._limit:
            self._every *= 2
            self._rows = [row for row in self._rows if self._wanted(row)]
            self._limit = max(MOST, 2 * len(self._rows))

    def _wanted(self, row: Row) -> bool:
        return row is self._first or "eval_return_mean" in row or row["generation"] % self._every == 0

    def rows(self) -> list[Row]:
        """What is kept, the last row too."""
        last = [] if self._last is None or self._last in self._rows[-1:] else [self._last]
        return [*self._rows, *last]


def curve(rows: Sequence[Row], x: str = "env_steps") -> Curve:
    """The held-out scores in a run's rows, the one before the first generation too.

    Args:
      rows: of a run. x: what they are over, one of AXES.

    Example:
      >>> first = {"generation": 1, "env_steps": 10, "start_return_mean": 1.0, "eval_return_mean": 3.0}
      >>> curve([first]).x.tolist(), curve([first]).mean.tolist()
      ([0.0, 10.0], [1.0, 3.0])
    """
    axis, found = AXES[axis_named(x)][0], []
    for row in rows:
        for at, name in ((0.0, "start"), (row.get(axis), "eval")):
            mean, std = row.get(f"{name}_return_mean"), row.get(f"{name}_return_std")
            if mean is not None and at is not None and math.isfinite(mean):
                found.append((at, mean, math.nan if std is None else std))
    places, means, stds = zip(*sorted(found), strict=True) if found else ((), (), ())
    return Curve(*(np.asarray(part, float) for part in (places, means, stds)))


def axis_named(x: str) -> str:
    """A name of AXES.

    Raises:
      EsrlError: there is none of that name.
    """
    if x not in AXES:
        raise EsrlError(f"x is {x!r}, but must be {', '.join(AXES)}{nearest(x, AXES)}")
    return x


def joined(curves: Sequence[Curve], points: int = POINTS) -> Joined:
    """Curves of several seeds as one, where all of them have values; linear in between.

    Example:
      >>> one, other = ([0, 10], [0.0, 1.0], [0.0, 0.0]), ([0, 10], [0.0, 3.0], [0.0, 0.0])
      >>> joined([Curve(*map(np.array, one)), Curve(*map(np.array, other))]).middle.tolist()
      [0.0, 2.0]
    """
    first, last = max(each.x[0] for each in curves), min(each.x[-1] for each in curves)
    same = all(np.array_equal(each.x, curves[0].x) for each in curves)
    grid = curves[0].x if same else np.linspace(first, last, points) if first < last else np.array([last])
    values = np.stack([np.interp(grid, each.x, each.mean) for each in curves], axis=1)
    low, high = interval(values)
    return Joined(grid, interquartile_mean(values), low, high, len(curves))


# ---- drawing --------------------------------------------------------------------------------------------------------


def new_axes(ax: Any = None) -> Any:
    """The given axes, or those of a new figure of pyplot, which a notebook shows.

    Raises:
      EsrlError: matplotlib is not installed.
    """
    if ax is not None:
        return ax
    return import_extra("matplotlib.pyplot", "logs", "a plot").subplots(figsize=(7, 4), layout="constrained")[1]


def draw_run(ax: Any, rows: Sequence[Row], title: str, x: str = "env_steps") -> None:
    """Draws a run: returns of the population, and of the unperturbed parameters with their spread over episodes."""
    axis, below = AXES[axis_named(x)]
    trained = [(row[axis], row["return_mean"]) for row in rows if None not in (row.get(axis), row.get("return_mean"))]
    if trained:
        ax.plot(*zip(*trained, strict=True), color=POPULATION, lw=1, label="population mean")
    scores = curve(rows, x)
    if scores.x.size:
        ax.fill_between(scores.x, scores.mean - scores.std, scores.mean + scores.std, color=HELD_OUT, alpha=0.15, lw=0)
        ax.plot(scores.x, scores.mean, color=HELD_OUT, lw=2, marker="o", ms=3, label="unperturbed, held-out")
    _finish(ax, below, title)


def draw_groups(ax: Any, groups: Mapping[str, Sequence[Curve]], title: str | None = None, x: str = "env_steps") -> None:
    """Draws a line for each group of runs, the interquartile mean, with the 95 % interval around it."""
    for label, curves in groups.items():
        scored = [each for each in curves if each.x.size]  # not one with returns that are not finite throughout
        if not scored:
            continue
        line = joined(scored)
        named = f"{label} ({line.runs} runs)" if line.runs > 1 else label
        (drawn,) = ax.plot(
            line.x, line.middle, lw=2, label=_literal(named), marker="o" if line.x.size < 3 else None, ms=3
        )
        if line.runs > 1:
            ax.fill_between(line.x, line.low, line.high, color=drawn.get_color(), alpha=0.18, lw=0)
    _finish(ax, AXES[axis_named(x)][1], title, "held-out return")


def _finish(ax: Any, below: str, title: str | None, beside: str = "return") -> None:
    ax.set(xlabel=below, ylabel=beside)
    if title is not None:
        ax.set_title(_literal(title))
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False)
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)


def _literal(text: str) -> str:
    """A text that matplotlib does not take for a formula."""
    return text.replace("$", r"\$")


def figure(draw: Callable[[Any], None], panels: int = 1) -> Any:
    """A figure that belongs to no window, with a number of panels that `draw` gets: axes, or a list of them.

    Raises:
      EsrlError: matplotlib is not installed.
    """
    agg = import_extra("matplotlib.backends.backend_agg", "logs", "a plot")
    columns = min(panels, 3)
    rows = math.ceil(panels / columns)
    size = (7, 4) if panels == 1 else (5 * columns, 3.5 * rows)
    made = import_extra("matplotlib.figure", "logs", "a plot").Figure(figsize=size, layout="constrained")
    agg.FigureCanvasAgg(made)
    each = [made.add_subplot(rows, columns, n + 1) for n in range(panels)]
    draw(each[0] if panels == 1 else each)
    return made


def inline(draw: Callable[[Any], None]) -> str:
    """A figure as an HTML picture with everything in it; empty where matplotlib is not installed."""
    data = io.BytesIO()
    try:
        figure(draw).savefig(data, dpi=90, format="png")
    except EsrlError:
        return ""
    return f'<img alt="learning curve" src="data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}">'
