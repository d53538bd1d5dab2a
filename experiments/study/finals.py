"""Final runs of study/tune.py: the best configuration on fresh seeds, and the recipe that is written from them."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from esrl.training import recipe as recipes
from experiments.lab.run import TIMED, Cell, Run
from experiments.lab.stats import interquartile_mean, interval
from experiments.lab.store import Row, Store, plain, read_rows, written
from experiments.lab.words import comment, count, machine_words, measured_words, number
from experiments.study.trials import FIRST_FINAL_SEED


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


def ready(store: Store, recipe: recipes.Recipe, final: dict[str, Any]) -> None:
    """Makes a table that of a recipe's final runs under a budget; what is there of another is set aside as *.old."""
    store.settings = json.loads(json.dumps({**plain(recipe), "final": final}))
    if not store.fits() or (store.path.exists() and not store.path.with_suffix(".json").exists()):
        store.set_aside()
    store.merge()


def cells(name: str, store: Store, recipe: recipes.Recipe, final: dict[str, Any], seeds: int) -> list[Cell]:
    """A cell for each fresh seed that a table does not have yet."""
    absent = store.missing(range(FIRST_FINAL_SEED, FIRST_FINAL_SEED + seeds))
    limits = {name: value for name, value in final.items() if value is not None}
    return [Cell(name, store, [Run(recipe, seed)], TIMED, limits) for seed in absent]


def scores(csv: Path) -> dict[str, Any] | None:
    """What the final runs reached: `seeds`, `iqm`, `interval`, `lowest`, `steps`, `seconds`, or None."""
    last: dict[int, Row] = {}
    for row in read_rows(csv):
        if float(row["used"]) >= 1:
            last[int(row["seed"])] = row
    if not last:
        return None
    returns = [float(row["return_mean"]) for row in last.values()]
    return {
        "seeds": sorted(last),
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
    pruned, failed = (sum(t.state == state for t in found) for state in (TrialState.PRUNED, TrialState.FAIL))
    chosen = best(found)
    assert chosen is not None and chosen.value is not None
    return comment(
        f"{measured_words(about['measured'], s['seeds'], s['iqm'], s['interval'], s['lowest'])};"
        f" {count(s['steps'])} env steps and {s['seconds']:.3g} s of training a run (medians), compiling and scoring"
        f" not counted, on {machine_words(about['measured'])}."
        f" Chosen by {len(found)} trials of {budget_words(settings['seconds'], settings['env_steps'])} (one seed each;"
        f" sampler {settings['sampler']}, space {settings['space_name']}), {pruned} of them pruned and {failed} failed:"
        f" trial {chosen.user_attrs['slot'] + 1}, {number(chosen.value)} in the worlds that it was tuned in."
        f" {command(settings, len(found), about['recipe']['final'])} measures it again."
    )


def command(settings: dict[str, Any], trials: int, final: dict[str, Any]) -> str:
    """What tunes it with the same trials and budgets."""
    words = {"trials": trials, "seconds": settings["seconds"], "env-steps": settings["env_steps"]}
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
    written(path, header(settings, found, reached, about) + recipe_text(recipe))
    return path


def recipe_text(recipe: recipes.Recipe) -> str:
    """A recipe's text, each value on one line: JSON's texts, numbers, truths and lists are TOML's too."""
    fields = plain(recipe)
    tables = [{k: fields[k] for k in ("env", "agent", "env_steps")}, fields["policy"], fields["options"]]
    texts = ["".join(f"{k} = {json.dumps(v)}\n" for k, v in table.items()) for table in tables]
    return texts[0] + "".join(
        f"\n[{n}]\n{text}" for n, text in zip(("policy", "options"), texts[1:], strict=True) if text
    )
