"""What the agents reached, from the result files of experiments/study/compare.py, as a Markdown table.

    python -m experiments.study.recipe_headers                # every environment with results
    python -m experiments.study.recipe_headers brax/hopper
    python -m experiments.study.recipe_headers --headers      # also writes each measured recipe's header

"Return" is the last evaluation's held-out mean: interquartile mean over seeds with its 95 % bootstrap interval.
Steps and seconds to the threshold are those of the first evaluation at or above it, medians over seeds; a seed that
never gets there counts as infinitely late. Seconds are those of a run alone, compiling included.
"""

from __future__ import annotations

import argparse
import re
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from esrl.training import recipe as recipes
from experiments.lab.record import ROOT, plain
from experiments.lab.stats import AGENTS, COMPARE, about, final, interquartile_mean, interval, reaching, read, threshold

HEAD = ("environment", "agent", "seeds", "env steps", "return, IQM [95 %]", "lowest seed")
HEAD += ("threshold", "reached by", "steps to it", "seconds to it", "seconds", "compiling")
HEADER = re.compile(r"\A# \d{4}-\d\d-\d\d.*\n(?:(?:#.*\n)*?#.*again\.\n|(?:# .*\n)*)")


def count(x: float) -> str:
    """A number of steps: "2.06M"; a dash when there is none."""
    if not np.isfinite(x):
        return "–"
    return f"{x / 1e6:.3g}M" if x >= 1e5 else f"{x / 1e3:.3g}k" if x >= 1e3 else f"{x:.0f}"


def seconds(x: float) -> str:
    """Seconds, whole from 10 on; a dash when there are none."""
    return f"{x:.0f}" if 10 <= x < np.inf else f"{x:.1f}" if x < 10 else "–"


def number(x: float) -> str:
    """A return: one decimal below 1000."""
    return f"{x:.1f}" if abs(x) < 1000 else f"{x:.0f}"


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


def line(env: str, agent: str, m: dict[str, Any]) -> str:
    """One line of the table."""
    low, high = m["interval"]
    steps, at, seeds = m["reached"]
    cells = [f"`{env}`", AGENTS.get(agent, agent), len(m["seeds"]), count(m["steps"])]
    cells += [number(m["return"]) + (f" [{number(low)}, {number(high)}]" if np.isfinite(low) else "")]
    cells += [number(m["lowest"])]
    cells += ["–"] * 4 if m["aim"] is None else [f"{m['aim']:g}", f"{seeds} of {len(m['seeds'])}"]
    cells += [] if m["aim"] is None else [count(steps), seconds(at)]
    return "| " + " | ".join(map(str, [*cells, seconds(m["seconds"]), seconds(m["compiling"])])) + " |"


def header(m: dict[str, Any], measured: list[dict[str, Any]]) -> str:
    """What a recipe reached, as its first lines."""
    low, high = m["interval"]
    seeds = m["seeds"]
    text = f"{measured[-1]['date']}, commit {', '.join(dict.fromkeys(x['commit'] for x in measured))},"
    text += (
        f" seeds {seeds[0]} to {seeds[-1]}: held-out return" if len(seeds) > 1 else f" seed {seeds[0]}: held-out return"
    )
    text += f" {number(m['return'])} (interquartile mean),"
    text += f" 95 % bootstrap interval [{number(low)},\xa0{number(high)}]," if np.isfinite(low) else ""
    text += f" lowest seed {number(m['lowest'])}"
    if m["aim"] is not None:
        steps, _, reached = m["reached"]
        median = f", at {count(steps)} steps (median)" if np.isfinite(steps) else ""
        text += f"; {m['aim']:g} reached by {reached} of {len(seeds)} seeds{median}"
    machine = measured[-1]["machine"]
    cores = f"{machine['cores']} core" + "s" * (machine["cores"] > 1)
    device = machine["device"].replace(" x ", "\xa0x\xa0")
    text += f"; {seconds(m['seconds'])} s a run on {cores} ({machine['processor']}, {device}), compiling included."
    text += " python -m experiments.study.compare measures it again."
    filled = textwrap.fill(text, 120, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
    return filled.replace("\xa0", " ") + "\n"


def write_header(folder: Path, recipe: dict[str, Any], text: str) -> str:
    """Replaces a recipe's header, if it is the recipe that was measured; returns what was done.

    The header is the first comment if that begins with a date, up to "again." or a bare "#"; other comments stay.
    """
    path = folder / recipe["env"].partition("?")[0] / f"{recipe['agent']}.toml"
    if not path.exists():
        return f"{path} is gone"
    own = {"evaluations", "evaluate_episodes", "checkpoint_every"}  # the comparison's
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("envs", nargs="*")
    parser.add_argument("--headers", action="store_true", help="write the recipes' headers")
    parser.add_argument("--results", type=Path, default=COMPARE)
    parser.add_argument("--recipes", type=Path, default=ROOT / "agents")
    arguments = parser.parse_args()
    notes = []
    print("| " + " | ".join(HEAD) + " |\n" + "|---" * len(HEAD) + "|")
    for (env, agent), rows in read(arguments.results, arguments.envs).groupby(["env", "agent"], sort=False):
        found, m = about(arguments.results, env, agent), measures(rows)
        print(line(env, agent, m))
        notes += [f"{env}, {agent}, seed {seed} failed: {error}" for seed, error in found["failed"].items()]
        if arguments.headers and found["measured"]:
            notes.append(write_header(arguments.recipes, found["recipe"], header(m, found["measured"])))
    if notes:
        print("\n" + "\n".join(notes))


if __name__ == "__main__":
    main()
