"""Antithetic pairs against leave-one-out at equal evaluations (claims/run.py)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from esrl.algorithms import shaping
from esrl.core.types import Array, Key
from esrl.perturbation import noise
from experiments.claims.core import BOTH, DENSE, ONE, Effort, direction, gradient, label, matrix, repeat, row
from experiments.claims.theory import antithetic_error, leave_one_out_error
from experiments.lab.record import Row

SIZE, EVALUATIONS, OFFSET = 8, 32, 5.0
SETTINGS = {  # fitness: (weight of the even part |W|^2, standard deviation of each evaluation's noise, sigma)
    "linear": (0.0, 0.0, 1.0),
    "quadratic, mild": (0.05, 0.0, 1.0),
    "quadratic, strong": (0.5, 0.0, 1.0),
    "quadratic, strong, small sigma": (0.5, 0.0, 0.1),
    "noisy linear": (0.0, 1.0, 1.0),
    "noisy linear, small sigma": (0.0, 1.0, 0.1),
    "noisy quadratic": (0.05, 1.0, 1.0),
}
SCHEMES = {"antithetic": (BOTH, shaping.none()), "leave one out": (ONE, shaping.leave_one_out())}


def antithetic(effort: Effort) -> list[Row]:
    """Squared errors at W = 0 of `<G, W> + c |W|^2 + noise + offset`, |G| = 1, with 32 evaluations."""
    rows, goal = [], direction(SIZE, SIZE)
    values = jnp.array(list(SETTINGS.values()))
    for rank in (DENSE, 1):
        leaf, errors = matrix(SIZE, SIZE, rank), {}
        for scheme, (signs, shape) in SCHEMES.items():

            def one(
                key: Key,
                leaf: noise.Leaf = leaf,
                signs: tuple[float, ...] = signs,
                shape: shaping.Shaping = shape,
            ) -> Array:
                def error(setting: Array) -> Array:
                    even, spread, sigma = setting

                    def fitness(w: Array, key: Key) -> Array:
                        own = spread * jax.random.normal(key)
                        return jnp.sum(goal * w) + even * jnp.sum(w**2) + own + OFFSET

                    pairs = EVALUATIONS // len(signs)
                    found = gradient(key, leaf, fitness, 0 * goal, pairs=pairs, sigma=sigma, signs=signs, shape=shape)
                    return jnp.sum((found - goal) ** 2)

                return jax.vmap(error)(values)

            floats = 4 * len(SETTINGS) * EVALUATIONS * SIZE**2
            errors[scheme] = repeat(one, effort.count(40_000), 1000 + rank, floats)
        rows += _rows(errors, rank)
    return rows


def _rows(errors: dict[str, np.ndarray], rank: int) -> list[Row]:
    """Each scheme's error, and the ratio of both, for every fitness."""
    rows = []
    for index, (fitness, (even, spread, sigma)) in enumerate(SETTINGS.items()):
        settings = {"fitness": fitness, "m": SIZE, "n": SIZE, "rank": rank, "noise": label(rank), "sigma": sigma}
        settings |= {"even": even, "fitness_noise": spread, "evaluations": EVALUATIONS}
        given = (1.0, SIZE, SIZE, rank, EVALUATIONS, sigma, spread)
        theory = {"antithetic": antithetic_error(*given), "leave one out": leave_one_out_error(*given, even)}
        for scheme, found in errors.items():
            rows.append(row("squared error", found[:, index], theory[scheme], scheme=scheme, **settings))
        above, below = errors["leave one out"][:, index], errors["antithetic"][:, index]
        ratio = above.mean() / below.mean()
        error = ratio * float(np.hypot(*(x.std() / np.sqrt(len(x)) / x.mean() for x in (above, below))))
        wanted = theory["leave one out"] / theory["antithetic"]
        own = {**settings, "scheme": "leave one out / antithetic"}
        rows.append(row("ratio of squared errors", ratio, wanted, error=error, repeats=len(above), **own))
    return rows
