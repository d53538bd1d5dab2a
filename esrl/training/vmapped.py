"""Many runs in one compiled program: seeds, and values that are traced rather than compiled in."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from esrl.algorithms.agent import Agent
from esrl.core.compile_time import compile_seconds
from esrl.core.types import Array, Count, EsrlError, Key, PyTree, nearest, seed_key
from esrl.envs.base import name_of
from esrl.training.evaluation import held_out_keys, player
from esrl.training.loop import check_budget

Row = dict[str, Any]


class Many(NamedTuple):
    """What came out of many runs.

    Attributes:
      rows: one for each run and evaluation: `run`, `seed`, the values that were set, `generation`, `env_steps`,
        `seconds` and `seconds_compile` (of all runs together, so far), `eval_return_mean`, `eval_return_std`, and the
        last generation's metrics. Rows with `env_steps` 0 are of the start.
      states: the runs' final states, stacked along a new first axis; `state_of(i)` takes one out.
    """

    rows: list[Row]
    states: Any

    def state_of(self, run: int) -> Any:
        """The final state of one run, as `agent.step`, `esrl.evaluate` and the like take it."""
        return jax.tree.map(lambda x: x[run], self.states)


def train_many(
    agent: Agent,
    seeds: Sequence[int],
    *,
    hyper: dict[str, Sequence[float]] | None = None,
    env_steps: float | None = None,
    generations: int | None = None,
    evaluations: int = 20,
    evaluate_episodes: int = 128,
    at_once: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> Many:
    """Trains an agent several times in one compiled program, which holds for every seed and every traced value.

    Each run ends as `esrl.train` would end it with that seed and those values; a run that has used up its budget stands
    still while others go on.

    Args:
      agent: on a JAX environment.
      seeds: one for each run.
      hyper: for each name in `agent.pure.values` (evolution strategies: `sigma`, `learning_rate`; PPO: `learning_rate`,
        `gamma`, `gae_lambda`, `clip_eps`, `entropy_coef`, `value_coef`), a value for each run.
      env_steps, generations, evaluations, evaluate_episodes: as in `esrl.train`, for every run.
      at_once: runs that are vmapped together; the others follow. All of them unless given, but one on a CPU, where side
        by side they would only push each other out of its caches.
      progress: called after each generation with the part of their budget that the runs have used, 0 to 1, on average.

    Raises:
      EsrlError: an environment that Python steps, no seeds or budget, an unknown value, or lists of other lengths.
    """
    values = {name: [float(v) for v in given] for name, given in (hyper or {}).items()}
    _check(agent, seeds, values, env_steps, generations, at_once)
    runs = len(seeds)
    pure: Any = agent.pure
    width = at_once or (1 if jax.local_devices()[0].platform == "cpu" else runs)
    each = partial(jax.lax.map, batch_size=None if width == 1 else width)
    limit = int(min(env_steps or np.inf, 2**62)), int(min(generations or np.inf, 2**31 - 1))

    @jax.jit
    def start(keys: Key, values: dict[str, Array]) -> PyTree:
        return each(lambda x: pure.init(x[0])._replace(**x[1]), (keys, values))

    @jax.jit
    def step(states: PyTree, going: Array) -> tuple[PyTree, PyTree]:
        def one(x: tuple[PyTree, Array]) -> tuple[PyTree, PyTree]:
            state, going = x
            after, metrics = pure.step(state)
            return jax.tree.map(partial(jnp.where, going), after, state), metrics

        return each(one, (states, going))

    play = jax.jit(lambda states, keys: each(lambda x: player(agent, x[0], x[1])[0], (states, keys)))

    clock = _Clock()
    keys = jnp.stack([seed_key(seed) for seed in seeds])
    states = start(keys, {name: jnp.asarray(v, jnp.float32) for name, v in values.items()})
    worlds = jnp.stack([held_out_keys(seed, evaluate_episodes) for seed in seeds])
    known = [{"run": i, "seed": int(s), **{k: v[i] for k, v in values.items()}} for i, s in enumerate(seeds)]
    rows: list[Row] = []
    done = np.zeros(runs)
    metrics: Any = {}
    if evaluations:
        _report(rows, known, states, {}, play(states, worlds), range(runs), clock)
    while (done < 1).any():
        going = done < 1
        states, metrics = jax.block_until_ready(step(states, jnp.asarray(going)))
        used = _progress(states, limit)
        parts = max(evaluations, 1)
        due = [i for i in range(runs) if going[i] and (int(used[i] * parts) > int(done[i] * parts) or used[i] >= 1)]
        done = used
        if due:
            returns = play(states, worlds) if evaluations else None
            _report(rows, known, states, jax.device_get(metrics), returns, due, clock)
        if progress is not None:
            progress(float(used.mean()))
    return Many(rows, states)


def _progress(states: PyTree, limit: tuple[int, int]) -> np.ndarray:
    """The part of its budget that each run has used, 0 to 1."""
    steps, generations = (np.asarray(x, np.float64) for x in (_steps(states.env_steps), states.generation))
    return np.minimum(np.maximum(steps / limit[0], generations / limit[1]), 1.0)


def _steps(counts: Count) -> np.ndarray:
    return (np.asarray(counts.hi).astype(np.uint64) << np.uint64(32)) + np.asarray(counts.lo).astype(np.uint64)


def _report(
    rows: list[Row], known: list[Row], states: PyTree, metrics: PyTree, returns: Array | None, which: Any, clock: _Clock
) -> None:
    """Adds a row for each run of `which`."""
    steps, generations = _steps(states.env_steps), np.asarray(states.generation)
    scores = None if returns is None else np.asarray(returns, np.float64)
    for i in which:
        row: Row = {name: np.asarray(value)[i].item() for name, value in metrics.items()}
        row |= {**known[i], "generation": int(generations[i]), "env_steps": int(steps[i]), **clock.row()}
        if scores is not None:
            row |= {"eval_return_mean": float(scores[i].mean()), "eval_return_std": float(scores[i].std())}
        rows.append(row)


class _Clock:
    """Seconds since it was made, and those of them that went into compiling."""

    def __init__(self) -> None:
        self._begun, self._compiled = time.perf_counter(), compile_seconds()

    def row(self) -> Row:
        """Both, as a row has them."""
        return {
            "seconds": round(time.perf_counter() - self._begun, 3),
            "seconds_compile": round(compile_seconds() - self._compiled, 3),
        }


def _check(
    agent: Agent,
    seeds: Sequence[int],
    hyper: dict[str, list[float]],
    env_steps: float | None,
    generations: int | None,
    at_once: int | None,
) -> None:
    if agent.pure is None:
        raise EsrlError(
            f"{name_of(agent.env)} is stepped by Python, which one program cannot hold; use esrl.train for each seed"
        )
    if not seeds:
        raise EsrlError("no seeds are given; give one for each run, as range(5)")
    check_budget(env_steps, generations)
    if at_once is not None and at_once < 1:
        raise EsrlError(f"at_once is {at_once}, but must be at least 1")
    for name, values in hyper.items():
        if name not in agent.pure.values:
            raise EsrlError(f"{name!r} is no traced value of {agent.name}{nearest(name, agent.pure.values)}")
        if len(values) != len(seeds):
            raise EsrlError(f"{name} has {len(values)} values for {len(seeds)} runs; give one for each run")
