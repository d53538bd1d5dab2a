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

import sys
import time
import traceback
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from tyro.conf import Positional

from experiments import script
from experiments.claims.estimator import Effort
from experiments.claims.table import table
from experiments.lab import pool
from experiments.lab.store import Store, results

PARTS = {  # name: the module of its function, which is the name with "_"
    "error-rank": "error",
    "error-width": "error",
    "update-rank": "update",
    "thin": "error",
    "antithetic": "error",
    "crn": "error",
    "spectrum": "update",
    "quadratic": "learning",
    "step": "learning",
    "moons": "learning",
    "grid": "learning",
    "wrong-update": "update",
}
RESULTS = results("claims")


@dataclass(frozen=True)
class Options:
    parts: Positional[tuple[str, ...]] = ()  # all unless given
    full: bool = False  # 16 times the repeats, larger sizes, 20 seeds
    effort: float | None = None  # times the laptop's repeats: 1, or with --full 16, unless given
    seeds: int | None = None  # of every learning run: 5, or with --full 20, unless given
    again: bool = False  # measure anew what is there already
    table: bool = False  # only print the table
    processes: int | None = None  # parts at once: one for each core unless given
    here: bool = False  # in this process, one part after another
    quiet: bool = False  # without the table
    out: Path = RESULTS


def measure(name: str, effort: Effort, folder: Path, again: bool) -> str:
    """Measures a part unless it is there, and returns why it could not be, or nothing."""
    store, begun = Store(folder / f"{name}.csv", ("part",), {"part": name, **effort._asdict()}), time.perf_counter()
    if again:
        store.forget()
    if not store.fits():
        return f"{store.path} was measured with other settings; --again measures anew"
    store.merge()
    if not store.missing([name]):
        print(f"{name}: there already", file=sys.stderr, flush=True)
        return ""
    try:
        module = import_module(f"experiments.claims.{PARTS[name]}")  # only now: a module takes seconds to import
        rows = [{"part": name, **row} for row in getattr(module, name.replace("-", "_"))(effort)]
    except Exception as error:
        traceback.print_exc()
        store.failed([name], f"{type(error).__name__}: {error}")
        return f"{type(error).__name__}: {error}"
    seconds = time.perf_counter() - begun
    store.add(rows, about={"seconds": round(seconds, 1)})
    print(f"{name}: {len(rows)} rows, {seconds:.1f} s", file=sys.stderr, flush=True)
    return ""


def in_processes(names: list[str], effort: Effort, given: Options) -> list[str]:
    """Measures parts in processes of their own, one on each core, and returns those that failed."""
    options = ["--effort", effort.factor, "--seeds", effort.seeds, "--out", given.out, "--quiet"]
    options += ["--full"] * effort.full + ["--again"] * given.again
    jobs = [pool.Job(name, ["python", "-m", "experiments.claims.run", name, *map(str, options)]) for name in names]
    failed: list[str] = []
    pool.run(jobs, given.processes, lambda job, status: failed.append(job.name) if status else None)
    return failed


def main() -> None:
    given = script.options(Options, (__doc__ or "").replace("PARTS", "\n".join(f"    {name}" for name in PARTS), 1))
    unknown = [name for name in given.parts if name not in PARTS]
    if unknown:
        script.wrong(f"{', '.join(unknown)}: no such part; there are {', '.join(PARTS)}")
    seeds, factor = (20, 16.0) if given.full else (5, 1.0)
    seeds = seeds if given.seeds is None else given.seeds
    factor = factor if given.effort is None else given.effort
    if seeds < 2 or not factor > 0:
        script.wrong("--seeds must be at least 2 and --effort above 0: a standard error needs repeats")
    names, failed = list(given.parts or PARTS), []
    effort = Effort(factor, given.full, seeds)
    with pool.stoppable(f"stopped; the parts that are done are in {given.out}, and the same command goes on"):
        if len(names) > 1 and not (given.table or given.here):
            failed = in_processes(names, effort, given)
        elif not given.table:
            why = {name: measure(name, effort, given.out, given.again) for name in names}
            failed = [f"{name}: {text}" for name, text in why.items() if text]
    if not given.quiet:
        print(table(given.out, names))
    if failed:
        sys.exit("failed: " + "; ".join(failed))


if __name__ == "__main__":
    main()
