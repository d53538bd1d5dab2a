"""esrl's EGGROLL beside the paper's, both as fractions of PPO's return, where the paper had as many steps or more.

    python -m experiments.paper.steps                # prints Markdown, and writes results/paper_steps.csv

Ours are the runs with the most steps: the study's finals (results/study, five fresh seeds), those of the repository's
own recipes (results/compare), or longer ones of the study's recipes (results/long):

    python -m experiments.study.compare ENV --recipes agents/study --env-steps 5e7 --out experiments/study/results/long

The paper's EGGROLL is read off its figures at 1e8 environment steps, or at the first reading beyond ours. It gives
returns as fractions of its PPO's after 5e8 steps and does not say what becomes of negative ones. Ours are given
twice: as the plain ratio x / reference, like the paper's (where returns are negative, and for that alone, as the
other), and as (x - random) / (reference - random), with the random policy's return in the same worlds. The reference
is the return of a perfect agent where the rules say one (experiments/references.toml), or else that of the best PPO
measured here in any of these folders, with far fewer steps than the paper's. A perfect agent makes our fraction
smaller than the paper's way of counting does.
"""

from __future__ import annotations

import argparse
import math
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from experiments.lab.record import ROOT, Row, folder_name, results, write_rows
from experiments.lab.stats import final, interquartile_mean, interval
from experiments.paper.recipes import configurations
from experiments.paper.table import COUNTS, cell
from experiments.study.analysis import maximum

FOLDERS = ("study", "long", "compare")
DATA = ROOT / "experiments" / "paper" / "rl.toml"


class Runs(NamedTuple):
    """Final returns of an agent's seeds in an environment, and their median number of environment steps."""

    returns: list[float]
    env_steps: float


def read(folder: Path, env: str, agent: str) -> Runs | None:
    """The finals of one CSV; None without one."""
    path = folder / folder_name(env) / f"{agent}.csv"
    if not path.exists():
        return None
    last = final(pd.read_csv(path))
    return Runs(
        [float(x) for x in last["return_mean"]], float(last["env_steps"].median()) if "env_steps" in last else 0
    )


def longest(folders: list[Path], env: str) -> Runs | None:
    """EGGROLL's runs with the most environment steps."""
    found = [runs for folder in folders if (runs := read(folder, env, "eggroll"))]
    return max(found, key=lambda runs: runs.env_steps, default=None)


def random_return(folders: list[Path], env: str) -> float:
    """The random policy's mean return; NaN where it was not measured."""
    paths = [folder / folder_name(env) / "random.csv" for folder in folders]
    return next((float(pd.read_csv(path)["return_mean"].mean()) for path in paths if path.exists()), math.nan)


def reference(folders: list[Path], env: str) -> tuple[float, str]:
    """What counts as 1, and what it is."""
    perfect = maximum(env)
    if perfect is not None:
        return perfect, "perfect agent"
    found = [runs for folder in folders if (runs := read(folder, env, "ppo"))]
    if not found:
        return math.nan, "not measured"
    best = max(found, key=lambda runs: float(interquartile_mean(runs.returns)))
    return float(
        interquartile_mean(best.returns)
    ), f"our PPO, {len(best.returns)} runs of {best.env_steps / 1e6:.3g}M steps"


def published(result: dict[str, Any], steps: float) -> tuple[float, float]:
    """The paper's fraction, and the steps that it is of: the first reading at ours or beyond, but for the last one."""
    name = next((name for name, count in COUNTS.items() if count >= 0.99 * steps), "final")
    return float(result[f"eggroll_{name}"]), COUNTS[name]


def rows(folders: list[Path], paper: dict[str, Any]) -> list[Row]:
    """A row for each environment of the paper that was measured here."""
    found = []
    for env, table in configurations(paper).items():
        runs = longest(folders, env)
        if runs is None:
            continue
        low, (top, what) = random_return(folders, env), reference(folders, env)
        scores = [(x - low) / (top - low) for x in runs.returns]
        plain = min(*runs.returns, low, top) >= 0 < top
        theirs, at = published(table["result"], runs.env_steps)
        ends = (math.nan, math.nan) if math.isnan(top + low) else interval(scores)
        found.append(
            {
                "env": env,
                "runs": len(runs.returns),
                "env_steps": runs.env_steps,
                "return": float(interquartile_mean(runs.returns)),
                "random": low,
                "reference": top,
                "reference_is": what,
                "ratio": float(interquartile_mean(runs.returns if plain else scores)) / (top if plain else 1.0),
                "fraction": float(interquartile_mean(scores)),
                "low": ends[0],
                "high": ends[1],
                "paper": theirs,
                "paper_steps": at,
            }
        )
    return found


def markdown(found: list[Row]) -> str:
    """The table, with the means of both."""
    head = ("environment", "runs", "env steps", "return", "random", "reference")
    head += ("ours, from random [95 %]", "ours, plain", "paper", "at")
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in found:
        ends = "" if math.isnan(row["low"]) else f" [{row['low']:.2f}, {row['high']:.2f}]"
        cells = [f"`{row['env']}`", str(row["runs"]), f"{row['env_steps'] / 1e6:.3g}M", cell(row["return"])]
        cells += [
            cell(row["random"]),
            f"{cell(row['reference'])} ({row['reference_is']})",
            f"{row['fraction']:.3f}{ends}",
            f"{row['ratio']:.3f}",
        ]
        cells += [f"{row['paper']:.3f}", f"{row['paper_steps']:.2g}".replace("e+0", "e")]
        lines.append("| " + " | ".join(cells) + " |")
    means = [float(np.mean([row[name] for row in found])) for name in ("fraction", "ratio", "paper")]
    lines.append("| mean | | | | | | " + " | ".join(f"{mean:.3f}" for mean in means) + " | |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", nargs="+", type=Path, default=[results("study") / name for name in FOLDERS])
    parser.add_argument("--out", type=Path, default=results("paper") / "steps.csv")
    arguments = parser.parse_args()
    found = rows(arguments.results, tomllib.loads(DATA.read_text()))
    if not found:
        raise SystemExit(f"{', '.join(map(str, arguments.results))} have no results in the paper's environments")
    write_rows(arguments.out, found)
    print(markdown(found))


if __name__ == "__main__":
    main()
