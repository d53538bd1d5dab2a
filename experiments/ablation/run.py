"""One factor at a time around esrl's defaults: what each choice is worth, paired by seed.

    python -m experiments.ablation.run --out runs/ablation                     # three environments, every factor
    python -m experiments.ablation.run gymnax/CartPole-v1 --factors shaping rank --seeds 10
    python -m experiments.ablation.run --table                                 # what is there, as Markdown

The base is --recipe, or the recipe agents/<environment>/eggroll.toml, or esrl's defaults with an MLP of 64x64, the last
two with what SETTINGS below has for the environment. Each value of a factor is the base with that one thing changed, on
the same seeds: the same initial parameters where it has the same network, and the same held-out episodes. Without
pairs, members share the same number of evaluations, and leave-one-out takes the baseline's place. SGD has three
learning rates around the one whose step is as long as Adam's.

Written to experiments/ablation/results/<environment>.csv, with the columns of lab/run.py and factor and value
("base" and "" for the base). What is there already is left out. How an effect is counted is said in analysis.py.
"""

from __future__ import annotations

import fnmatch
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import tyro

import esrl
from esrl.core.types import nearest
from experiments import script
from experiments.ablation.analysis import BASE, effects, read, table
from experiments.lab import pool
from experiments.lab import run as cells
from experiments.lab.recipes import base_recipe, own_recipe, value, varied
from experiments.lab.store import folder_name, results

RESULTS = results("ablation")

Values = list[tuple[str, dict[str, Any]]]  # a value's name, and what it changes


class Setting(NamedTuple):
    """How an environment is measured: steps of a run, in full, and what its base differs in from its recipe."""

    env_steps: float
    full: float
    changes: dict[str, Any] = {}  # noqa: RUF012


SETTINGS = {
    "gymnax/CartPole-v1": Setting(2e5, 5e6, {"population": 64}),
    "gymnax/Pendulum-v1": Setting(5e5, 2e7, {"population": 128}),
    "navix/Navix-DoorKey-5x5-v0": Setting(1e6, 5e7, {"population": 256}),
    "brax/inverted_pendulum": Setting(5e5, 4e6, {"hidden": [64, 64]}),  # its recipe has no matrix to be of low rank
}
LAPTOP = list(SETTINGS)[:3]
OTHERS = Setting(5e5, 1e7)


def others(name: str, *values: Any) -> Callable[[esrl.Recipe], Values]:
    """The values of an option that are not the base's."""

    def of(base: esrl.Recipe) -> Values:
        return [("none" if v is None else str(v), {name: v}) for v in values if v != value(base, name)]

    return of


def times(name: str, *factors: float) -> Callable[[esrl.Recipe], Values]:
    """The base's value of an option times factors."""

    def of(base: esrl.Recipe) -> Values:
        return [(f"x {factor:g}", {name: base.options[name] * factor}) for factor in factors]

    return of


def flipped(name: str, yes: str, no: str) -> Callable[[esrl.Recipe], Values]:
    """The other of an option's two values, by its name."""

    def of(base: esrl.Recipe) -> Values:
        now = base.options[name]
        return [(no if now else yes, {name: not now})]

    return of


def pairs(base: esrl.Recipe) -> Values:
    """Antithetic pairs, or members by themselves with a leave-one-out baseline: evaluations are the same."""
    if base.options["antithetic"]:
        return [("no pairs, leave-one-out", {"antithetic": False, "shaping": "leave_one_out"})]
    return [("pairs, centred ranks", {"antithetic": True, "shaping": "centered_rank"})]


def optimizers(base: esrl.Recipe) -> Values:
    """SGD with rates around the fair one, and RMSprop and Adam at the base's rate."""
    found: Values = [(name, {"optimizer": name}) for name in ("adam", "rmsprop") if name != base.options["optimizer"]]
    fair = sgd_rate(base)
    return found + [
        (f"sgd, fair rate x {x:.2g}", {"optimizer": "sgd", "momentum": None, "learning_rate": fair * x})
        for x in (1 / 3, 1, 3)
    ]


def sgd_rate(base: esrl.Recipe) -> float:
    """The rate at which SGD's steps are as long as Adam's while noise is most of the gradient estimate.

    An entry of the estimate, `sum_i w_i E_i / (N sigma)`, then has the deviation `d / (sigma sqrt(N))`, where d is that
    of the shaped fitness: 1/sqrt(12) for centred ranks. Adam divides by it, so SGD's rate is Adam's over it.
    """
    options = base.options
    members, sigma = options["population"], options["sigma"]
    deviation = {"centered_rank": 1 / math.sqrt(12)}.get(options["shaping"], 1.0) / (sigma * math.sqrt(members))
    scale = math.sqrt(members) * sigma**2 if options["gradient_scale"] == "paper" else 1.0
    return options["learning_rate"] / (deviation * scale)


def decays(base: esrl.Recipe) -> Values:
    """Each schedule on, or off where the base has it."""
    return [
        (f"{name} {other:g}", {name: other})
        for name in ("lr_decay", "sigma_decay")
        for other in [0.995 if base.options[name] == 1.0 else 1.0]
    ]


def by_mode(base: esrl.Recipe) -> Values:
    """Acting by the mode or by sampling, in grid worlds alone."""
    grids = any(fnmatch.fnmatchcase(base.env, pattern) for pattern in ("navix/*", "craftax/*", "jumanji/*"))
    return flipped("deterministic", "by the mode", "by sampling")(base) if grids else []


FACTORS: dict[str, Callable[[esrl.Recipe], Values]] = {
    "shaping": others("shaping", "centered_rank", "z_score", "group", "sign", "none", "leave_one_out"),
    "observations": flipped("normalize_observations", "normalized", "raw"),
    "thin": others("max_excess_variance", None, 0.5, 0.1),
    "pairs": pairs,
    "optimizer": optimizers,
    "schedule": decays,
    "sigma": times("sigma", 0.5, 2),
    "learning_rate": times("learning_rate", 0.5, 2),
    "actions": by_mode,
    "rank": others("rank", "1", "2", "4", "dense"),
    "activation": others("activation", "layernorm_relu", "tanh", "relu"),
    "outputs": others("output_scale", 1.0, 0.1, 0.01),
    "distribution": others("noise_distribution", "normal", "rademacher"),
}


def plan(base: esrl.Recipe, factors: list[str], seeds: int, path: Path) -> cells.Plan:
    """The base and every value of every factor, with every seed."""
    wanted = [(BASE, "", base)]
    for factor in factors:
        wanted += [(factor, name, varied(base, changes)) for name, changes in FACTORS[factor](base)]
    runs = [
        cells.Run(recipe, seed, {"factor": factor, "value": name})
        for factor, name, recipe in wanted
        for seed in range(seeds)
    ]
    return cells.Plan(cells.table(path), base, runs, cells.stepped_by_python(base))


@dataclass
class Arguments:
    """The command line."""

    envs: tyro.conf.Positional[tuple[str, ...]] = ()  # three small ones unless given; in full a fourth as well
    factors: tuple[str, ...] = tuple(FACTORS)
    seeds: int | None = None  # 0 to SEEDS - 1; 3, in full 10
    env_steps: float | None = None  # budget of every run, rather than the script's
    evaluations: int = 10  # of each run, beside the start
    episodes: int = 64  # held-out ones of each evaluation
    recipe: Path | None = None  # the base, rather than each environment's own
    processes: int | None = None  # cells at once; one for each core unless given
    full: bool = False  # ten seeds, and steps enough to learn each environment
    again: bool = False  # measure anew what is there already
    table: bool = False  # only print what is there
    out: Path = RESULTS


def base_of(arguments: Arguments, env: str) -> esrl.Recipe:
    """An environment's base, with the experiment's budget and evaluations."""
    setting = SETTINGS.get(env, OTHERS)
    steps = arguments.env_steps or (setting.full if arguments.full else setting.env_steps)
    run = {"env_steps": float(steps), "num_evals": arguments.evaluations, "eval_episodes": arguments.episodes}
    base = base_recipe(env, "eggroll", arguments.recipe or own_recipe(env, "eggroll"), run, {"hidden": [64, 64]})
    return base if arguments.recipe else varied(base, setting.changes)


def ablate(arguments: Arguments) -> list[str]:
    """Measures what tables miss; returns a sentence for each cell that failed."""
    for factor in arguments.factors:
        if factor not in FACTORS:
            raise esrl.EsrlError(f"{factor} is no factor{nearest(factor, FACTORS)}")
    seeds = arguments.seeds or (10 if arguments.full else 3)
    tables = {env: arguments.out / f"{folder_name(env)}.csv" for env in arguments.envs}
    plans = [plan(base_of(arguments, env), list(arguments.factors), seeds, path) for env, path in tables.items()]
    return cells.measure(plans, arguments.processes, arguments.again)


def main() -> None:
    arguments = script.options(Arguments, __doc__)
    script.at_least(arguments, 1, "seeds", "env_steps", "evaluations", "episodes", "processes")
    arguments.envs = arguments.envs or tuple(SETTINGS if arguments.full else LAPTOP)
    failed: list[str] = []
    if not arguments.table:
        with pool.stoppable(f"stopped; what is done is in {arguments.out}, and the same command goes on"):
            failed = ablate(arguments)
    if failed and not any(cells.table(arguments.out / f"{folder_name(env)}.csv").read() for env in arguments.envs):
        sys.exit("failed: " + "; ".join(failed))
    found, left_out = effects(read(arguments.out, arguments.envs))
    print(table(found))
    for sentence in left_out:
        print(f"\n{sentence}")
    if failed:
        sys.exit("failed: " + "; ".join(failed))


if __name__ == "__main__":
    main()
