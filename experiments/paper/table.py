"""The table of experiments/paper/run.py, from its result files: ours beside what the paper reached."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lab.record import Row, read_rows

NAMES = {"eggroll": "EGGROLL", "open_es": "OpenES", "ppo": "PPO"}
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


def normalised(x: float, ppo: list[Row], random: list[Row]) -> tuple[float, float]:
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
    return f"{result[f'{agent}_{at}']:g} at {COUNTS[at]:.2g}".replace("e+0", "e") + " †" * fewer


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


def lines(folder: Path, paper: dict[str, Any]) -> list[str]:
    """An environment's lines of the table, one for each agent but PPO and the random policy."""
    found = last_rows(folder)
    random, ppo = found.pop("random", []), found.pop("ppo", [])
    made = []
    for agent, rows in sorted(found.items()):
        env, steps = rows[0]["env"], mean(rows, "env_steps")
        floor, ratio = normalised(mean(rows), ppo, random)
        cells = [f"`{env}`", NAMES.get(agent, agent), str(len(rows)), steps_of(rows)]
        cells += [cell(mean(rows, "seconds") / 60), returns(rows), returns(ppo), steps_of(ppo)]
        cells += [cell(mean(ppo, "seconds") / 60), returns(random), cell(floor), cell(ratio)]
        made.append("| " + " | ".join([*cells, published(paper, env, agent, steps, mean(ppo, "env_steps"))]) + " |")
    return made


def table(out: Path, data: Path) -> str:
    """Every environment with results, as Markdown."""
    paper = tomllib.loads(data.read_text()) if data.exists() else {}
    made = [line for folder in sorted(out.glob("*/")) for line in lines(folder, paper)]
    head = "| " + " | ".join(HEAD) + " |\n" + "|---" * len(HEAD) + "|"
    return "\n".join([head, *made, "", CAPTION])
