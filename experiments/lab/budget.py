"""One training run under a budget of environment steps, of seconds, or of several such, scored as it goes.

Seconds are those of training alone on the clock of the wall: compiling and scoring are counted beside them, so that a
budget of seconds buys every agent the same, whatever it compiles.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

import esrl
from esrl.core.compile_time import compile_seconds
from esrl.core.types import seed_key
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

    env_steps: float = math.inf
    seconds: float = math.inf
    evaluations: int = 20
    episodes: int = 128
    generations: float = math.inf
    early: int = 0

    def due(self) -> list[float]:
        """The parts of the budget (0 to 1) after which a run is scored."""
        first = 1 / self.evaluations
        halves = [first / 2**k for k in range(self.early, 0, -1)]
        return [*halves, *(k / self.evaluations for k in range(1, self.evaluations + 1))]


def train(
    agent: esrl.Agent, budget: Budget, seed: int, values: dict[str, float] | None = None, worlds: int | None = None
) -> Iterator[tuple[Row, Any]]:
    """Trains, and yields `(row, state)` at the start and after each evaluation.

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
    if not min(budget.env_steps, budget.seconds, budget.generations) < math.inf:
        raise esrl.EsrlError("a run needs a budget: env_steps, seconds, generations, or several")
    state = agent.init(seed_key(seed))
    state = state._replace(**{k: jax.numpy.float32(v) for k, v in (values or {}).items()})
    spent = {"seconds": 0.0, "seconds_compile": 0.0, "seconds_evaluate": 0.0}
    steps = episodes = 0

    def row(used: float) -> Row:
        begun, before = time.perf_counter(), compile_seconds()
        found = esrl.evaluate(agent, state, budget.episodes, seed if worlds is None else worlds)
        compiled = compile_seconds() - before
        spent["seconds_compile"] += compiled
        spent["seconds_evaluate"] += time.perf_counter() - begun - compiled
        counts = {"seed": seed, "generation": int(state.generation), "env_steps": steps, "episodes": episodes}
        times = {k: round(v, 3) for k, v in spent.items()}
        scores = {"return_mean": found.return_mean, "return_std": found.return_std, "length_mean": found.length_mean}
        return {**counts, **times, "used": round(used, 4), **scores}

    yield row(0.0), state
    due = budget.due()
    while True:
        begun, before = time.perf_counter(), compile_seconds()
        state, metrics = jax.block_until_ready(agent.step(state))
        compiled = compile_seconds() - before
        spent["seconds_compile"] += compiled
        spent["seconds"] += time.perf_counter() - begun - compiled
        if bool(np.asarray(metrics.get("all_nonfinite", False))):
            raise esrl.EsrlError(f"generation {int(state.generation)} has not one finite return")
        steps = int(state.env_steps)
        episodes += int(np.asarray(metrics.get("episodes", agent.plan.lanes)))
        parts = steps / budget.env_steps, spent["seconds"] / budget.seconds, int(state.generation) / budget.generations
        used = min(max(parts), 1.0)
        if used >= due[0]:
            due = [part for part in due if part > used]
            yield row(used), state
        if used >= 1:
            return
