"""One configuration for all environments: which defaults EGGROLL (or PPO) should have.

    python -m experiments.defaults.search --agent eggroll --hours 1       # go on searching; several may run at once
    python -m experiments.defaults.search --suite brax --hours 1          # for Brax alone: what its suite should set
    python -m experiments.defaults.search --config '{"population": 16}'   # one configuration
    python -m experiments.defaults.search --best 8 --suite million        # its eight best, after a million steps each
    python -m experiments.defaults.search --table                         # what was found, as Markdown

A configuration is trained on each environment of `worlds.SEEN`, once, and scored twice: by its held-out return after
the world's environment steps, and by the last evaluation within `--seconds` of training on one core (compiling and
evaluating not counted; of a process that is bound to one core, without what others had of it). Its score is the
interquartile mean over environments and both budgets. The first configurations are random, later ones come from
Optuna's TPE (Bergstra et al., 2011); one that does worse on the first environments than the median of those before is
given up. Rows are one for each configuration, environment and seed, in results/<agent>.csv. `--suite brax` trains on
`worlds.BRAX` with two seeds each, from no suite's defaults, and writes to results/<agent>_brax.csv. `--suite million`
trains four times as long, and writes to results/<agent>_million.csv.
"""

from __future__ import annotations

import inspect
import json
import time
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import optuna

import esrl
from esrl.core.options import options_of
from esrl.training.recipe import NETWORK_KEYS, NETWORKS, agent_named
from esrl.training.suite_defaults import suite_defaults
from experiments import script
from experiments.defaults import worlds
from experiments.lab import pool
from experiments.lab.budget import CoreClock, one_core
from experiments.lab.stats import interquartile_mean
from experiments.lab.store import Row, Store, digest, results

RANDOM = 16  # configurations before TPE begins
FEW = 4  # configurations whose median says whether to give another one up
SPACES: dict[str, dict[str, Any]] = {
    "eggroll": {
        "population": [8, 16, 32],
        "episodes_per_member": [1, 2],
        "learning_rate": (0.003, 0.03),  # ten times that for clipup and sgd
        "sigma": (0.03, 0.1),
        "optimizer": ["adam", "rmsprop", "clipup", "sgd"],
        "shaping": ["centered_rank", "z_score"],
        "averaging": [0.9, 0.97],
        "layer_sigma": [None, "fan_in"],
        "hidden": [(32, 32), (64, 64)],
        "activation": ["layernorm_relu", "tanh"],
        "skip": [False, True],
        "output_scale": [0.1, 1.0],
    },
    "ppo": {
        "num_envs": [16, 32, 64, 128],
        "num_steps": [32, 64, 128, 256],
        "num_epochs": [2, 4, 8],
        "num_minibatches": [4, 8, 16],
        "learning_rate": (1e-4, 2e-3),
        "entropy_coef": [0.0, 0.001, 0.01],
        "gamma": [0.98, 0.99, 0.995],
        "gae_lambda": [0.9, 0.95],
        "hidden": [(64, 64), (128, 128), (256, 256)],
        "activation": ["tanh", "layernorm_relu", "silu"],
    },
}


@dataclass
class Arguments:
    """The command line."""

    agent: Literal["eggroll", "ppo"] = "eggroll"
    suite: Literal["all", "million", "brax"] = "all"  # whose environments, and for how long
    hours: float = 1.0  # of searching; the configuration under way is finished
    seconds: float = 5.0  # the budget of training seconds
    seed: int = 0
    config: tuple[str, ...] = ()  # configurations as JSON, measured in place of a search
    best: int = 0  # measured in place of a search: so many, of those that --suite all has on all environments
    envs: tuple[str, ...] = ()  # of these environments only (with --config or --best)
    table: bool = False  # only print what is there


class Runs(NamedTuple):
    """What a configuration is judged by: a table of its own, and the runs in their order.

    Attributes:
      table: of what was measured. worlds: and each one's seed, in the order in which they are trained.
      warm: how many of them a configuration trains before it may be given up. settings: how each run is scored.
    """

    table: Store
    worlds: tuple[tuple[worlds.World, int], ...]
    warm: int
    settings: dict[str, int]

    def place(self, row: Row) -> int:
        """The number of a row's run; -1 if it is none of these."""
        order = [(world.env, seed) for world, seed in self.worlds]
        return order.index(key) if (key := (row["env"], int(row["seed"]))) in order else -1


def runs(agent: str, suite: str, seed: int) -> Runs:
    """The runs of a search."""
    if suite == "brax":
        table = Store(results("defaults") / f"{agent}_brax.csv", key=("config", "env", "seed"))
        pairs = tuple((world, each) for world in worlds.BRAX for each in (seed, seed + 1))
        return Runs(table, pairs, 2, {"evaluations": 3, "early_evals": 1, "eval_episodes": 32})
    name = agent if suite == "all" else f"{agent}_{suite}"
    table = Store(results("defaults") / f"{name}.csv", key=("config", "env", "seed"))
    pairs = tuple((world if suite == "all" else world._replace(env_steps=1e6), seed) for world in worlds.SEEN)
    return Runs(table, pairs, 4, {"evaluations": 5, "early_evals": 2, "eval_episodes": 64})


def recipe(env: str, agent: str, config: dict[str, Any]) -> esrl.Recipe:
    """A configuration on an environment; what a suite says of the network and of sampling stays."""
    policy, options = suite_defaults(env, agent)
    options = {k: v for k, v in options.items() if k == "deterministic"}  # the search began before the rest
    scale = {"clipup": 10, "sgd": 10}.get(config.get("optimizer", ""), 1)  # their steps have other units than Adam's
    config = config | {"learning_rate": scale * config["learning_rate"]} if "learning_rate" in config else config
    takes = inspect.signature(NETWORKS[policy.get("network", "mlp")]).parameters
    wanted = {k: v for k, v in config.items() if k in NETWORK_KEYS and k in takes}
    if "network" in policy:  # a suite's network keeps its widths
        wanted.pop("hidden", None)
    known = options_of(agent_named(agent))
    return esrl.Recipe(
        env, agent, policy=policy | wanted, options=options | {k: v for k, v in config.items() if k in known}
    )


def measure(
    world: worlds.World,
    agent: str,
    config: dict[str, Any],
    seed: int,
    seconds: float,
    *,
    evaluations: int = 5,
    early_evals: int = 2,
    eval_episodes: int = 64,
) -> Row:
    """One run: its held-out returns at both budgets."""
    wanted = recipe(world.env, agent, {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()})
    run = esrl.iterate(
        wanted.build(),
        env_steps=world.env_steps,
        seed=seed,
        num_evals=evaluations,
        eval_episodes=eval_episodes,
        early_evals=early_evals,
    )
    if one_core():
        run.clock = CoreClock()
    last: dict[str, Any] = {}
    begun, training, within = time.perf_counter(), 0.0, float("nan")
    for _, _, last in run:
        training = last["seconds_training"]
        if "start_return_mean" in last:
            within = last["start_return_mean"]
        if "eval_return_mean" in last and training <= seconds:
            within = last["eval_return_mean"]
    return {
        "return_steps": last["eval_return_mean"],
        "return_seconds": within,
        "env_steps": last["env_steps"],
        "generations": last["generation"],
        "seconds": training,
        "seconds_all": time.perf_counter() - begun,
    }


def score(rows: list[Row]) -> float:
    """The interquartile mean over environments and budgets."""
    found = [
        worlds.named(row["env"]).score(float(row[name])) for row in rows for name in ("return_steps", "return_seconds")
    ]
    return float(interquartile_mean(np.array(found))) if found else float("nan")


def by_config(wanted: Runs) -> dict[str, list[Row]]:
    """The rows of each configuration of the search, in the order of its runs."""
    found: dict[str, list[Row]] = {}
    for row in wanted.table.read():
        if wanted.place(row) >= 0:
            found.setdefault(row["config"], []).append(row)
    return {config: sorted(rows, key=wanted.place) for config, rows in found.items()}


# ---- searching ------------------------------------------------------------------------------------------------------


def inside(values: tuple[float, float] | list[Any], value: Any) -> bool:
    """Whether a range, or a list of choices, has a value; JSON made lists of tuples."""
    if isinstance(values, tuple):
        return values[0] <= value <= values[1]
    return json.loads(json.dumps(value)) in json.loads(json.dumps(values))


def suggest(agent: str, known: dict[str, list[Row]], seed: int) -> dict[str, Any]:
    """The next configuration: random at first, then by TPE over what was measured."""
    space = SPACES[agent]
    kinds: dict[str, optuna.distributions.BaseDistribution] = {
        name: optuna.distributions.FloatDistribution(values[0], values[1], log=True)
        if isinstance(values, tuple)
        else optuna.distributions.CategoricalDistribution([json.dumps(value) for value in dict.fromkeys(values)])
        for name, values in space.items()
    }
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=RANDOM, multivariate=True, constant_liar=True)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for rows in known.values():
        values = json.loads(rows[0]["values"])
        told = {
            name: values[name] if isinstance(kind, optuna.distributions.FloatDistribution) else json.dumps(values[name])
            for name, kind in kinds.items()
            if name in values
        }
        if len(told) < len(kinds) or not all(inside(space[name], values[name]) for name in told):
            continue  # set by hand: outside of the space, or not all of it
        study.add_trial(
            optuna.trial.create_trial(
                params=told, distributions={name: kinds[name] for name in told}, value=score(rows)
            )
        )
    trial = study.ask(kinds)
    return {name: json.loads(value) if isinstance(value, str) else value for name, value in trial.params.items()}


def tried(arguments: Arguments, wanted: Runs, config: dict[str, Any], searching: bool) -> float:
    """Measures a configuration in every run that is missing, or while searching until it is given up; its score."""
    name = digest(config)
    known = by_config(wanted)
    done = known.get(name, [])
    for place, (world, seed) in enumerate(wanted.worlds):
        measured = any(wanted.place(row) == place for row in done)
        if measured or (arguments.envs and world.env not in arguments.envs):
            continue
        others = [score(rows[:place]) for rows in known.values() if len(rows) >= place]
        if searching and place >= wanted.warm and len(others) >= FEW and score(done) < np.median(others):
            print(f"  given up after {place} runs", flush=True)
            break
        row = measure(world, arguments.agent, config, seed, arguments.seconds, **wanted.settings)
        row = {"config": name, "env": world.env, "seed": seed, "values": json.dumps(config), **row}
        wanted.table.add([row])
        done = sorted([*done, row], key=wanted.place)
        print(f"  {world.env} {row['return_steps']:.4g} in {row['seconds_all']:.0f} s", flush=True)
    return score(done)


def ranked(wanted: Runs) -> list[list[Row]]:
    """The rows of each configuration, the best first; those that were given up come last."""
    return sorted(by_config(wanted).values(), key=lambda rows: (len(rows), score(rows)), reverse=True)


def show(wanted: Runs) -> None:
    """The configurations, best first, as Markdown."""
    found = ranked(wanted)
    names = [world.env.rpartition("/")[2] for world, _ in wanted.worlds]
    print(f"| score | {' | '.join(names)} | configuration |\n|{'---|' * (len(names) + 2)}")
    for rows in found:
        at = {
            wanted.place(row): f"{float(row['return_steps']):.4g} / {float(row['return_seconds']):.4g}" for row in rows
        }
        cells = [at.get(place, "–") for place in range(len(names))]
        print(f"| {score(rows):.3f} | {' | '.join(cells)} | {rows[0]['values']} |")


def main() -> None:
    """The script."""
    arguments = script.options(Arguments, __doc__)
    wanted = runs(arguments.agent, arguments.suite, arguments.seed)
    if arguments.table:
        show(wanted)
        return
    searching = not (arguments.config or arguments.best)
    given = [json.loads(text) for text in arguments.config]
    if arguments.best:
        whole = runs(arguments.agent, "all", arguments.seed)
        complete = [rows for rows in ranked(whole) if len(rows) == len(whole.worlds)]
        given += [json.loads(rows[0]["values"]) for rows in complete[: arguments.best]]
    end = time.monotonic() + arguments.hours * 3600
    with pool.stoppable("what was measured is kept"):
        while time.monotonic() < end if searching else given:
            config = given.pop(0) if given else suggest(arguments.agent, by_config(wanted), time.time_ns() % 2**31)
            print(json.dumps(config), flush=True)
            print(f"= {tried(arguments, wanted, config, searching):.3f}", flush=True)


if __name__ == "__main__":
    main()
