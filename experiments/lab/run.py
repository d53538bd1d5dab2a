"""Training runs, measured into a table (lab/store.py): what study, sweep and ablation measure with.

A run is a recipe and a seed. A cell is what one process measures. It is either `SHARED`: runs that differ in nothing
but seeds and values that are traced rather than compiled in (sigma, learning rate; of PPO gamma and others), in one
compiled program; where Python steps the environment, a run by itself. Or it is `TIMED`: runs one after the other, each
under a budget that may be of seconds. Rows are kept as soon as their runs have ended, so that a kill costs the runs
under way, and no run is there twice.

A row is an evaluation of a run, the start included: env, agent, the experiment's own columns, seed, generation,
env_steps, return_mean and return_std (held-out, of the unperturbed parameters). Rows of `TIMED` runs have what
lab/budget.py says, with seconds of training alone. Rows of `SHARED` runs have episodes (finished so far; none for PPO
in a shared program), seconds and seconds_compile (since the cell's beginning, for all of its runs together, compiling
and earlier evaluations included), runs_together (how many runs those seconds are of), settings (the hash of the recipe,
with the seed a run's identity; the JSON has the recipes) and base (the hash of the recipe that the experiment varies).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

import esrl
from esrl.algorithms.ppo_agent import HYPERPARAMS
from esrl.envs.base import on_device
from esrl.training.suite_defaults import ES
from experiments.lab import budget, pool
from experiments.lab.store import Row, Store, digest, folder_name, named, plain, written

RANDOM = "random"  # the agent of a recipe that is the random policy
SHARED, TIMED = "shared", "timed"
# Processes on one accelerator take its memory as they need it.
SHARED_DEVICE = {"XLA_PYTHON_CLIENT_PREALLOCATE": os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE", "false")}


class Run(NamedTuple):
    """A run to measure.

    Attributes:
      recipe: its seed is of no account; of a `SHARED` run its `env_steps` is the budget.
      seed: of everything random.
      columns: the experiment's own columns in its rows.
    """

    recipe: esrl.Recipe
    seed: int
    columns: Row = {}  # noqa: RUF012

    @property
    def settings(self) -> str:
        """The hash of everything that decides the run, apart from its seed."""
        return digest(plain(self.recipe))


class Cell(NamedTuple):
    """Runs that one process measures.

    Attributes:
      name: in the view, and of its failures.
      store: the table.
      runs: all of one compiled program if they are `SHARED`.
      kind: how they are run.
      limits: the budget of each `TIMED` run, as lab/budget.py's `Budget` has it; of others further columns.
    """

    name: str
    store: Store
    runs: Sequence[Run]
    kind: str
    limits: dict[str, Any]


class Plan(NamedTuple):
    """What the table of a sweep or an ablation is to hold; its key is ("settings", "seed").

    Attributes:
      store: the table.
      base: the recipe that the runs vary.
      runs: all runs that are wanted.
      host: whether Python steps the environment: then every run is a cell.
      tidy: brings rows into shape, given the recipes by their hashes.
    """

    store: Store
    base: esrl.Recipe
    runs: list[Run]
    host: bool
    tidy: Callable[[list[Row], dict[str, Any]], list[Row]] | None = None


def table(path: Path) -> Store:
    """The table of a sweep or an ablation."""
    return Store(path, key=("settings", "seed"))


def read_all(folder: Path, envs: Sequence[str] = ()) -> list[pd.DataFrame]:
    """The tables of sweeps or ablations of these environments, or all of a folder; leaves with a sentence for none."""
    there = {path.stem for suffix in (".csv", ".parquet") for path in folder.glob(f"*{suffix}")}
    names = [folder_name(env) for env in envs] or sorted(there)
    frames = [pd.DataFrame(rows) for name in names if (rows := table(folder / f"{name}.csv").read())]
    if not frames:
        sys.exit(f"{folder} has no results{' of ' + ', '.join(envs) if envs else ''}")
    return frames


# ---- any cells


def measure_cells(
    cells: Sequence[Cell],
    processes: int | None = None,
    environment: dict[str, str] | None = None,
    ray_address: str | None = None,
) -> list[str]:
    """Measures cells, a process for each, `processes` at a time, and returns a sentence for each that failed.

    They run here, or on the nodes of a Ray cluster (`lab/remote.py`).

    Whoever calls this holds the tables. Ctrl-C ends it with what is done kept.
    """
    failed: list[str] = []
    jobs, by_file = [], {}
    for cell in cells:
        file = cell.store.parts / f"{digest([cell.name, [(run.settings, run.seed) for run in cell.runs]])}.job"
        runs = [{"recipe": plain(run.recipe), "seed": run.seed, "columns": run.columns} for run in cell.runs]
        store = {"path": str(cell.store.path), "key": cell.store.key, "settings": cell.store.settings}
        content = {"store": store, "name": cell.name, "runs": runs, "kind": cell.kind, "limits": cell.limits}
        written(file, json.dumps(content))
        seeds = ", ".join(str(run.seed) for run in cell.runs)
        shown = (
            f"{cell.name} ({len(runs)})" if cell.kind == SHARED else f"{cell.name}, seed{'s'[len(runs) < 2 :]} {seeds}"
        )
        jobs.append(pool.Job(shown, ("python", "-m", "experiments.lab.run", str(file)), environment or {}))
        by_file[str(file)] = cell

    def finished(job: pool.Job, status: int) -> None:
        failed.extend(failures(by_file[job.command[-1]], status))

    if jobs:
        pool.run(jobs, processes, finished, ray_address)
    return failed


def failures(cell: Cell, status: int = 1) -> list[str]:
    """A sentence for each run that a cell was to measure and has not, or for a `SHARED` cell; noted in the JSON."""
    cell.store.merge()
    absent = cell.store.missing(key_of(cell, run) for run in cell.runs)
    errors = cell.store.about()["failed"]
    quiet = [key for key in absent if named(key) not in errors]
    if quiet:
        cell.store.failed(quiet, f"its process ended with status {status}")
        errors = cell.store.about()["failed"]
    if cell.kind == SHARED:
        return [f"{cell.name}: {error}" for error in dict.fromkeys(errors[named(key)] for key in absent)]
    lost = [run for run in cell.runs if key_of(cell, run) in absent]
    return [f"{cell.name}, seed {run.seed}: {errors[named(key_of(cell, run))]}" for run in lost]


def key_of(cell: Cell, run: Run) -> Any:
    """A run's key in its table."""
    return run.seed if cell.store.key == ("seed",) else (run.settings, run.seed)


def work(cell: Cell, report: Callable[[float, str], None] = pool.report) -> bool:
    """Measures a cell in this process and keeps what it found; what fails is noted. Returns whether nothing did."""
    groups = [list(cell.runs)] if cell.kind == SHARED else [[run] for run in cell.runs]
    agents: dict[str, esrl.Agent] = {}  # compiled once for all seeds
    well = True
    for runs in groups:
        try:
            if cell.kind == SHARED:
                rows = rows_of(runs, cell.limits)
            else:
                name = runs[0].settings
                agents = agents if name in agents else {name: runs[0].recipe.build()}
                rows = timed_rows(agents[name], runs[0], budget.Budget(**cell.limits), report)
            recipes = {run.settings: plain(run.recipe) for run in runs} if "settings" in rows[0] else None
            cell.store.add(rows, recipes)
        except BrokenPipeError:  # whoever started this process is gone
            raise
        except Exception as error:
            traceback.print_exc()
            well = False
            cell.store.failed([key_of(cell, run) for run in runs], f"{type(error).__name__}: {error}")
    return well


def timed_rows(
    agent: esrl.Agent, run: Run, limits: budget.Budget, report: Callable[[float, str], None] = pool.report
) -> list[Row]:
    """The rows of a run by itself; of the random policy the start alone."""
    rows = []
    for row in budget.train(agent, limits, run.seed):
        rows.append({"env": run.recipe.env, "agent": run.recipe.agent, **run.columns, **row})
        if run.recipe.agent == RANDOM:
            break
        report(row["used"], f"{row['return_mean']:.4g} at {row['env_steps']:,} steps")
    first, last = rows[0], rows[-1]
    print(
        f"  seed {run.seed}: return {first['return_mean']:.1f} -> {last['return_mean']:.1f} +- {last['return_std']:.1f}"
        f", {last['env_steps']:,} steps, {last['seconds']:.1f} s, {last['seconds_compile']:.1f} s compiling",
        flush=True,
    )
    return rows


# ---- the cells of sweeps and ablations


def structure(recipe: esrl.Recipe) -> str:
    """A name of what is compiled in: the same for recipes that differ only in traced values."""
    traced = ("sigma", "learning_rate") if recipe.agent in ES else HYPERPARAMS
    options = {name: value for name, value in recipe.options.items() if name not in traced}
    shown = [recipe.agent] + [f"{name}-{options[name]}" for name in ("rank", "population") if name in options]
    return "-".join([*shown, digest(plain(dataclasses.replace(recipe, options=options)))])


def stepped_by_python(base: esrl.Recipe) -> bool:
    """Whether Python steps the environment of a recipe, which is built here, and with that checked.

    It is built on the CPU: an accelerator is for the cells' processes.
    """
    import jax

    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_platforms", "cpu")
    return not on_device(base.build().env)


def missing(plan: Plan, again: bool = False) -> list[Run]:
    """The runs of a plan that its table does not have, each once.

    Args:
      again: take the wanted runs, and those of another base, out of the table first.
    """
    wanted: dict[Any, Run] = {}
    for run in plan.runs:
        wanted.setdefault((run.settings, run.seed), run)
    agents, base = {run.recipe.agent for run in plan.runs}, digest(plain(plan.base))

    def other(row: Row) -> bool:
        return row["agent"] in agents and row["base"] != base

    if again:
        plan.store.drop(lambda row: plan.store.of(row) in wanted or other(row))
    elif any(map(other, plan.store.read())):
        sys.exit(
            f"{plan.store.path} was measured with another recipe, budget or evaluations; --again measures anew, and"
            " --out DIR keeps both"
        )
    return [wanted[key] for key in plan.store.missing(wanted)]


def measure(
    plans: Sequence[Plan], processes: int | None = None, again: bool = False, ray_address: str | None = None
) -> list[str]:
    """Measures what tables miss, a process for each cell; returns a sentence for each failure."""
    with contextlib.ExitStack() as held:
        for plan in plans:
            held.enter_context(plan.store.alone())
        cells = [cell for plan in plans for cell in cells_of(plan, missing(plan, again))]
        try:
            return measure_cells(cells, processes, SHARED_DEVICE, ray_address)
        finally:
            for plan in plans:
                plan.store.merge()
                rows, recipes = plan.store.read(), plan.store.about().get("recipes", {})
                tidied = plan.tidy(rows, recipes) if plan.tidy and rows else rows
                if tidied != rows:
                    plan.store.write(tidied)


def cells_of(plan: Plan, runs: list[Run]) -> list[Cell]:
    """The cells of these runs, by what is compiled in."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        name = structure(run.recipe)
        found.setdefault(f"{name}-{run.settings}-{run.seed}" if plan.host else name, []).append(run)
    base = {"base": digest(plain(plan.base))}
    shown = [f"{plan.base.env} {structure(own[0].recipe).rpartition('-')[0]}" for own in found.values()]
    return [Cell(name, plan.store, own, SHARED, base) for name, own in zip(shown, found.values(), strict=True)]


def rows_of(runs: Sequence[Run], further: Row | None = None) -> list[Row]:
    """Trains the runs of one `SHARED` cell and returns their rows, with further columns."""
    recipe = runs[0].recipe
    agent = recipe.build()
    if not on_device(agent.env):
        return [{**row, **(further or {})} for run in runs for row in _host_rows(agent, run)]
    values = {name: [run.recipe.options[name] for run in runs] for name in agent.hyperparams}
    many = esrl.train_many(
        agent,
        [run.seed for run in runs],
        hyperparams={name: given for name, given in values.items() if len(set(given)) > 1},
        env_steps=recipe.env_steps,
        num_evals=recipe.num_evals,
        eval_episodes=recipe.eval_episodes,
        progress=lambda used: pool.report(used, f"{len(runs)} runs"),
    )
    rows = []
    for row in many.rows:
        run, counts = runs[row["run"]], {name: row[name] for name in ("generation", "env_steps")}
        counts["episodes"] = row["generation"] * agent.plan.lanes if recipe.agent in ES else None
        times = {"seconds": row["seconds"], "seconds_compile": row["seconds_compile"], "runs_together": len(runs)}
        scores = {"return_mean": row["eval_return_mean"], "return_std": row["eval_return_std"]}
        rows.append(_row(run, {**counts, **times, **scores}) | (further or {}))
    return rows


def _host_rows(agent: esrl.Agent, run: Run) -> Iterator[Row]:
    """The rows of one run that Python steps, as those of a shared program."""
    recipe = run.recipe
    limits = budget.Budget(recipe.env_steps or 1, evaluations=recipe.num_evals, episodes=recipe.eval_episodes)
    for row in budget.train(agent, limits, run.seed):
        pool.report(row["used"], f"return {row['return_mean']:.4g}")
        counts = {name: row[name] for name in ("generation", "env_steps", "episodes")}
        seconds = round(row["seconds"] + row["seconds_compile"] + row["seconds_evaluate"], 3)
        times = {"seconds": seconds, "seconds_compile": row["seconds_compile"], "runs_together": 1}
        yield _row(run, {**counts, **times, "return_mean": row["return_mean"], "return_std": row["return_std"]})


def _row(run: Run, measured: Row) -> Row:
    """A row of a `SHARED` run with what tells it apart."""
    common = {"env": run.recipe.env, "agent": run.recipe.agent, **run.columns, "seed": run.seed}
    return {**common, **measured, "settings": run.settings}


def main() -> None:
    """One cell, from the file of its job."""
    job = json.loads(Path(sys.argv[1]).read_text())
    runs = [Run(esrl.Recipe(**run["recipe"]), run["seed"], run["columns"]) for run in job["runs"]]
    store = Store(Path(job["store"]["path"]), job["store"]["key"], job["store"]["settings"])
    try:
        well = work(Cell(job["name"], store, runs, job["kind"], job["limits"]))
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
