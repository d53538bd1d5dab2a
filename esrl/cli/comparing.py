"""The command that trains agents with several seeds, and says what each reaches."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import signal
import sys
from pathlib import Path
from typing import Any

from esrl.algorithms.agent import Agent
from esrl.cli.output import plain_name, tell
from esrl.cli.plotting import write_curves
from esrl.core.errors import EsrlError, notice
from esrl.core.options import Names
from esrl.core.statistics import interquartile_mean, interval
from esrl.core.tables import Rows, aligned
from esrl.training.curves import curve
from esrl.training.files import replace_bytes, writing
from esrl.training.logs import Row, finite
from esrl.training.loop import Run, finish
from esrl.training.progress import Progress
from esrl.training.recipe import Recipe
from esrl.training.run_folder import RunFolder, at
from esrl.training.status import FINISHED, read_status
from esrl.training.stopping import Stopped

_COLUMNS = (
    "agent", "seed", "generation", "env_steps", "seconds", "seconds_training", "seconds_compile", "eval_return_mean",
    "eval_return_std",
)  # fmt: skip


def compare(
    recipes: list[Recipe],
    *,
    agents: Names = Names(("eggroll", "ppo")),  # noqa: B008
    seeds: int = 5,
    out: str | None = None,
    json: bool = False,
) -> int:
    """Train agents on an environment with several seeds, and compare what they reach.

    The flags of train apply: those of the run, the environment and the network to every agent, those of an agent to
    each that has them. Runs that are finished stay, one that was stopped goes on. Written to the folder: a run for each
    agent and seed, compare.png, and evaluations.csv.

    Args:
      agents: agents to compare, as eggroll ppo.
      seeds: runs of each agent, with seeds from --seed on.
      out: folder for the runs. Without it: runs/compare-ENV.
      json: end with one JSON object on standard output.
    """
    first = recipes[0]
    if not first.env:
        raise EsrlError("say what to train on: an environment as brax/hopper, or a recipe file")
    if seeds < 1 or first.seed + seeds > 2**32:
        raise EsrlError(f"--seeds is {seeds}, but must be at least 1, and the last seed below 2^32")
    if not first.num_evals:
        raise EsrlError("--num-evals is 0, but agents are compared by held-out returns; give at least 1")
    folder = at(out or f"runs/compare-{plain_name(first.env)}")
    stream = sys.stderr if json else sys.stdout
    todo = [dataclasses.replace(recipe, seed=first.seed + n) for n in range(seeds) for recipe in recipes]
    built: dict[str, Agent] = {}
    for number, recipe in enumerate(todo, 1):
        print(f"[{number}/{len(todo)}] {recipe.agent}, seed {recipe.seed}", file=stream, flush=True)
        try:
            if recipe.agent not in built:
                built[recipe.agent] = recipe.build()
            train_on(recipe, built[recipe.agent], path_of(folder, recipe), stream)
        except KeyboardInterrupt as error:
            print(f"stopped; the same command goes on with {folder}", file=stream)
            return 128 + (error.signum if isinstance(error, Stopped) else signal.SIGINT)
    found = {agent: [rows_of(folder, r) for r in todo if r.agent == agent] for agent in built}
    table = summary(found)
    write_csv(folder / "evaluations.csv", todo, folder)
    said = f"{folder}: evaluations.csv"
    try:
        curves = {agent: [curve(rows) for rows in runs] for agent, runs in found.items()}
        write_curves({first.env: curves}, folder / "compare.png", "env_steps")
        said += ", compare.png"
    except EsrlError as error:
        notice(f"no picture: {error}")
    return tell(
        {"out": str(folder), "env": first.env, "agents": [finite(row) for row in table]},
        f"\n{aligned(table)}\n{said}",
        json,
    )


def path_of(folder: Path, recipe: Recipe) -> Path:
    """The folder of a comparison's run."""
    return folder / f"{recipe.agent}-seed{recipe.seed}"


def train_on(recipe: Recipe, agent: Agent, path: Path, stream: Any) -> None:
    """Makes a run, goes on with it, or leaves it where it is finished."""
    begun = (path / "recipe.toml").is_file()
    run = recipe.run(agent, path, resume=begun)
    if begun and is_finished(run):
        assert run.folder is not None
        run.folder.release()
        print("is finished already", file=stream, flush=True)
    else:
        finish(run, Progress(stream))


def is_finished(run: Run) -> bool:
    """Whether a run's folder has its end: the last row, and the state that belongs to it."""
    assert run.folder is not None
    last = run.folder.last_row()
    if not last or max(run.folder.checkpoints.generations(), default=0) != last["generation"]:
        return False
    score, spent = last.get("eval_return_mean"), last.get("seconds_training") or 0.0
    reached = run.stop_at_return is not None and score is not None and score >= run.stop_at_return
    timed = run.minutes is not None and read_status(run.folder.path).get("state") == FINISHED
    return reached or timed or run.budget.used(last.get("env_steps") or 0, last["generation"], spent) >= 1


def rows_of(folder: Path, recipe: Recipe) -> list[Row]:
    """The rows of a run that are kept."""
    return RunFolder(path_of(folder, recipe)).rows()


def summary(found: dict[str, list[list[Row]]]) -> Rows:
    """A table of what each agent reached: a row for each, over its seeds."""
    rows = Rows()
    for agent, runs in found.items():
        last = [each[-1] for each in runs]
        ends = [float(line.mean[-1]) if line.x.size else math.nan for line in map(curve, runs)]
        low, high = interval(ends)
        rows.append(
            {
                "agent": agent,
                "seeds": len(runs),
                "final return (IQM)": float(interquartile_mean(ends)),
                "95 % interval": (float(low), float(high)) if len(ends) > 1 else None,
                "env steps": round(sum(row.get("env_steps") or 0 for row in last) / len(last)),
                "seconds of training": sum(row.get("seconds_training") or 0.0 for row in last) / len(last),
                "seconds": sum(row.get("seconds") or 0.0 for row in last) / len(last),
            }
        )
    return rows


def write_csv(path: Path, recipes: list[Recipe], folder: Path) -> None:
    """A row for each run and evaluation, that of the start as generation 0."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for recipe in recipes:
        named = {"agent": recipe.agent, "seed": recipe.seed}
        for row in rows_of(folder, recipe):
            if "start_return_mean" in row:
                start = {name.replace("start_", "eval_"): row[name] for name in row if name.startswith("start_")}
                writer.writerow({**named, **start, "generation": 0, "env_steps": 0})
            if "eval_return_mean" in row:
                writer.writerow({**row, **named})
    with writing(path):
        replace_bytes(path, text.getvalue().encode())
