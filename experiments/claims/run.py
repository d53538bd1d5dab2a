"""Each claim about EGGROLL as a measurement beside what theory says of it, with their distance in standard errors.

    python -m experiments.claims.run                         # every part, the laptop's sizes: minutes on two cores
    python -m experiments.claims.run error-rank thin         # some parts
    python -m experiments.claims.run --full --again          # 16 times the repeats, larger sizes, more seeds
    python -m experiments.claims.run --table                 # only the table, from what was measured

Parts:
PARTS

Written for each part to experiments/claims/results/<part>.csv: a row for each measured quantity, with its settings,
`measured`, `standard_error`, `theory`, `basis` (of the theory: exact, or leading order; empty where there is none), `z`
(the distance between measured and theory in standard errors) and `repeats`; beside it a JSON (settings, commit,
versions, machine, seconds). A part that is there already is left out, so that what broke off goes on; a part measured
with other settings stops with a sentence, and --again measures it anew. A table in Markdown is printed at the end.
experiments/claims/figures.py draws the figures. Parts run in processes of their own, one on each core.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from experiments.claims.core import Effort
from experiments.claims.table import table
from experiments.lab import pool
from experiments.lab.record import About, Row, results, write_rows

PARTS = {  # name: module, function
    "error-rank": ("error", "error_rank"),
    "error-width": ("error", "error_width"),
    "update-rank": ("update", "update_rank"),
    "thin": ("error", "thin"),
    "antithetic": ("pairs", "antithetic"),
    "crn": ("worlds", "crn"),
    "spectrum": ("update", "spectrum"),
    "quadratic": ("quadratic", "quadratic"),
    "step": ("steps", "step"),
    "moons": ("moons", "moons"),
    "grid": ("grid", "grid"),
    "wrong-update": ("update", "wrong_update"),
}
RESULT = results("claims")
FULL = 16.0  # times the laptop's repeats
FRONT, BACK = ("part", "quantity"), ("measured", "standard_error", "theory", "basis", "z", "repeats")


def part(name: str) -> Callable[[Effort], list[Row]]:
    """A part's function: its module is imported when it runs."""
    module, function = PARTS[name]
    return getattr(import_module(f"experiments.claims.{module}"), function)


def tidy(name: str, rows: list[Row]) -> list[Row]:
    """The rows with one set of columns: the part and quantity, every setting of any row, and the numbers."""
    settings = dict.fromkeys(key for row in rows for key in row if key not in FRONT + BACK)
    return [{key: row.get(key, "") for key in (*FRONT, *settings, *BACK)} | {"part": name} for row in rows]


def measure(name: str, effort: Effort, folder: Path, again: bool) -> str | None:
    """Measures a part unless it is there, and returns why it could not be, or None."""
    csv, settings = folder / f"{name}.csv", {"part": name, **effort._asdict()}
    about = csv.with_suffix(".json")
    if again:
        csv.unlink(missing_ok=True)
    if not csv.exists():
        about.unlink(missing_ok=True)
    elif About(about, {}).values["recipe"] != settings:
        return f"{csv} was measured with other settings; --again measures anew"
    else:
        print(f"{name}: there already", file=sys.stderr, flush=True)
        return None
    note, begun = About(about, settings), time.perf_counter()
    try:
        rows = tidy(name, part(name)(effort))
    except Exception as error:
        traceback.print_exc()
        note.failed(name, f"{type(error).__name__}: {error}")
        return f"{type(error).__name__}: {error}"
    seconds = time.perf_counter() - begun
    note.values["seconds"] = round(seconds, 1)
    note.ran([name])
    write_rows(csv, rows)
    print(f"{name}: {len(rows)} rows, {seconds:.1f} s", file=sys.stderr, flush=True)
    return None


def summaries() -> str:
    """A line for each part, for --help, without importing what they need."""
    return "\n".join(f"    {name}" for name in PARTS)


def main() -> None:
    text = (__doc__ or "").replace("PARTS", summaries(), 1)
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="all unless given")
    parser.add_argument("--full", action="store_true", help=f"{FULL:g} times the repeats, larger sizes, 20 seeds")
    parser.add_argument("--effort", type=float, help="times the laptop's repeats: 1, or with --full 16, unless given")
    parser.add_argument("--seeds", type=int, help="of every learning run: 5, or with --full 20, unless given")
    parser.add_argument("--again", action="store_true", help="measure anew what is there already")
    parser.add_argument("--table", action="store_true", help="only print the table")
    parser.add_argument("--processes", type=int, help="parts at once: one for each core unless given")
    parser.add_argument("--here", action="store_true", help="in this process, one part after another")
    parser.add_argument("--quiet", action="store_true", help="without the table")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    unknown = [name for name in arguments.parts if name not in PARTS]
    if unknown:
        parser.error(f"{', '.join(unknown)}: no such part; there are {', '.join(PARTS)}")
    seeds, factor = (20, FULL) if arguments.full else (5, 1.0)
    seeds = seeds if arguments.seeds is None else arguments.seeds
    factor = factor if arguments.effort is None else arguments.effort
    if seeds < 2 or not factor > 0:
        parser.error("--seeds must be at least 2 and --effort above 0: a standard error needs repeats")
    chosen, failed = arguments.parts or list(PARTS), []
    effort = Effort(factor, arguments.full, seeds)
    with pool.stoppable(f"stopped; the parts that are done are in {arguments.out}, and the same command goes on"):
        if len(chosen) > 1 and not (arguments.table or arguments.here):
            failed = in_processes(chosen, effort, arguments)
        elif not arguments.table:
            for name in chosen:
                why = measure(name, effort, arguments.out, arguments.again)
                failed += [f"{name}: {why}"] if why else []
    if not arguments.quiet:
        print(table(arguments.out, chosen))
    if failed:
        sys.exit("failed: " + "; ".join(failed))


def in_processes(names: list[str], effort: Effort, arguments: argparse.Namespace) -> list[str]:
    """Measures parts in processes of their own, one on each core, and returns those that failed."""
    options = ["--effort", effort.factor, "--seeds", effort.seeds, "--out", arguments.out, "--quiet"]
    options += ["--full"] * effort.full + ["--again"] * arguments.again
    jobs = [pool.Job(name, ["python", "-m", "experiments.claims.run", name, *map(str, options)]) for name in names]
    failed: list[str] = []
    pool.run(jobs, arguments.processes, lambda job, status: failed.append(job.name) if status else None)
    return failed


if __name__ == "__main__":
    main()
