"""Learning curves from the result files of experiments/seeds.py: each seed's held-out return, and their median.

python plots/curves.py                    # every file in experiments/results/seeds, as plots/curves.png
python plots/curves.py brax-hopper-eggroll --out plots/hopper_curve.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "experiments" / "results" / "seeds"


def draw(axes, result: dict) -> None:
    """One environment: thin lines are seeds, the thick one their median at equal environment steps."""
    curves = [np.array([[0, run["start_return"], 0], *run["curve"]], float) for run in result["runs"]]
    last = min(curve[-1, 0] for curve in curves)
    steps = np.linspace(0, last, 100)
    together = np.array([np.interp(steps, curve[:, 0], curve[:, 1]) for curve in curves])
    for curve in curves:
        axes.plot(curve[:, 0], curve[:, 1], color="#9aa7b8", lw=0.8)
    axes.plot(steps, np.median(together, axis=0), color="#d1495b", lw=2)
    axes.set_title(
        f"{result['recipe']['env']}\n{result['recipe'].get('agent', 'eggroll')}, {len(curves)} seeds", fontsize=9
    )
    axes.set_xlabel("environment steps")
    axes.set_ylabel("held-out return")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--out", type=Path, default=ROOT / "plots" / "curves.png")
    arguments = parser.parse_args()
    names = arguments.names or sorted(path.stem for path in RESULTS.glob("*.json"))
    results = [json.loads((RESULTS / f"{name}.json").read_text()) for name in names]
    columns = min(3, len(results))
    rows = -(-len(results) // columns)
    figure = Figure(figsize=(1.2 + 3.6 * columns, 0.4 + 2.9 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, result in zip(grid, results, strict=False):
        draw(axes, result)
    for axes in grid[len(results) :]:
        axes.set_visible(False)
    figure.savefig(arguments.out, dpi=110)


if __name__ == "__main__":
    main()
