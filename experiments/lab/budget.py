"""One training run under a budget of environment steps, of seconds, or of several such, scored as it goes.

Seconds are those of training alone: compiling and scoring are counted beside them, so that a budget of seconds buys
every agent the same, whatever it compiles. On one core they are those in which the core was at work on the run, so that
other work on the machine does not shorten a run; on several, and on an accelerator, they are the clock's.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import NamedTuple

import jax

import esrl
from esrl.training.budget import Clock
from experiments.lab.store import Row


class Budget(NamedTuple):
    """What a run may use; the first that is used up ends it.

    Attributes:
      env_steps: live environment steps. seconds: of training. generations: of the agent.
      evaluations: times that the unperturbed parameters are scored, evenly over the budget, beside the start.
      episodes: held-out ones of each.
      early: further evaluations before the first of those, each at half the budget of the next: what agents that differ
        much in speed are compared by at equal steps.
    """

    env_steps: float | None = None
    seconds: float | None = None
    evaluations: int = 20
    episodes: int = 128
    generations: int | None = None
    early: int = 0


class CoreClock(Clock):
    """Seconds without those in which other processes had the core that this one is bound to."""

    def busy(self) -> float:
        return time.process_time()


def one_core() -> bool:
    """Whether all of a run's work is done by one core: then the process's own time is that core's."""
    bound = getattr(os, "sched_getaffinity", lambda _: ())(0)
    return len(bound) == 1 and jax.default_backend() == "cpu"


def train(
    agent: esrl.Agent, budget: Budget, seed: int, values: dict[str, float] | None = None, worlds: int | None = None
) -> Iterator[Row]:
    """Trains, and yields a row at the start and after each evaluation.

    A row has `seed`, `generation`, `env_steps`, `episodes` (finished ones), `seconds`, `seconds_compile`,
    `seconds_evaluate` (so far), `used` (part of the budget, 0 to 1), `return_mean`, `return_std`, `length_mean`.

    Args:
      agent: any of esrl's.
      values: traced values of its state that differ from the agent's own, as sigma and the learning rate; so one
        compiled agent serves many settings.
      worlds: the seed of the held-out worlds, the run's own unless given.

    Raises:
      EsrlError: no budget, or a generation without one finite return.
    """
    run = esrl.iterate(
        agent,
        env_steps=budget.env_steps,
        seconds=budget.seconds,
        generations=budget.generations,
        seed=seed,
        num_evals=budget.evaluations,
        early_evals=budget.early,
        eval_episodes=budget.episodes,
        eval_seed=worlds,
        hyperparams=values,
    )
    if one_core():
        run.clock = CoreClock()
    episodes = 0
    for generation, state, metrics in run:
        if generation == 1:
            yield _row(metrics, "start_", {"seed": seed, "generation": 0, "env_steps": 0, "episodes": 0, "used": 0.0})
        episodes += int(metrics.get("episodes", agent.plan.lanes))
        if "eval_return_mean" in metrics:
            counts = {"seed": seed, "generation": generation, "env_steps": metrics["env_steps"], "episodes": episodes}
            yield _row(metrics, "eval_", {**counts, "used": round(run.progress(state), 4)})


def _row(metrics: Row, scores: str, counts: Row) -> Row:
    """A row from a generation's metrics; those of the start have the seconds of the first generation's end."""
    times = {
        "seconds": "seconds_training",
        "seconds_compile": "seconds_compile",
        "seconds_evaluate": "seconds_evaluate",
    }
    spent = {name: round(metrics[own], 3) for name, own in times.items()}
    if scores == "start_":
        spent["seconds"] = 0.0
    names = ("return_mean", "return_std", "length_mean")
    return {**counts, **spent, **{name: metrics[scores + name] for name in names}}
