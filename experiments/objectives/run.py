"""Objectives without an environment: evolution beside gradients on the same network, over evaluations and seconds.

    python -m experiments.objectives.run                      # all of it, where it was broken off
    python -m experiments.objectives.run --tasks accuracy --seeds 1
    python -m experiments.objectives.run --tasks integer_bits --generations 25000   # hours; see below
    python -m experiments.objectives.run --table

A row is a held-out score: `task`, `method`, `seed`, `step` (a generation, or a step of the optimizer), `evaluations`
(scores of one network on one minibatch), `seconds` (of training, without compiling and evaluations) and `score`. The
gradient needs a derivative, which `accuracy` and `order` do not have: on `accuracy` it is shown that it is zero.

The task `integer_bits` is the language model of integers by `eggroll_int8`, which takes hours; measured only where
it is named. It keeps a run's folder with checkpoints under --runs: killed or over its --minutes, the same command goes
on. Its curve so far is in the table at every end, and in metrics.jsonl of the folder at any time. Beside it stands Adam
on the float network of as many units (`wide_bits`).
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

import esrl
from esrl.core.types import seed_key
from esrl.rollouts.scoring import Apply
from esrl.training.budget import Clock
from experiments import script
from experiments.lab.store import Store, results
from experiments.objectives import digits, language

EVALS = 20
LARGER = "eggroll, 4 times the population"
TASKS: dict[str, tuple[Any, Any]] = {  # the objective and its network
    "likelihood": (digits.likelihood, esrl.mlp((32,))),
    "accuracy": (digits.accuracy, esrl.mlp((32,))),
    "order": (digits.order, esrl.mlp((32,))),
    "bits": (language.bits, esrl.gru(32)),
    "wide_bits": (language.bits, esrl.gru(64)),  # the float twin of the integer network
}
INTEGER = "integer_bits"
DIGITS = {"population": 64, "episodes_per_member": 1, "sigma": 0.1, "learning_rate": 0.2}
LANGUAGE = {"population": 128, "episodes_per_member": 1, "sigma": 0.05, "learning_rate": 0.2}
EVOLUTION: dict[str, tuple[int, dict[str, Any]]] = {  # generations, and the options of both agents
    "likelihood": (400, DIGITS),
    "accuracy": (400, DIGITS),
    "order": (400, DIGITS),
    "bits": (2000, LANGUAGE),
    "wide_bits": (2000, LANGUAGE),
}
INTEGERS = {"noise_table": 1 << 22, "quantile": 0.2, "quantile_decay": 0.002}
GRADIENT: dict[str, tuple[int, dict[str, optax.GradientTransformation]]] = {  # steps
    "likelihood": (1000, {"adam": optax.adam(3e-3), "sgd": optax.sgd(0.1, 0.9)}),
    "accuracy": (100, {"sgd": optax.sgd(0.1, 0.9)}),  # of the same count, whose derivative is zero
    "bits": (10_000, {"adam": optax.adam(3e-3)}),
    "wide_bits": (10_000, {"adam": optax.adam(3e-3)}),
}


@dataclass
class Arguments:
    """The command line."""

    tasks: tuple[str, ...] = tuple(TASKS)
    seeds: int = 3
    table: bool = False  # print what was measured, and measure nothing
    population: int = 2048  # of integer_bits
    generations: int = 25_000  # of integer_bits
    minutes: float | None = None  # after which integer_bits stops, to go on another time
    runs: Path = Path("runs/objectives")  # where integer_bits keeps its checkpoints


@cache  # one for all seeds, which then compile once
def agent_of(make: Callable[..., Any], task: str, larger: int = 1) -> esrl.Agent:
    """The agent of a task, its population so many times larger."""
    objective, network = TASKS[task]
    options = EVOLUTION[task][1]
    return make(objective, network, **options | {"population": larger * options["population"]})


def evolve(make: Callable[..., Any], task: str, seed: int, larger: int = 1) -> list[dict[str, Any]]:
    """The held-out scores of a run by evolution."""
    run = esrl.iterate(
        agent_of(make, task, larger), generations=EVOLUTION[task][0], seed=seed, num_evals=EVALS, eval_episodes=1
    )
    rows: list[dict[str, Any]] = []
    for generation, state, row in run:
        found = {"step": generation, "evaluations": int(state.env_steps), "seconds": row["seconds_training"]}
        if "start_return_mean" in row:
            rows.append({"step": 0, "evaluations": 0, "seconds": 0.0, "score": row["start_return_mean"]})
        if "eval_return_mean" in row:
            rows.append(found | {"score": row["eval_return_mean"]})
    return rows


@cache
def descent(task: str, name: str) -> tuple[Callable[..., Any], ...]:
    """`init(key)`, `step(params, state, key)`, `score(params)` and the optimizer's `init(params)`."""
    optimizer = GRADIENT[task][1][name]
    objective, policy = TASKS[task][0], agent_of(esrl.eggroll, task).policy
    like = jnp.zeros(policy.observation.shape, policy.observation.dtype)

    def applied(params: Any) -> Apply:
        def one(x: Any, carry: Any) -> tuple[Any, Any]:
            (output, _), carry = policy.apply(params, x, carry)
            return output, carry

        return Apply(task, one, like, policy.carry)

    @jax.jit
    def step(params: Any, state: Any, key: Any) -> tuple[Any, Any]:
        gradient = jax.grad(lambda params: -objective.fn(applied(params), key))(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    score = jax.jit(lambda params: objective.evaluate(applied(params), seed_key(0)))
    return jax.jit(policy.init), step, score, optimizer.init


def descend(name: str, task: str, seed: int) -> list[dict[str, Any]]:
    """The held-out scores of a run by gradients: the same network, start, size of minibatches and objective."""
    init, step, score, begin = descent(task, name)
    steps, clock = GRADIENT[task][0], Clock()
    params = init(jax.random.fold_in(seed_key(seed), 0))
    state = begin(params)
    jax.block_until_ready(step(params, state, seed_key(seed)))  # compiles
    rows: list[dict[str, Any]] = [{"step": 0, "evaluations": 0, "seconds": 0.0, "score": float(score(params))}]
    while (done := rows[-1]["step"]) < steps:
        with clock.measure("step"):
            for number in range(done, done + steps // EVALS):
                params, state = step(params, state, jax.random.fold_in(seed_key(seed), number + 1))
            jax.block_until_ready(params)
        done += steps // EVALS
        rows.append({"step": done, "evaluations": done, "seconds": clock.training, "score": float(score(params))})
    return rows


def evolve_integers(given: Arguments, seed: int) -> list[dict[str, Any]]:
    """The held-out scores of the language model of integers so far: begins its run, or goes on with it."""
    folder = given.runs / f"{INTEGER}-{seed}"
    agent = esrl.eggroll_int8(language.integer_bits, population=given.population, **INTEGERS)
    esrl.train(
        agent,
        generations=given.generations,
        seed=seed,
        num_evals=max(given.generations // 50, 1),
        eval_episodes=1,
        out=folder,
        resume=folder.exists(),
        minutes=given.minutes,
    )
    return curve(folder)


def curve(folder: Path) -> list[dict[str, Any]]:
    """The held-out scores in a run's folder."""
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    starts = [row["start_return_mean"] for row in logged if "start_return_mean" in row]
    rows = [{"step": 0, "evaluations": 0, "seconds": 0.0, "score": score} for score in starts[:1]]
    for row in logged:
        if "eval_return_mean" in row:
            found = {"step": row["generation"], "evaluations": row["env_steps"], "seconds": row["seconds_training"]}
            rows.append(found | {"score": row["eval_return_mean"]})
    return rows


METHODS: dict[str, Callable[[str, int], list[dict[str, Any]]]] = {
    "eggroll": lambda task, seed: evolve(esrl.eggroll, task, seed),
    "open_es": lambda task, seed: evolve(esrl.open_es, task, seed),
    LARGER: lambda task, seed: evolve(esrl.eggroll, task, seed, 4),
    "adam": lambda task, seed: descend("adam", task, seed),
    "sgd": lambda task, seed: descend("sgd", task, seed),
    "order 2": lambda task, seed: [{"step": 0, "evaluations": 0, "seconds": 0.0, "score": -language.order_n(2)}],
}


def cells(tasks: tuple[str, ...], seeds: int) -> list[tuple[str, str, int]]:
    """Everything that is measured, one seed of all before the next."""
    found = []
    for seed in range(seeds):
        for task in tasks:
            methods = ["eggroll", "open_es", *GRADIENT.get(task, (0, {}))[1]]
            if task == "wide_bits":
                methods = ["adam"]
            if task == "bits":
                methods = ["eggroll", *GRADIENT[task][1], *(["order 2", LARGER] if seed == 0 else [])]
            found += [(task, method, seed) for method in methods]
    return found


def summary(rows: list[dict[str, Any]]) -> str:
    """The last score of each method: the median over seeds with the lowest and highest."""
    lines = []
    for task in (*TASKS, INTEGER):
        for method in (*METHODS, "eggroll_int8"):
            own = [row for row in rows if (row["task"], row["method"]) == (task, method)]
            last = list({row["seed"]: row for row in sorted(own, key=lambda row: row["step"])}.values())
            if last:
                scores = sorted(row["score"] for row in last)
                seconds = statistics.median(row["seconds"] for row in last)
                shown = f"{statistics.median(scores):.3f} [{scores[0]:.3f}, {scores[-1]:.3f}]"
                lines.append((task, method, len(last), f"{last[0]['evaluations']:,}", f"{seconds:.1f}", shown))
    return script.table(("task", "method", "seeds", "evaluations", "seconds", "held-out score"), lines)


def main() -> None:
    """Measures what is missing."""
    given = script.options(Arguments, __doc__)
    if unknown := [task for task in given.tasks if task not in (*TASKS, INTEGER)]:
        script.wrong(f"there is no task {unknown[0]}; there are {', '.join((*TASKS, INTEGER))}")
    script.at_least(given, 1, "population", "generations", "seeds")
    store = Store(results("objectives") / "objectives.csv", key=("task", "method", "seed"))
    if not given.table:
        with store.alone():
            for task, method, seed in store.missing(cells(tuple(t for t in given.tasks if t != INTEGER), given.seeds)):
                print(task, method, seed, flush=True)
                named = {"task": task, "method": method, "seed": seed}
                store.add([named | row for row in METHODS[method](task, seed)])
            for seed in range(given.seeds if INTEGER in given.tasks else 0):
                named = {"task": INTEGER, "method": "eggroll_int8", "seed": seed}
                store.add([named | row for row in evolve_integers(given, seed)], replace=True)
    print(summary(store.read()))


if __name__ == "__main__":
    main()
