"""Final runs of study/tune.py: the best configuration on fresh seeds, and the recipe that is written from them.

Started by it as `python -m experiments.study.finals JSON`, a process for each seed.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from esrl.training import recipe as recipes
from experiments.lab import pool
from experiments.lab.budget import Budget, train
from experiments.lab.record import About, Row, plain, read_rows, write_rows
from experiments.lab.stats import interquartile_mean, interval
from experiments.study import trials
from experiments.study.recipe_headers import count, number


def best(found: list[FrozenTrial]) -> FrozenTrial | None:
    """The complete trial with the highest return; of equals the one with the best mean of evaluations.

    None when no complete trial has a finite return.
    """
    good = [t for t in found if t.state == TrialState.COMPLETE and t.value is not None and math.isfinite(t.value)]
    return max(
        good, key=lambda t: (t.value, np.mean([*t.intermediate_values.values(), t.value]), -t.number), default=None
    )


def recipe_of(settings: dict[str, Any], trial: FrozenTrial) -> recipes.Recipe:
    """A trial's configuration as a recipe, without a budget."""
    chosen = trial.user_attrs["configuration"]
    return recipes.Recipe(env=settings["env"], agent=settings["agent"], **chosen)


def fitting(csv: Path, recipe: dict[str, Any]) -> list[Row]:
    """The rows of a CSV if they are of this recipe and budget; otherwise none, and the files are set aside as *.old."""
    about = csv.with_suffix(".json")
    if not about.exists() or About(about, {}).values["recipe"] != recipe:
        for path in (csv, about):
            if path.exists():
                os.replace(path, path.with_suffix(path.suffix + ".old"))
    return read_rows(csv)


def missing(csv: Path, recipe: dict[str, Any], seeds: int) -> list[int]:
    """The fresh seeds that a CSV does not have yet for this recipe and budget."""
    first = trials.FIRST_FINAL_SEED
    return sorted(set(range(first, first + seeds)) - {int(row["seed"]) for row in fitting(csv, recipe)})


def run(csv: Path, about: dict[str, Any], seed: int) -> None:
    """Trains one seed in this process and adds its rows to the CSV; what fails is noted in the JSON beside it."""
    fields = {k: v for k, v in about.items() if k != "final"}
    recipe, error = recipes.Recipe(**fields), None
    rows: list[Row] = []
    with trials.locked(csv.with_suffix(".claim")):  # a kill before the first seed's end leaves a CSV with its JSON
        About(csv.with_suffix(".json"), about).keep()
    try:
        limits = {k: v for k, v in about["final"].items() if v is not None}
        for row, _ in train(recipe.build(), Budget(**limits), seed):
            pool.report(row["used"], f"return {row['return_mean']:.1f}")
            rows.append({"env": recipe.env, "agent": recipe.agent, **row})
    except BrokenPipeError:
        raise
    except Exception as failure:
        error = f"{type(failure).__name__}: {failure}"
    with trials.locked(csv.with_suffix(".claim")):  # other seeds' processes write there too
        note = About(csv.with_suffix(".json"), about)
        if error:
            note.failed(seed, error)
            sys.exit(f"seed {seed} failed: {error}")
        there = read_rows(csv)
        if all(int(row["seed"]) != seed for row in there):
            write_rows(csv, sorted([*there, *rows], key=lambda row: int(row["seed"])))
        note.ran([seed])


def scores(csv: Path) -> dict[str, Any] | None:
    """What the final runs reached: `seeds`, `returns`, `iqm`, `interval`, `lowest`, `steps`, `seconds`, or None."""
    last: dict[int, Row] = {}
    for row in read_rows(csv):
        if float(row["used"]) >= 1:
            last[int(row["seed"])] = row
    if not last:
        return None
    returns = [float(row["return_mean"]) for row in last.values()]
    return {
        "seeds": sorted(last),
        "returns": returns,
        "iqm": float(interquartile_mean(returns)),
        "interval": interval(returns),
        "lowest": min(returns),
        "steps": float(np.median([float(row["env_steps"]) for row in last.values()])),
        "seconds": float(np.median([float(row["seconds"]) for row in last.values()])),
    }


def budget_words(seconds: float | None, env_steps: float | None) -> str:
    """A budget as words: "10 s of training"."""
    parts = [f"{seconds:g} s of training"] if seconds else []
    return " and at most ".join(parts + ([f"{count(env_steps)} env steps"] if env_steps else []))


def header(settings: dict[str, Any], found: list[FrozenTrial], s: dict[str, Any], about: dict[str, Any]) -> str:
    """The comment that a recipe begins with."""
    low, high = s["interval"]
    measured = about["measured"]
    commits = ", ".join(dict.fromkeys(entry["commit"] for entry in measured))
    seeds = f"seeds {s['seeds'][0]} to {s['seeds'][-1]}" if len(s["seeds"]) > 1 else f"seed {s['seeds'][0]}"
    text = (
        f"{measured[-1]['date']}, commit {commits}, {seeds}: held-out return {number(s['iqm'])} (interquartile mean),"
    )
    text += f" 95 % bootstrap interval [{number(low)},\xa0{number(high)}]," if math.isfinite(low) else ""
    machine = measured[-1]["machine"]
    cores = f"{machine['cores']} core" + "s" * (machine["cores"] > 1)
    text += (
        f" lowest seed {number(s['lowest'])}; {count(s['steps'])} env steps and {s['seconds']:.3g} s of training a run"
    )
    text += f" (medians), compiling and scoring not counted, on {cores} ({machine['processor']}, {machine['device']})."
    pruned, failed = (sum(t.state == state for t in found) for state in (TrialState.PRUNED, TrialState.FAIL))
    chosen = best(found)
    assert chosen is not None and chosen.value is not None
    text += (
        f" Chosen by {len(found)} trials of {budget_words(settings['seconds'], settings['env_steps'])} (one seed each;"
    )
    text += (
        f" sampler {settings['sampler']}, space {settings['space_name']}), {pruned} of them pruned and {failed} failed:"
    )
    text += f" trial {chosen.user_attrs['slot'] + 1}, {number(chosen.value)} in the worlds that it was tuned in."
    text += f" {command(settings, len(found), about['recipe']['final'])} measures it again."
    filled = textwrap.fill(text, 120, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
    return filled.replace("\xa0", " ") + "\n"


def command(settings: dict[str, Any], count: int, final: dict[str, Any]) -> str:
    """What tunes it with the same trials and budgets."""
    words = {"trials": count, "seconds": settings["seconds"], "env-steps": settings["env_steps"]}
    words |= {"sampler": settings["sampler"], "space": settings["space_name"]}
    words |= {f"final-{name}": final[name] for name in ("seconds", "env_steps")}
    given = " ".join(f"--{k.replace('_', '-')} {v}" for k, v in words.items() if v is not None)
    return f"python -m experiments.study.tune {settings['env']} --agents {settings['agent']} {given}"


def write_recipe(folder: Path, settings: dict[str, Any], found: list[FrozenTrial], csv: Path) -> Path | None:
    """Writes <folder>/<environment>/<agent>.toml from the best trial and its final runs; None when there are none."""
    chosen, reached = best(found), scores(csv)
    if chosen is None or reached is None:
        return None
    about = json.loads(csv.with_suffix(".json").read_text())
    steps = about["recipe"]["final"]["env_steps"] or float(f"{reached['steps']:.1e}")
    recipe = dataclasses.replace(recipe_of(settings, chosen), env_steps=float(steps))
    path = folder / settings["env"].partition("?")[0] / f"{settings['agent']}.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".toml.part")
    part.write_text(header(settings, found, reached, about) + _toml(recipe))
    os.replace(part, path)
    return path


def _toml(recipe: recipes.Recipe) -> str:
    """A recipe's text, each value on one line: JSON's texts, numbers, truths and lists are TOML's too."""
    fields = plain(recipe)
    tables = [{k: fields[k] for k in ("env", "agent", "env_steps")}, fields["policy"], fields["options"]]
    texts = ["".join(f"{k} = {json.dumps(v)}\n" for k, v in table.items()) for table in tables]
    return texts[0] + "".join(
        f"\n[{n}]\n{text}" for n, text in zip(("policy", "options"), texts[1:], strict=True) if text
    )


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    try:
        run(Path(given["csv"]), given["about"], given["seed"])
    except KeyboardInterrupt:
        sys.exit(130)
