"""Quadratics of condition 1, 10 and 100: ES of every rank against the exact gradient (claims/run.py)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from esrl.core.types import Array, Key, seed_key
from experiments.claims.core import DENSE, Effort, gradient, label, matrix, repeat, row
from experiments.claims.theory import error
from experiments.lab.record import Row

SIZE, PAIRS, TOLERANCE, LIMIT = 16, 32, 0.001, 4000
RATES = (1.8, 1.0, 0.6, 0.3, 0.15, 0.08, 0.04)  # over the largest curvature, which is 1
METHODS = (1, 2, 4, DENSE, None)  # None is the exact gradient
Run = Callable[[Key, Array, Array], tuple[Array, Array]]


def quadratic(effort: Effort) -> list[Row]:
    """Iterations, evaluations and seconds until the loss is a thousandth of the first one, with optax's SGD.

    The loss is `sum_ij h_i (W_ij - 1)^2 / 2`, h from 1 down to 1 / condition in equal ratios. The rate is the best of a
    grid, the same grid for every method, by the median iterations of two seeds; the rows are of other seeds. Backward
    passes count as two evaluations, so that a step with the exact gradient takes three.
    """
    rows = _one_step(effort)
    for rank in METHODS:
        run = solver(rank)
        tune = jax.jit(jax.vmap(jax.vmap(run, (0, None, None)), (None, None, 0)))
        alone = jax.jit(run)
        for condition in (1, 10, 100):
            curvature = jnp.logspace(0, -math.log10(condition), SIZE)
            counts = np.asarray(tune(jax.random.split(seed_key(50), 2), curvature, jnp.array(RATES))[0])
            rate = RATES[int(np.argmin(np.median(counts, axis=1)))]
            alone(seed_key(0), curvature, jnp.float32(rate))[0].block_until_ready()
            rows += _rows(rank, condition, rate, alone, curvature, effort.seeds)
    return rows


def solver(rank: int | None) -> Run:
    """`run(key, curvature, rate) -> (iterations, loss over the first)`; one that diverges has LIMIT iterations."""
    leaf, optimizer = matrix(SIZE, SIZE, rank or DENSE), optax.sgd(1.0)

    def run(key: Key, curvature: Array, rate: Array) -> tuple[Array, Array]:
        def loss(w: Array) -> Array:
            return 0.5 * jnp.sum(curvature[:, None] * (w - 1.0) ** 2)

        start = jnp.zeros((SIZE, SIZE))
        first = loss(start)

        def step(now: tuple[Array, Array, optax.OptState]) -> tuple[Array, Array, optax.OptState]:
            count, w, state = now
            if rank is None:
                slope = jax.grad(loss)(w)
            else:
                own = jax.random.fold_in(key, count)
                slope = -gradient(own, leaf, lambda w, _: -loss(w), w, pairs=PAIRS, sigma=0.1)
            update, state = optimizer.update(slope, state, w)
            return count + 1, w + rate * update, state

        def going(now: tuple[Array, Array, optax.OptState]) -> Array:
            here = loss(now[1]) / first
            return (now[0] < LIMIT) & (here > TOLERANCE) & (here < 100.0)

        count, w, _ = jax.lax.while_loop(going, step, (jnp.int32(0), start, optimizer.init(start)))
        last = loss(w) / first
        return jnp.where(last <= TOLERANCE, count, LIMIT), last

    return run


def _rows(rank: int | None, condition: int, rate: float, alone: Run, curvature: Array, seeds: int) -> list[Row]:
    """What fresh seeds take; at condition 1 with the theory of a step's mean factor."""
    counts, seconds = [], []
    for seed in range(seeds):
        begun = time.perf_counter()
        counts.append(int(alone(seed_key(seed), curvature, jnp.float32(rate))[0]))
        seconds.append(time.perf_counter() - begun)
    name = "exact gradient" if rank is None else label(rank)
    settings = {"condition": condition, "noise": name, "rank": "" if rank is None else rank, "rate": rate}
    settings |= {"pairs": "" if rank is None else PAIRS}
    theory = None
    if condition == 1 and rate != 1.0:
        theory = math.log(TOLERANCE) / math.log(step_factor(rank, rate))
    cost = 3 if rank is None else 2 * PAIRS
    rows = [row("iterations", counts, theory, basis="leading order", **settings)]
    rows.append(row("evaluations", np.array(counts) * cost, **settings))
    rows.append(row("seconds", seconds, **settings))
    solved = np.array(counts) < LIMIT
    return [*rows, row("share of runs that reach the tolerance", solved.astype(float), **settings)]


def step_factor(rank: int | None, rate: float) -> float:
    """E of the loss after a step over that before, condition 1: `1 - 2 r + r^2 (1 + error / P)`."""
    own = 0.0 if rank is None else error(SIZE, SIZE, rank) / PAIRS
    return 1 - 2 * rate + rate**2 * (1 + own)


def _one_step(effort: Effort) -> list[Row]:
    """One step at condition 1, whose mean theory has exactly."""
    rows, rate = [], 0.1
    for rank in METHODS[:-1]:

        def one(key: Key, rank: int = rank) -> Array:
            start = jnp.zeros((SIZE, SIZE))
            leaf = matrix(SIZE, SIZE, rank)
            found = gradient(key, leaf, lambda w, _: -0.5 * jnp.sum((w - 1.0) ** 2), start, pairs=PAIRS, sigma=0.1)
            return jnp.sum((rate * found - 1.0) ** 2) / SIZE**2

        found = repeat(one, effort.count(2000), 60 + rank, 4 * PAIRS * SIZE**2)
        settings = {"condition": 1, "noise": label(rank), "rank": rank, "rate": rate, "pairs": PAIRS}
        rows.append(row("loss after one step over the first", found, step_factor(rank, rate), **settings))
    return rows
