"""Claims about the summed update: its rank, its spectrum, and the wrong one (claims/run.py)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from esrl.algorithms import shaping
from esrl.core.types import Array, Key
from esrl.perturbation import noise
from experiments.claims.estimator import (
    BOTH,
    DENSE,
    Effort,
    Fitness,
    direction,
    gradient,
    matrix,
    members,
    ranked,
    repeat,
    row,
    space,
)
from experiments.claims.theory import error, fourth_spectral_moment, marchenko_pastur, top_singular_value
from experiments.lab.store import Row

TOLERANCE = 2e-6  # of the largest singular value: what float32 sums leave of a zero is below


def summed(key: Key, leaf: noise.Leaf, pairs: int, used: Array | int | None = None) -> Array:
    """`sum_p w_p E_p / sqrt(P)` with weights of +1 or -1: an update of pure noise, of the first `used` pairs."""
    around = space(leaf.rank)
    eps = around.sample(jax.random.fold_in(key, 0), (leaf,), jnp.arange(pairs))
    weights = jax.random.rademacher(jax.random.fold_in(key, 1), (pairs,), jnp.float32)
    if used is not None:
        weights = jnp.where(jnp.arange(pairs) < used, weights, 0.0)
    return around.weighted_sum(weights, eps, (leaf,))[0] / math.sqrt(pairs)


def update_rank(effort: Effort) -> list[Row]:
    """The rank of the summed update against pairs and rank: min(P R, m, n)."""
    rows, numbers = [], (1, 2, 4, 8, 12, 16, 24, 48, 96)
    for m, n in ((48, 32), (32, 64)) + (((128, 256),) if effort.full else ()):
        for rank in (1, 2, 4, 8):

            def one(key: Key, leaf: noise.Leaf) -> Array:
                return jax.lax.map(lambda used: summed(key, leaf, numbers[-1], used), jnp.array(numbers))

            found = repeat(partial(one, leaf=matrix(m, n, rank)), effort.count(16), 1, numbers[-1] * rank * (m + n))
            values = np.linalg.svd(found, compute_uv=False)
            ranks = np.sum(values > TOLERANCE * values[..., :1], axis=-1)  # [repeats, numbers]
            for pairs, each in zip(numbers, ranks.T, strict=True):
                settings: Row = {"m": m, "n": n, **ranked(rank), "pairs": pairs}
                rows.append(row("rank of the update", each, min(pairs * rank, m, n), **settings))
    return rows


def spectrum(effort: Effort) -> list[Row]:
    """Singular values of the update under pure noise against those of a matrix of independent normal entries."""
    m, n = (256, 128) if effort.full else (96, 64)
    rows = []
    for rank in (1, 4, DENSE):
        for pairs in (32, 128, 512, 2048):
            leaf = matrix(m, n, rank)

            def one(key: Key, leaf: noise.Leaf = leaf, pairs: int = pairs) -> Array:
                return jnp.linalg.svd(summed(key, leaf, pairs), compute_uv=False)

            dense_floats = pairs * (leaf.num_random + (m + n) * max(rank, 1))
            values = repeat(one, effort.count(128 if rank else 24), 800 + rank + pairs, dense_floats)
            settings: Row = {"m": m, "n": n, **ranked(rank), "pairs": pairs}
            plain = m * n * (m + n + 1)
            moment = fourth_spectral_moment(m, n, pairs, rank) / plain
            rows.append(row("fourth spectral moment", np.sum(values.astype(float) ** 4, 1) / plain, moment, **settings))
            top = top_singular_value(m, n)
            rows.append(
                row("largest singular value", values[:, 0] / top, 1.0, basis="leading order (P R >> m)", **settings)
            )
            law = marchenko_pastur(np.sort(values, axis=1), m, n)
            steps = np.arange(n + 1) / n
            gaps = np.maximum(np.abs(law - steps[:-1]).max(1), np.abs(law - steps[1:]).max(1))
            rows.append(row("distance to Marchenko-Pastur (KS)", gaps, **settings))
            pooled = values.mean(0)
            for index in range(0, n, max(1, n // 32)):
                own = {**settings, "index": index}
                error = float(values[:, index].std(ddof=1) / math.sqrt(len(values)))
                rows.append(row("singular value", pooled[index], error=error, repeats=len(values), **own))
    return rows


def product_of_sums(weights: Array, eps: list[Any], leaf: noise.Leaf) -> Array:
    """The wrong update: `(sum_p w_p A_p)(sum_p w_p B_p)^T / sqrt(R)`, what one public description claims."""
    a = jnp.einsum("p,prm->rm", weights, eps[0].a)
    b = jnp.einsum("p,prn->rn", weights, eps[0].b)
    return jnp.einsum("rm,rn->mn", a, b) / math.sqrt(leaf.rank)


def wrong_gradient(
    key: Key, leaf: noise.Leaf, fitness: Fitness, w: Array, pairs: int, offset: float | None = None
) -> Array:
    """`gradient`, but with the product of sums; with an offset, of raw fitness plus it and one evaluation each."""
    around = space(leaf.rank)
    eps = around.sample(jax.random.fold_in(key, 0), (leaf,), jnp.arange(pairs))
    signs = BOTH if offset is None else BOTH[:1]
    values = jax.vmap(jax.vmap(lambda w: fitness(w, key)))(members(around, w, eps, leaf, 1.0, signs))
    weights = shaping.none()(values) @ jnp.array(signs) if offset is None else values[:, 0] + offset
    return product_of_sums(weights, eps, leaf) / (pairs * len(signs))


def wrong_update(effort: Effort) -> list[Row]:
    """The product of sums has no signal; the sum of products has.

    In `sum_ij w_i w_j A_i B_j^T` the terms i != j vanish because (A, B) and (-A, -B) are one perturbation, so that
    `E[w A] = 0` whatever the fitness; those with i = j, `E[w^2 A B^T]`, because antithetic w^2 is even in A alone. For
    raw fitness f + c they are the gradient of E[(f + c)^2]: `2 c sigma G`, which a centered fitness does not have.
    """
    size, pairs, count, rows = 16, 32, effort.count(4000), []
    goal = direction(size, size)

    def fitness(w: Array, _: Key) -> Array:
        return jnp.sum(goal * w)

    for rank in (1, 4):
        leaf, floats = matrix(size, size, rank), 4 * pairs * size * size
        settings: Row = {"m": size, "n": size, **ranked(rank), "pairs": pairs}

        right = partial(gradient, leaf=leaf, fitness=fitness, w=0 * goal, pairs=pairs)
        wrong = partial(wrong_gradient, leaf=leaf, fitness=fitness, w=0 * goal, pairs=pairs)
        raw = partial(wrong, offset=1.0)
        expected = 1 / math.sqrt(1 + error(size, size, rank) / pairs)
        aims: dict[str, tuple[Callable[[Key], Array], float, float | None]]
        aims = {"sum of products": (right, 1.0, expected), "product of sums": (wrong, 0.0, 0.0)}
        aims["product of sums, raw fitness + 1"] = (raw, 2.0, None)
        for name, (one, along, cosine) in aims.items():
            found = repeat(one, count, 900 + rank, floats)
            inner = np.einsum("kmn,mn->k", found, np.asarray(goal))
            cosines = inner / np.linalg.norm(found, axis=(1, 2))
            basis = "exact" if cosine == 0 else "leading order"
            rows.append(row("projection on the gradient", inner, along, update=name, **settings))
            rows.append(row("cosine with the gradient", cosines, cosine, basis=basis, update=name, **settings))
        rows += _curves(leaf, effort.seeds, settings)
    return rows


def _curves(leaf: noise.Leaf, seeds: int, settings: Row) -> list[Row]:
    """Loss on a quadratic over its first value, with each update's best step of a grid (normalized gradients)."""
    steps, pairs, shape = 200, settings["pairs"], leaf.shape
    rates = jnp.array([0.5, 0.2, 0.1, 0.05, 0.02])

    def fitness(w: Array, _: Key) -> Array:
        return -0.5 * jnp.sum((w - 1.0) ** 2)

    def run(key: Key, rate: Array, wrong: bool) -> Array:
        def step(w: Array, key: Key) -> tuple[Array, Array]:
            estimate = (
                wrong_gradient(key, leaf, fitness, w, pairs)
                if wrong
                else gradient(key, leaf, fitness, w, pairs=pairs, sigma=1.0)
            )
            w = w + rate * estimate / (jnp.linalg.norm(estimate) + 1e-12)
            return w, -fitness(w, key)

        losses = jax.lax.scan(step, jnp.zeros(shape), jax.random.split(key, steps))[1]
        return losses / (0.5 * math.prod(shape))

    rows = []
    for wrong, name in ((False, "sum of products"), (True, "product of sums")):
        keys = jax.random.split(jax.random.key(5, impl="threefry2x32"), seeds)
        play = jax.vmap(jax.vmap(lambda key, rate, wrong=wrong: run(key, rate, wrong), (0, None)), (None, 0))
        losses = np.asarray(jax.jit(play)(keys, rates))  # [rates, seeds, steps]
        best = losses[np.argmin(losses[:, :, -1].mean(1))]
        for step in range(19, steps, 20):
            own = {**settings, "update": name, "step": step + 1}
            rows.append(row("loss over its first value", best[:, step], **own))
    return rows
