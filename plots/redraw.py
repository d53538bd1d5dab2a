"""Redraws every figure whose results are there: what `make figures` runs.

    python -m plots.redraw                     # all
    python -m plots.redraw compare sweep       # some, by their names in FIGURES

Each figure is drawn by a script beside its results, which runs here in a process of its own. Figures whose results are
not there are named and left out; whatever else goes wrong ends with an error, after the others were drawn. The two
figures that the front page shows are in plots/, all others in their question's results/.
"""

import subprocess
import sys
from dataclasses import dataclass
from typing import NamedTuple

from tyro.conf import Positional

from experiments import script
from experiments.lab.store import ROOT

STUDY = "experiments/study/results"


class Figure(NamedTuple):
    """A script of experiments/, a pattern of the results that it needs, and what it is given."""

    script: str
    needs: str
    words: tuple[str, ...] = ()


FIGURES = {
    "ablation": Figure("ablation.figures", "ablation/results/*.parquet"),
    "claims": Figure("claims.figures", "claims/results/*.csv"),
    "compare": Figure("study.curves", "study/results/compare/*/*.csv"),
    "exact": Figure("credit.exact", "credit/results/exact.csv", ("--table",)),
    "objectives": Figure("objectives.figures", "objectives/results/*.csv"),
    "study": Figure("study.figures", "study/results/study/statistics.csv"),
    "study_curves": Figure(
        "study.curves",
        "study/results/study/*/*.csv",
        ("--results", f"{STUDY}/study", "--out", f"{STUDY}/study_curves.png"),
    ),
    "sweep": Figure("sweep.figures", "sweep/results/*.parquet"),
    "scaling": Figure("scaling.wire", "scaling/results/wire.csv", ("--no-measure",)),
    "throughput": Figure("throughput.figures", "throughput/results/*-[fg]*.csv"),
}


@dataclass(frozen=True)
class Options:
    names: Positional[tuple[str, ...]] = ()  # of the figures; all unless given


def main() -> None:
    names = script.options(Options, __doc__).names
    unknown = [name for name in names if name not in FIGURES]
    if unknown:
        script.wrong(f"there is no figure {unknown[0]}, only {', '.join(FIGURES)}")
    failed, left = [], []
    for name in names or FIGURES:
        figure = FIGURES[name]
        if not any((ROOT / "experiments").glob(figure.needs)):
            left.append(name)
            continue
        command = ["-m", f"experiments.{figure.script}", *figure.words]
        print(" ".join(["python", *command]), flush=True)
        if subprocess.run([sys.executable, *command], cwd=ROOT).returncode:
            failed.append(" ".join(command))
    for name in left:
        print(f"{name} is left out: it has no results")
    if failed:
        sys.exit("failed: " + "; ".join(failed))


if __name__ == "__main__":
    main()
