"""A fitness of steps: nothing to differentiate, but something for ES to climb (claims/run.py)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from esrl.algorithms import shaping
from esrl.core.types import Array, Key, seed_key
from esrl.perturbation import noise
from experiments.claims.core import DENSE, Effort, gradient, label, matrix, repeat, row
from experiments.claims.theory import tail_mean
from experiments.lab.record import Row

SIZE, PAIRS, STEPS, SIGMA = 16, 64, 300, 0.5
RATES = (0.02, 0.05, 0.1)
RANKS = (1, 4, 16, DENSE)
DISTANCES = (1.0, 2.0, 3.0)  # of a step, in sigmas


def fitness(w: Array, _: Key | None = None) -> Array:
    """The share of the diagonal that is above 1: constant but for jumps."""
    return jnp.mean((jnp.diagonal(w) > 1.0).astype(jnp.float32))


def step(effort: Effort) -> list[Row]:
    """The slope of the smoothed steps at W = 0, and learning from there with Adam.

    Along the sum of all diagonal entries' directions the estimate's mean is `E[x; x > 1 / sigma] / sigma`, x an entry
    of E: far from a step, low rank sees more of it than dense noise does, since its entries have heavier tails.
    """
    rows = []
    for rank in RANKS:
        leaf = matrix(SIZE, SIZE, rank)

        def one(key: Key, leaf: noise.Leaf = leaf) -> Array:
            start = jnp.zeros((SIZE, SIZE))

            def along(sigma: Array) -> Array:
                return jnp.trace(gradient(key, leaf, fitness, start, pairs=PAIRS, sigma=sigma))

            return jax.vmap(along)(1 / jnp.array(DISTANCES))

        found = repeat(one, effort.count(3000), 70 + rank, 12 * PAIRS * SIZE**2)
        for threshold, each in zip(DISTANCES, found.T, strict=True):
            settings = {"noise": label(rank), "rank": rank, "sigma": 1 / threshold, "distance": threshold}
            theory = threshold * tail_mean(threshold, rank)
            rows.append(row("slope of the smoothed steps", each, theory, **settings))
        rows += _learning(rank, leaf, effort.seeds)
    return rows + _exact(effort.seeds)


def _learning(rank: int, leaf: noise.Leaf, seeds: int) -> list[Row]:
    """The fitness of the unperturbed W over 300 steps; the rate of a grid that two other seeds liked best."""

    def run(key: Key, rate: Array) -> Array:
        optimizer = optax.adam(1.0)

        def once(now: tuple[Array, optax.OptState], key: Key) -> tuple[tuple[Array, optax.OptState], Array]:
            w, state = now
            found = gradient(key, leaf, fitness, w, pairs=PAIRS, sigma=SIGMA, shape=shaping.centred_rank())
            update, state = optimizer.update(-found, state, w)
            w = w + rate * update
            return (w, state), fitness(w)

        start = jnp.zeros((SIZE, SIZE))
        return jax.lax.scan(once, (start, optimizer.init(start)), jax.random.split(key, STEPS))[1]

    play = jax.jit(jax.vmap(jax.vmap(run, (0, None)), (None, 0)))  # [rates, seeds, steps]
    curves = np.asarray(play(jax.random.split(seed_key(80), seeds + 2), jnp.array(RATES)))
    best = int(np.argmax(curves[:, :2].mean((1, 2))))
    settings = {"noise": label(rank), "rank": rank, "sigma": SIGMA, "rate": RATES[best], "pairs": PAIRS}
    rows = [row("fitness", curves[best, 2:, at - 1], step=at, **settings) for at in range(20, STEPS + 1, 20)]
    reached = np.where(curves[best, 2:] >= 0.99, np.arange(1, STEPS + 1), STEPS).min(axis=1)
    solved = (curves[best, 2:] >= 0.99).any(axis=1).astype(float)
    rows.append(row("iterations to all steps climbed", reached, **settings))
    return [*rows, row("share of runs that climb all steps", solved, **settings)]


def _exact(seeds: int) -> list[Row]:
    """SGD with the exact gradient, from random starts: it stays where it is."""
    starts = 0.3 * jax.random.normal(seed_key(81), (seeds, SIZE, SIZE))

    def run(start: Array) -> Array:
        optimizer = optax.sgd(1.0)

        def once(now: tuple[Array, optax.OptState], _: None) -> tuple[tuple[Array, optax.OptState], None]:
            w, state = now
            update, state = optimizer.update(jax.grad(lambda w: -fitness(w))(w), state, w)
            return (optax.apply_updates(w, update), state), None

        (w, _), _ = jax.lax.scan(once, (start, optimizer.init(start)), length=STEPS)
        return jnp.linalg.norm(w - start)

    moved = np.asarray(jax.jit(jax.vmap(run))(starts))
    return [row("distance that SGD moves", moved, 0.0, noise="exact gradient", rate=1.0)]
