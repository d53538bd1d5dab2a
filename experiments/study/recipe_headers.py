"""What the agents reached, from the result files of experiments/study/compare.py, as a Markdown table.

    python -m experiments.study.recipe_headers                # every environment with results
    python -m experiments.study.recipe_headers brax/hopper
    python -m experiments.study.recipe_headers --headers      # also writes each measured recipe's header

"Return" is the last evaluation's held-out mean: interquartile mean over seeds with its 95 % bootstrap interval.
Steps and seconds to the threshold are those of the first evaluation at or above it, medians over seeds; a seed that
never gets there counts as infinitely late. Seconds are those of a run alone, compiling included.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tyro

from esrl.training import recipe as recipes
from experiments import script
from experiments.lab.stats import AGENTS, COMPARE, about, final, interquartile_mean, interval, reaching, read, threshold
from experiments.lab.store import ROOT, plain
from experiments.lab.words import bounded, comment, count, machine_words, measured_words, number, seconds

HEAD: tuple[str, ...] = ("environment", "agent", "seeds", "env steps", "return, IQM [95 %]", "lowest seed")
HEAD += ("threshold", "reached by", "steps to it", "seconds to it", "seconds", "compiling")
HEADER = re.compile(r"\A# \d{4}-\d\d-\d\d.*\n(?:(?:#.*\n)*?#.*again\.\n|(?:# .*\n)*)")


def measures(rows: pd.DataFrame) -> dict[str, Any]:
    """An agent's numbers in one environment."""
    last, aim = final(rows), threshold(rows["env"].iloc[0])
    reached: tuple[float, float, int] = (np.inf, np.inf, 0)
    if aim is not None:
        reached = (reaching(rows, aim, "env_steps")[0], *reaching(rows, aim, "seconds"))
    return {
        "seeds": sorted(last["seed"]),
        "steps": last["env_steps"].median(),
        "return": interquartile_mean(last["return_mean"]),
        "interval": interval(last["return_mean"]),
        "lowest": last["return_mean"].min(),
        "aim": aim,
        "reached": reached,
        "seconds": last["seconds"].median(),
        "compiling": rows["seconds_compile"].max(),
    }


def cells(env: str, agent: str, m: dict[str, Any]) -> list[Any]:
    """One line of the table."""
    steps, at, seeds = m["reached"]
    there = [f"`{env}`", AGENTS.get(agent, agent), len(m["seeds"]), count(m["steps"])]
    there += [bounded(m["return"], m["interval"]), number(m["lowest"])]
    there += ["–"] * 4 if m["aim"] is None else [f"{m['aim']:g}", f"{seeds} of {len(m['seeds'])}"]
    there += [] if m["aim"] is None else [count(steps), seconds(at)]
    return [*there, seconds(m["seconds"]), seconds(m["compiling"])]


def line(env: str, agent: str, m: dict[str, Any]) -> str:
    """One line of the table, in Markdown."""
    return "| " + " | ".join(map(str, cells(env, agent, m))) + " |"


def header(m: dict[str, Any], measured: list[dict[str, Any]]) -> str:
    """What a recipe reached, as its first lines."""
    text = measured_words(measured, m["seeds"], m["return"], m["interval"], m["lowest"])
    if m["aim"] is not None:
        steps, _, reached = m["reached"]
        median = f", at {count(steps)} steps (median)" if np.isfinite(steps) else ""
        text += f"; {m['aim']:g} reached by {reached} of {len(m['seeds'])} seeds{median}"
    text += f"; {seconds(m['seconds'])} s a run on {machine_words(measured)}, compiling included."
    return comment(f"{text} python -m experiments.study.compare measures it again.")


def write_header(folder: Path, recipe: dict[str, Any], text: str) -> str:
    """Replaces a recipe's header, if it is the recipe that was measured; returns what was done.

    The header is the first comment if that begins with a date, up to "again." or a bare "#"; other comments stay.
    """
    path = folder / recipe["env"].partition("?")[0] / f"{recipe['agent']}.toml"
    if not path.exists():
        return f"{path} is gone"
    own = {"num_evals", "eval_episodes", "checkpoint_every"}  # the comparison's
    if "seconds" in recipe:
        own |= {"seconds", "env_steps", "generations"}
    now = plain(recipes.read(path))
    if any(now.get(k) != recipe.get(k) for k in (now.keys() | recipe.keys()) - own):
        return f"{path} is not what was measured; its header stays"
    old = path.read_text()
    rest = HEADER.sub("", old, count=1)
    apart = "#\n" if rest.startswith("# ") else ""
    path.write_text(text + apart + rest)
    return f"{path}: header written"


@dataclass
class Arguments:
    """The command line."""

    envs: tyro.conf.Positional[tuple[str, ...]] = ()  # all with results unless given
    headers: bool = False  # write the recipes' headers
    results: Path = COMPARE
    recipes: Path = ROOT / "agents"


def main() -> None:
    arguments = script.options(Arguments, __doc__)
    lines, notes = [], []
    for (env, agent), rows in read(arguments.results, arguments.envs).groupby(["env", "agent"], sort=False):
        found, m = about(arguments.results, env, agent), measures(rows)
        lines.append(cells(env, agent, m))
        notes += [f"{env}, {agent}, seed {seed} failed: {error}" for seed, error in found["failed"].items()]
        if arguments.headers and found["measured"]:
            notes.append(write_header(arguments.recipes, found["recipe"], header(m, found["measured"])))
    print(script.table(HEAD, lines))
    if notes:
        print("\n" + "\n".join(notes))


if __name__ == "__main__":
    main()
