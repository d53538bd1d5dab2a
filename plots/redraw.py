"""Redraws every figure whose results are there: what `make figures` runs.

    python plots/redraw.py                     # all
    python plots/redraw.py compare sweep       # some, by the names of their scripts

Each figure has a script of its own in plots/, which runs here in a process without arguments. Scripts whose results
are not there are named and left out; whatever else goes wrong ends with an error, after the others were drawn. The
curves of experiments/results/study are drawn by plots/compare.py as plots/study_curves.png.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "experiments" / "results"
NEEDS = {  # a pattern under experiments/results of what a script draws; a script that is not here says so itself
    "ablation": "ablation/*.parquet",
    "claims": "claims/*.csv",
    "compare": "compare/*/*.csv",
    "growth": "throughput/*-growth.csv",
    "study": "study/statistics.csv",
    "sweep": "sweep/*.*",
    "throughput": "throughput/*-forward.csv",
}
MORE = {"compare": (("study/*/*.csv", ["--results", RESULTS / "study", "--out", HERE / "study_curves.png"]),)}


def drawings(names: list[str]) -> tuple[list[list[str]], list[str]]:
    """Commands whose results are there, and the scripts that are left out."""
    found, left = [], []
    for path in sorted(HERE.glob("*.py")):
        if path.name == Path(__file__).name or (names and path.stem not in names):
            continue
        there = any(RESULTS.glob(NEEDS[path.stem])) if path.stem in NEEDS else True
        (found if there else left).append([str(path)] if there else path.stem)
        found += [[str(path), *map(str, words)] for need, words in MORE.get(path.stem, ()) if any(RESULTS.glob(need))]
    return found, left


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="of scripts in plots/")
    arguments = parser.parse_args()
    for name in arguments.names:
        if not (HERE / f"{name}.py").exists():
            parser.error(f"there is no plots/{name}.py")
    commands, left = drawings(arguments.names)
    failed = []
    for command in commands:
        print(" ".join(["python", *command]), flush=True)
        if subprocess.run([sys.executable, *command]).returncode:
            failed.append(" ".join(command))
    for name in left:
        print(f"plots/{name}.py is left out: it has no results")
    if failed:
        sys.exit("failed: " + "; ".join(failed))


if __name__ == "__main__":
    main()
