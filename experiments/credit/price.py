"""The price of no gradient, where the study tuned: `eggroll_ac`'s chosen configurations with the actor backpropagated.

    python -m experiments.credit.price                # whatever runs are missing, and the table
    python -m experiments.credit.price --table        # the table alone
    python -m experiments.credit.price brax/hopper    # of this environment

The control is the same configuration with `gradient="backprop"`: the actor's gradient comes from a backward pass, and
nothing else is changed. It was not tuned for the control, which can cost the control something. Both have the study's
seeds, seconds of training, evaluations and held-out worlds; the runs of `eggroll_ac` are the study's.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import tyro

from esrl.training import recipe as recipes
from experiments import script
from experiments.lab.curves import better, cell
from experiments.lab.stats import final, read
from experiments.lab.store import ROOT, folder_name, results, written
from experiments.study import run as study
from experiments.study.analysis import STUDY, returns_at
from experiments.study.finals import recipe_text

RECIPES, OUT = ROOT / "agents" / "study", results("credit") / "price"
AGENT = "eggroll_ac"


@dataclass
class Arguments:
    """The command line."""

    envs: tyro.conf.Positional[tuple[str, ...]] = ()  # all of the study unless given
    processes: int = 2  # at once, each on its own cores
    table: bool = False  # run nothing
    recipes: Path = RECIPES
    study: Path = STUDY
    out: Path = OUT


def control(path: Path) -> recipes.Recipe | None:
    """A tuned recipe with the actor's gradient by a backward pass; None where noise is on weights, which has none."""
    recipe = recipes.read(path)
    if recipe.options.get("noise_space", "aligned") != "aligned":
        return None
    return dataclasses.replace(recipe, options={**recipe.options, "gradient": "backprop"})


def commands(arguments: Arguments, folder: Path) -> list[list[str]]:
    """What measures the controls whose recipes this writes to a folder."""
    found = []
    for env in arguments.envs or study.SECONDS:
        path = arguments.recipes / env / f"{AGENT}.toml"
        recipe = control(path) if path.exists() else None
        if recipe is None:
            print(f"{env}: no recipe of {AGENT} with aligned noise in {arguments.recipes}; it is left out")
            continue
        written(folder / env / f"{AGENT}.toml", recipe_text(recipe))
        words = ["--agents", AGENT, "--no-random", "--recipes", str(folder), "--out", str(arguments.out)]
        words += ["--seconds", str(study.SECONDS[env][1]), "--seeds", str(study.SEEDS), "--first-seed", "1000"]
        words += ["--evaluations", "8", "--early", "3", "--processes", str(arguments.processes)]
        found.append(["experiments.study.compare", env, *words])
    return found


def table(arguments: Arguments) -> str:
    """Returns of both after equal steps and equal seconds, and how many steps each made in them."""
    head = ["environment", "equal steps", AGENT, "control", f"{AGENT} is better"]
    lines = [script.table([*head, "equal seconds", AGENT, "control", "steps for the control's 1"])]
    for env in arguments.envs or study.SECONDS:
        if not all((place / folder_name(env) / f"{AGENT}.csv").exists() for place in (arguments.study, arguments.out)):
            continue
        ours = read(arguments.study, [env])
        ours, theirs = ours[ours["agent"] == AGENT], read(arguments.out, [env]).assign(agent="control")
        both = pd.concat([ours, theirs], ignore_index=True)
        (equal, where), (end, _) = returns_at(both, "steps"), returns_at(both, "end")
        beats = better(equal[AGENT].to_numpy(), equal["control"].to_numpy())
        steps = final(ours)["env_steps"].median() / final(theirs)["env_steps"].median()
        shown = [cell(found[name].to_numpy()) for found in (equal, end) for name in (AGENT, "control")]
        seconds = f"{np.median(final(ours)['seconds_training']):.0f}"
        lines.append(
            script.line([env, f"{where:.3g}", *shown[:2], f"{beats:.2f}", seconds, *shown[2:], f"{steps:.2f}"])
        )
    return "\n".join(lines)


def main() -> None:
    arguments = script.options(Arguments, __doc__)
    unknown = [env for env in arguments.envs if env not in study.SECONDS]
    if unknown:
        script.wrong(f"{unknown[0]} is not in the study, whose environments are {', '.join(study.SECONDS)}")
    failed = []
    if not arguments.table:
        with tempfile.TemporaryDirectory() as folder:
            for words in commands(arguments, Path(folder)):
                if subprocess.run([sys.executable, "-m", *words], cwd=ROOT).returncode:
                    failed.append(words[1])
    print(table(arguments))
    if failed:
        sys.exit(f"failed on {', '.join(failed)}; the same command goes on")


if __name__ == "__main__":
    main()
