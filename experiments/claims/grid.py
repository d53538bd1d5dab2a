"""Sigma against population at equal evaluations, on a noisy quadratic (claims/run.py)."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from esrl.algorithms import shaping
from esrl.core.types import Array, Key
from esrl.perturbation import noise
from experiments.claims.core import BOTH, DENSE, ONE, Effort, gradient, label, matrix, repeat, row
from experiments.claims.theory import antithetic_error, leave_one_out_error
from experiments.lab.record import Row

SIZE, EVALUATIONS, NOISE = 8, 4096, 1.0
SIGMAS = (0.03, 0.1, 0.2, 0.4, 1.0, 3.0)
POPULATIONS = (8, 32, 128, 512)
SCHEMES = {"antithetic": (BOTH, shaping.none()), "leave one out": (ONE, shaping.leave_one_out())}


def rate_of(population: int) -> float:
    """The rate of a population: half of what is best for dense pairs without noise, the same for every sigma."""
    return 0.5 / (1 + (SIZE**2 + 1) / (population / 2))


def grid(effort: Effort) -> list[Row]:
    """Loss after 4096 evaluations of `-|W - 1|^2 / 2 + noise`, over its first value; SGD from W = 0.

    The mean loss is exactly linear in the one before: `L' = L (1 - r)^2 + r^2 error(L) / 2`, with the error of the
    estimate by `antithetic_error` or `leave_one_out_error` at |G|^2 = 2 L.
    """
    rows = []
    for rank in (DENSE, 1):
        for scheme, (signs, shape) in SCHEMES.items():
            for population in POPULATIONS:
                one = partial(_run, matrix(SIZE, SIZE, rank), signs, shape, population)
                floats = 4 * population * SIZE**2 * len(SIGMAS)
                losses = repeat(one, effort.count(48), 1100 + population, floats)
                for sigma, found in zip(SIGMAS, losses.T, strict=True):
                    settings = {"scheme": scheme, "noise": label(rank), "rank": rank, "population": population}
                    settings |= {"sigma": sigma, "rate": round(rate_of(population), 5), "evaluations": EVALUATIONS}
                    theory = expected(rank, scheme, population, sigma)
                    rows.append(row("final loss over the first", found, theory, **settings))
    return rows


def _run(leaf: noise.Leaf, signs: tuple[float, ...], shape: shaping.Shaping, population: int, key: Key) -> Array:
    """Final loss over the first for each sigma, [sigmas], with the same noise."""
    start, rate = jnp.zeros((SIZE, SIZE)), rate_of(population)

    def fitness(w: Array, key: Key) -> Array:
        return -0.5 * jnp.sum((w - 1.0) ** 2) + NOISE * jax.random.normal(key)

    def once(ws: Array, key: Key) -> tuple[Array, None]:
        def move(w: Array, sigma: Array) -> Array:
            given = {"pairs": population // len(signs), "sigma": sigma, "signs": signs, "shape": shape}
            return w + rate * gradient(key, leaf, fitness, w, **given)

        return jax.vmap(move)(ws, jnp.array(SIGMAS)), None

    steps = EVALUATIONS // population
    starts = jnp.broadcast_to(start, (len(SIGMAS), *start.shape))
    last = jax.lax.scan(once, starts, jax.random.split(key, steps))[0]
    return jnp.sum((last - 1.0) ** 2, axis=(1, 2)) / SIZE**2


def expected(rank: int, scheme: str, population: int, sigma: float) -> float:
    """The mean of the final loss over the first."""
    loss = first = SIZE**2 / 2
    rate = rate_of(population)
    for _ in range(EVALUATIONS // population):
        given = (2 * loss, SIZE, SIZE, rank, population, sigma, NOISE)
        error = antithetic_error(*given) if scheme == "antithetic" else leave_one_out_error(*given, -0.5)
        loss = loss * (1 - rate) ** 2 + rate**2 * error / 2
    return loss / first
