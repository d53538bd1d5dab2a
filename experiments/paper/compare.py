"""EGGROLL beside the paper's, both as fractions of PPO's return, where the paper had as many steps or more.

    python -m experiments.paper.compare              # prints Markdown, and writes results/steps.csv

Ours are the runs with the most steps: the study's finals (results/study, five fresh seeds), those of the repository's
own recipes (results/compare), or longer ones of the study's recipes (results/long):

    python -m experiments.study.compare ENV --recipes agents/study --env-steps 5e7 --out experiments/study/results/long

The paper's EGGROLL is read off its figures at 1e8 environment steps, or at the first reading beyond ours. It gives
returns as fractions of its PPO's after 5e8 steps and does not say what becomes of negative ones. Ours are given
twice: as the plain ratio x / reference, like the paper's (where returns are negative, and for that alone, as the
other), and as (x - random) / (reference - random), with the random policy's return in the same worlds. The reference
is the return of a perfect agent where the rules say one (`maximum` of experiments/study/analysis.py), or else that of
the best PPO measured here in any of these folders, with far fewer steps than the paper's. A perfect agent makes our
fraction smaller than the paper's way of counting does.

`table` is that of experiments/paper/run.py: the paper's own configurations, from run.py's result files.
"""

import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from experiments import script
from experiments.lab.stats import AGENTS, final, interquartile_mean, interval
from experiments.lab.store import Row, folder_name, read_rows, results, write_rows
from experiments.paper.recipes import DATA, configurations
from experiments.study.analysis import maximum

FOLDERS = tuple(results("study") / name for name in ("study", "long", "compare"))
STEPS = results("paper") / "steps.csv"
STEPS_HEAD: tuple[str, ...] = ("environment", "runs", "env steps", "return", "random", "reference")
STEPS_HEAD += ("ours, from random [95 %]", "ours, plain", "paper", "at")
COUNTS = {"1e8": 1e8, "25e7": 2.5e8, "final": 5e8}  # where the paper's curves were read, as the data names them
HEAD: tuple[str, ...] = ("environment", "agent", "seeds", "env steps", "minutes", "return")
HEAD += ("PPO: return", "PPO: env steps", "PPO: minutes", "random policy")
HEAD += ("(x - random) / (PPO - random)", "x / PPO", "paper: x / PPO, at env steps")
CAPTION = """\
Returns are means over held-out episodes at the last evaluation of each run, ours and PPO's alike (with several seeds:
mean [lowest, highest]); "env steps" and "minutes" (of training, without compiling and evaluating) are those of that
evaluation. The paper gives returns as a fraction of PPO's and does not say what it does about negative returns, where a
plain ratio says nothing. So ours are given as (x - random) / (PPO - random), with a random policy's return in the same
worlds (outputs of zero, sampled: uniform over allowed choices, or standard normal numbers fitted to their bounds), and
as the plain ratio where all returns are positive. "–": not measured, or PPO's return is not above the random policy's
by two standard errors. † the paper's figure is at more than ours: more environment steps, for agent or PPO."""


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
    steps = float(last["env_steps"].median()) if "env_steps" in last else 0.0
    return Runs([float(x) for x in last["return_mean"]], steps)


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
    words = f"our PPO, {len(best.returns)} runs of {best.env_steps / 1e6:.3g}M steps"
    return float(interquartile_mean(best.returns)), words


def reading(result: dict[str, Any], steps: float) -> tuple[float, float]:
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
        # a ratio of negative returns says nothing
        plain = min(*runs.returns, low, top) >= 0 < top
        ratio = float(interquartile_mean(runs.returns if plain else scores)) / (top if plain else 1.0)
        ends = (math.nan, math.nan) if math.isnan(top + low) else interval(scores)
        row: Row = {"env": env, "runs": len(runs.returns), "env_steps": runs.env_steps}
        row |= {"return": float(interquartile_mean(runs.returns)), "random": low, "reference": top}
        row |= {"reference_is": what, "ratio": ratio, "fraction": float(interquartile_mean(scores))}
        row |= dict(
            zip(
                ("low", "high", "paper", "paper_steps"), (*ends, *reading(table["result"], runs.env_steps)), strict=True
            )
        )
        found.append(row)
    return found


def markdown(found: list[Row]) -> str:
    """The table of EGGROLL beside the paper's, with the means of both."""
    lines = []
    for row in found:
        ends = "" if math.isnan(row["low"]) else f" [{row['low']:.2f}, {row['high']:.2f}]"
        cells = [f"`{row['env']}`", row["runs"], f"{row['env_steps'] / 1e6:.3g}M", cell(row["return"])]
        cells += [cell(row["random"]), f"{cell(row['reference'])} ({row['reference_is']})"]
        cells += [f"{row['fraction']:.3f}{ends}", f"{row['ratio']:.3f}", f"{row['paper']:.3f}"]
        lines.append([*cells, count(row["paper_steps"])])
    means = [f"{np.mean([row[name] for row in found]):.3f}" for name in ("fraction", "ratio", "paper")]
    return script.table(STEPS_HEAD, [*lines, ["mean", *[""] * 5, *means, ""]])


def count(steps: float) -> str:
    """Steps in two digits: "1e8"."""
    return f"{steps:.2g}".replace("e+0", "e")


# ---- the paper's own configurations ---------------------------------------------------------------------------------


def last_rows(folder: Path) -> dict[str, list[Row]]:
    """The last row of each run of an environment, by agent."""
    found: dict[str, list[Row]] = {}
    for path in sorted(folder.glob("*.csv")):
        rows = read_rows(path)
        if rows:
            found.setdefault(rows[-1]["agent"], []).append(rows[-1])
    return found


def mean(rows: list[Row], column: str = "return_mean") -> float:
    """Mean over runs; NaN without any."""
    return float(np.mean([float(row[column]) for row in rows])) if rows else math.nan


def error(rows: list[Row]) -> float:
    """Standard error of the mean return: over runs, or over the episodes of the only one."""
    if len(rows) > 1:
        return float(np.std([float(row["return_mean"]) for row in rows], ddof=1)) / math.sqrt(len(rows))
    return float(rows[0]["return_std"]) / math.sqrt(int(rows[0]["episodes"])) if rows else math.nan


def normalized(x: float, ppo: list[Row], random: list[Row]) -> tuple[float, float]:
    """(x - random) / (PPO - random) and x / PPO; NaN where they say nothing."""
    if not ppo or not random:
        return math.nan, math.nan
    gap = mean(ppo) - mean(random)
    clear = gap > 2 * math.hypot(error(ppo), error(random))
    plain = x / mean(ppo) if min(x, mean(random), mean(ppo)) >= 0 and mean(ppo) > 0 else math.nan
    return (x - mean(random)) / gap if clear else math.nan, plain


def published(paper: dict[str, Any], env: str, agent: str, steps: float, ppo_steps: float) -> str:
    """What the paper reached at the count that is nearest to ours: "0.17 at 1e8 †"."""
    result = paper.get(env.partition("?")[0], {}).get("result", {})
    at = min(COUNTS, key=lambda name: abs(math.log(COUNTS[name] / max(steps, 1.0))))
    if f"{agent}_{at}" not in result:
        return "–"
    fewer = steps < 0.95 * COUNTS[at] or ppo_steps < 0.95 * COUNTS["final"]
    return f"{result[f'{agent}_{at}']:g} at {count(COUNTS[at])}" + " †" * fewer


def cell(x: float) -> str:
    """A number in four digits at most; a dash for none."""
    return "–" if math.isnan(x) else f"{x:.0f}" if abs(x) >= 1000 else f"{x:.3g}"


def returns(rows: list[Row]) -> str:
    """The mean return, with the range over several seeds."""
    values = [float(row["return_mean"]) for row in rows]
    spread = f" [{cell(min(values))}, {cell(max(values))}]" if len(values) > 1 else ""
    return cell(mean(rows)) + spread


def steps_of(rows: list[Row]) -> str:
    return "–" if not rows else f"{mean(rows, 'env_steps') / 1e6:.3g}M"


def lines(folder: Path, paper: dict[str, Any]) -> list[list[str]]:
    """An environment's lines of the table, one for each agent but PPO and the random policy."""
    found = last_rows(folder)
    random, ppo = found.pop("random", []), found.pop("ppo", [])
    made = []
    for agent, rows in sorted(found.items()):
        env, steps = rows[0]["env"], mean(rows, "env_steps")
        floor, ratio = normalized(mean(rows), ppo, random)
        cells = [f"`{env}`", AGENTS.get(agent, agent), str(len(rows)), steps_of(rows)]
        cells += [cell(mean(rows, "seconds") / 60), returns(rows), returns(ppo), steps_of(ppo)]
        cells += [cell(mean(ppo, "seconds") / 60), returns(random), cell(floor), cell(ratio)]
        made.append([*cells, published(paper, env, agent, steps, mean(ppo, "env_steps"))])
    return made


def table(out: Path, data: Path) -> str:
    """Every environment with results, as Markdown."""
    paper = tomllib.loads(data.read_text()) if data.exists() else {}
    made = [line for folder in sorted(out.glob("*/")) for line in lines(folder, paper)]
    return f"{script.table(HEAD, made)}\n\n{CAPTION}"


@dataclass(frozen=True)
class Options:
    results: tuple[Path, ...] = FOLDERS
    out: Path = STEPS


def main() -> None:
    given = script.options(Options, __doc__)
    found = rows(list(given.results), tomllib.loads(DATA.read_text()))
    if not found:
        raise SystemExit(f"{', '.join(map(str, given.results))} have no results in the paper's environments")
    write_rows(given.out, found)
    print(markdown(found))


if __name__ == "__main__":
    main()
