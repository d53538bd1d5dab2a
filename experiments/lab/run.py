"""Many runs of training, grouped into cells: what sweep/ and ablation/ measure with, and the tables they write.

A run is a recipe and a seed. Runs whose recipes differ in nothing but seeds and values that are traced rather than
compiled in (sigma, learning rate; of PPO gamma and others) make a cell: one compiled program in a process of its own.
Where Python steps the environment, every run is a cell. A cell's rows are written when it ends, as a file of their own
in a folder beside the table; they are merged into the table, and the folder goes, when all have ended or when the
experiment is started again. So a kill costs the cells that were under way, and no run is there twice.

A table's rows, one for each run and evaluation, the start included: env, agent, the experiment's own columns, seed,
generation, env_steps, episodes (finished so far; null for PPO in a shared program), seconds and seconds_compile (since
the cell's beginning, for all of its runs together, compiling and earlier evaluations included), runs_together (how many
runs those seconds are of), return_mean, return_std (held-out, of the unperturbed parameters), recipe (JSON), settings
(its hash, with the seed a run's identity), base (the hash of the recipe that the experiment varies), commit, versions,
machine, date.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import esrl
from esrl.algorithms.ppo_options import TRACED
from experiments.lab import pool
from experiments.lab.record import Row, machine, plain, versions, write_table
from experiments.lab.tables import alone, identity, merge, parts

# Processes on one accelerator take its memory as they need it.
SHARED_DEVICE = {"XLA_PYTHON_CLIENT_PREALLOCATE": os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE", "false")}


class Run(NamedTuple):
    """A run to measure.

    Attributes:
      recipe: its budget is `env_steps`; its seed is of no account.
      seed: of everything random.
      columns: the experiment's own columns in its rows.
    """

    recipe: esrl.Recipe
    seed: int
    columns: Row

    @property
    def settings(self) -> str:
        """The hash of everything that decides the run, apart from its seed."""
        return digest(plain(self.recipe))


class Plan(NamedTuple):
    """What a table is to hold.

    Attributes:
      table: the Parquet file.
      base: the recipe that the runs vary.
      runs: all runs that are wanted.
      host: whether Python steps the environment.
      tidy: brings the table's rows into shape before they are written.
    """

    table: Path
    base: esrl.Recipe
    runs: list[Run]
    host: bool
    tidy: Callable[[list[Row]], list[Row]] = list


def digest(values: Any) -> str:
    """A short hash of what JSON can hold."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def structure(recipe: esrl.Recipe) -> str:
    """A name of what is compiled in: the same for recipes that differ only in traced values."""
    traced = TRACED if recipe.agent == "ppo" else ("sigma", "learning_rate")
    options = {name: value for name, value in recipe.options.items() if name not in traced}
    named = [recipe.agent] + [f"{name}-{options[name]}" for name in ("rank", "population") if name in options]
    return "-".join([*named, digest(plain(dataclasses.replace(recipe, options=options)))])


def stepped_by_python(base: esrl.Recipe) -> bool:
    """Whether Python steps the environment of a recipe, which is built here, and with that checked.

    It is built on the CPU: an accelerator is for the cells' processes.
    """
    import jax

    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_platforms", "cpu")
    return base.build().pure is None


def missing(plan: Plan, again: bool = False) -> list[Run]:
    """The runs of a plan that its table does not have, each once.

    Args:
      again: take the wanted runs, and those of another base, out of the table first.
    """
    rows, wanted = merge(plan.table, plan.tidy), {}
    for run in plan.runs:
        wanted.setdefault((run.settings, run.seed), run)
    base = digest(plain(plan.base))
    of_agents = {run.recipe.agent for run in plan.runs}
    other = [row for row in rows if row["agent"] in of_agents and row["base"] != base]
    if again:
        kept = [r for r in rows if identity(r) not in wanted and not (r["agent"] in of_agents and r["base"] != base)]
        if kept:
            write_table(plan.table, kept)
        else:
            plan.table.unlink(missing_ok=True)
        rows = kept
    elif other:
        sys.exit(
            f"{plan.table} was measured with another recipe, budget or evaluations; --again measures anew, and"
            " --out DIR keeps both"
        )
    done = {identity(row) for row in rows}
    return [run for key, run in wanted.items() if key not in done]


def measure(plans: Sequence[Plan], processes: int | None = None, again: bool = False) -> list[str]:
    """Measures what tables miss, a process for each cell, `processes` at a time; returns a sentence for each failure.

    Ctrl-C ends it with what is done kept.
    """
    failed: list[str] = []
    with contextlib.ExitStack() as held:
        for plan in plans:
            held.enter_context(alone(plan.table))
        jobs = [job for plan in plans for job in _jobs(plan, missing(plan, again))]

        def finished(job: pool.Job, status: int) -> None:
            if status:
                error = Path(job.command[-1]).with_suffix(".error")
                said = error.read_text() if error.exists() else f"its process ended with status {status}"
                error.unlink(missing_ok=True)
                failed.append(f"{job.name}: {said}")

        try:
            if jobs:
                pool.run(jobs, processes, finished)
        finally:
            for plan in plans:
                merge(plan.table, plan.tidy)
                for file in parts(plan.table).glob("*.json"):
                    file.unlink()
    return failed


def _jobs(plan: Plan, runs: list[Run]) -> list[pool.Job]:
    """A job for each cell of these runs, its runs in a JSON that the job reads."""
    cells: dict[str, list[Run]] = {}
    for run in runs:
        name = structure(run.recipe)
        cells.setdefault(f"{name}-{run.settings}-{run.seed}" if plan.host else name, []).append(run)
    jobs = []
    for name, members in cells.items():
        file = parts(plan.table) / f"{name}.json"
        file.with_suffix(".error").unlink(missing_ok=True)
        content = [{"recipe": plain(run.recipe), "seed": run.seed, "columns": run.columns} for run in members]
        file.write_text(json.dumps({"base": digest(plain(plan.base)), "runs": content}))
        shown = f"{plan.base.env} {name.rpartition('-')[0]} ({len(members)})"
        jobs.append(pool.Job(shown, ("python", "-m", "experiments.lab.run", str(file)), SHARED_DEVICE))
    return jobs


def rows_of(runs: Sequence[Run]) -> list[Row]:
    """Trains the runs of one cell and returns their rows, but for the columns that say where they come from."""
    recipe = runs[0].recipe
    agent = recipe.build()
    if agent.pure is None:
        return [row for run in runs for row in _host(agent, run)]
    values = {name: [run.recipe.options[name] for run in runs] for name in agent.pure.values}
    many = esrl.train_many(
        agent,
        [run.seed for run in runs],
        hyper={name: given for name, given in values.items() if len(set(given)) > 1},
        env_steps=recipe.env_steps,
        evaluations=recipe.evaluations,
        evaluate_episodes=recipe.evaluate_episodes,
        progress=lambda used: pool.report(used, f"{len(runs)} runs"),
    )
    rows = []
    for row in many.rows:
        run = runs[row["run"]]
        counts = {"generation": row["generation"], "env_steps": row["env_steps"]}
        counts["episodes"] = None if recipe.agent == "ppo" else row["generation"] * agent.plan.lanes
        times = {"seconds": row["seconds"], "seconds_compile": row["seconds_compile"], "runs_together": len(runs)}
        scores = {"return_mean": row["eval_return_mean"], "return_std": row["eval_return_std"]}
        rows.append({**_common(run), **counts, **times, **scores, **_source(run)})
    return rows


def _host(agent: esrl.Agent, run: Run) -> Iterator[Row]:
    """The rows of one run that Python steps."""
    from experiments.lab import budget

    recipe = run.recipe
    limit = budget.Budget(
        env_steps=recipe.env_steps or 1, evaluations=recipe.evaluations, episodes=recipe.evaluate_episodes
    )
    for row, _ in budget.train(agent, limit, run.seed):
        counts = {name: row[name] for name in ("generation", "env_steps", "episodes")}
        seconds = round(row["seconds"] + row["seconds_compile"] + row["seconds_evaluate"], 3)
        times = {"seconds": seconds, "seconds_compile": row["seconds_compile"], "runs_together": 1}
        pool.report(row["used"], f"return {row['return_mean']:.4g}")
        scores = {name: row[name] for name in ("return_mean", "return_std")}
        yield {**_common(run), **counts, **times, **scores, **_source(run)}


def _common(run: Run) -> Row:
    recipe = run.recipe
    return {"env": recipe.env, "agent": recipe.agent, **run.columns, "seed": run.seed}


def _source(run: Run) -> Row:
    return {"recipe": json.dumps(plain(run.recipe), sort_keys=True), "settings": run.settings}


def main() -> None:
    """One cell: reads its JSON, and writes its rows, or what went wrong, beside it."""
    file = Path(sys.argv[1])
    job = json.loads(file.read_text())
    try:
        rows = rows_of([Run(esrl.Recipe(**run["recipe"]), run["seed"], run["columns"]) for run in job["runs"]])
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # whoever started this process is gone
        raise
    except Exception as error:
        file.with_suffix(".error").write_text(f"{type(error).__name__}: {error}")
        traceback.print_exc()
        sys.exit(1)
    now = versions()
    origin = {"base": job["base"], "commit": now["commit"], "versions": json.dumps(now["versions"])}
    origin |= {"machine": json.dumps(machine()), "date": str(datetime.date.today())}
    write_table(file.with_suffix(".parquet"), [row | origin for row in rows])


if __name__ == "__main__":
    main()
