"""What every claim is measured with: the estimate of a gradient as the library makes it, its repeats, and rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from esrl.algorithms import shaping
from esrl.core.types import Array, Key, seed_key
from esrl.perturbation import noise
from experiments.lab.store import Row

BOTH, ONE = (1.0, -1.0), (1.0,)  # the signs of an antithetic pair's members, and of a direction evaluated once
DENSE = 0  # as a rank
Fitness = Callable[[Array, Key], Array]  # of a matrix, with a key for noise of its own


class Effort(NamedTuple):
    """How much is measured: `factor` times the laptop's repeats, larger sizes when `full`, `seeds` of learning runs."""

    factor: float = 1.0
    full: bool = False
    seeds: int = 5

    def count(self, laptop: int, least: int = 8) -> int:
        """Repeats: the laptop's, times the factor."""
        return max(least, round(laptop * self.factor))


def row(
    quantity: str,
    values: Any,
    theory: float | None = None,
    *,
    error: float | None = None,
    basis: str = "exact",
    repeats: int | None = None,
    **settings: Any,
) -> Row:
    """One measured quantity.

    Args:
      quantity: its name.
      values: its repeats, or one number with its standard `error` and number of `repeats`.
      theory: what it should be; None where there is no theory.
      error: the standard error of one number.
      basis: what the theory is: "exact", or "leading order" where it leaves out smaller terms; then a large distance
        says that those matter, not that something is wrong.
      repeats: of one number.
      **settings: columns.
    """
    values = np.atleast_1d(np.asarray(values, float))
    if error is None:
        error = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
    measured = float(values.mean())
    found: Row = {"quantity": quantity, **settings, "measured": measured, "standard_error": error}
    given = theory is not None
    found |= {"theory": float(theory) if theory is not None else "", "basis": basis if given else ""}
    found |= {"z": distance(measured, float(theory), error) if theory is not None else ""}
    return found | {"repeats": repeats or len(values)}


def distance(measured: float, theory: float, error: float) -> float:
    """Standard errors between both; where nothing varies 0 if equal up to float32's rounding, else infinite."""
    if error > 0:
        return (measured - theory) / error
    equal = math.isclose(measured, theory, rel_tol=1e-6, abs_tol=1e-7)
    return 0.0 if equal else math.copysign(math.inf, measured - theory)


def slope(x: Any, y: Any, errors: Any) -> tuple[float, float]:
    """The power of y in x by weighted least squares on logarithms, and its standard error; without y up to 0."""
    x, y, errors = (np.asarray(values, float) for values in (x, y, errors))
    good = (y > 0) & (errors > 0)
    x, weights, y = np.log(x[good]), (y[good] / errors[good]) ** 2, np.log(y[good])
    centered = x - np.average(x, weights=weights)
    spread = np.sum(weights * centered**2)
    return float(np.sum(weights * centered * y) / spread), float(1 / math.sqrt(spread))


def matrix(m: int, n: int, rank: int = DENSE) -> noise.Leaf:
    """An m x n matrix with noise of this rank, also where `low_rank` would plan dense noise; DENSE is dense noise."""
    return noise.Leaf("w", (m, n), (0,), "used by dot_general", rank)


def space(rank: int, distribution: str = "normal") -> noise.Noise:
    """The library's noise space of this rank."""
    return noise.low_rank(rank, None, distribution) if rank else noise.dense(distribution)


def label(rank: int) -> str:
    """A rank in words."""
    return f"rank {rank}" if rank else "dense"


def ranked(rank: int) -> Row:
    """The columns of a rank."""
    return {"rank": rank, "noise": label(rank)}


def members(around: noise.Noise, w: Array, eps: Sequence[Any], leaf: noise.Leaf, sigma: Any, signs: Any) -> Array:
    """The matrices of a population, [P, S, m, n], by the library's own dense form."""
    stacked = [around.perturb([w], eps, (leaf,), sigma * sign)[0] for sign in signs]
    return jnp.stack(stacked, axis=1)


def gradient(
    key: Key,
    leaf: noise.Leaf,
    fitness: Fitness,
    w: Array,
    *,
    pairs: int,
    sigma: Any = 1.0,
    signs: tuple[float, ...] = BOTH,
    shape: shaping.Shaping | None = None,
    distribution: str = "normal",
) -> Array:
    """The ES estimate of the gradient at w, [m, n]: as `esrl.algorithms.es.update` makes it, of one matrix.

    Args:
      key: of the noise, and of the fitness's own.
      leaf: w's plan.
      fitness: `fitness(W, key) -> number`; every member has a key of its own.
      w: [m, n].
      pairs: P; with signs `BOTH` there are 2P evaluations, with `ONE` P.
      sigma, signs, shape, distribution: as the options of an agent; shape is `none()` unless given.
    """
    around = space(leaf.rank, distribution)
    eps = around.sample(jax.random.fold_in(key, 0), (leaf,), jnp.arange(pairs))
    population = members(around, w, eps, leaf, sigma, signs)
    keys = jax.random.split(jax.random.fold_in(key, 1), (pairs, len(signs)))
    values = jax.vmap(jax.vmap(fitness))(population, keys)
    weights = (shape or shaping.none())(values) @ jnp.array(signs)
    return around.weighted_sum(weights, eps, (leaf,))[0] / (pairs * len(signs) * sigma)


def repeat(one: Callable[[Key], Any], count: int, seed: int, floats: int = 1) -> Any:
    """`one(key)` for so many keys, stacked; as many at once as fit in 2^22 numbers, given how many one takes."""
    keys = jax.random.split(seed_key(seed), count)
    at_once = max(1, min(count, 2**22 // floats))
    found = jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=at_once))(keys)
    return jax.tree.map(np.asarray, found)


def direction(m: int, n: int, seed: int = 7, rank_one: bool = False) -> Array:
    """A matrix of norm 1: of independent normal entries, or the product of two such vectors."""
    a, b = jax.random.split(seed_key(seed))
    if rank_one:
        found = jnp.outer(jax.random.normal(a, (m,)), jax.random.normal(b, (n,)))
    else:
        found = jax.random.normal(a, (m, n))
    return found / jnp.linalg.norm(found)


def coordinate_errors(leaves: Sequence[noise.Leaf], count: int, seed: int, distribution: str = "normal") -> np.ndarray:
    """Squared errors of the estimate `<G, E> E` of one direction, each averaged over linear fitnesses, [count].

    The mean is over G = every unit vector of every leaf, leaves counting alike: theory has the same error for each, and
    the mean of all varies far less than that of one.
    """
    around = noise.dense(distribution)  # every space samples and perturbs as the leaves' ranks say
    zeros = [jnp.zeros(leaf.shape) for leaf in leaves]

    def one(key: Key) -> Array:
        eps = around.sample(key, leaves, jnp.arange(1))
        squares = jnp.stack([jnp.sum(e**2) for e in around.perturb(zeros, eps, leaves, 1.0)])
        projected = jnp.mean(squares / jnp.array([math.prod(leaf.shape) for leaf in leaves], jnp.float32))
        return projected * jnp.sum(squares) - 2 * projected + 1

    floats = sum(leaf.num_random + math.prod(leaf.shape) for leaf in leaves)
    return repeat(one, count, seed, floats)
