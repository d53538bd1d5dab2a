"""Claims about learning: on quadratics, up steps, on two moons, and over sigma and population; ES against gradients."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from esrl.algorithms import shaping
from esrl.core.types import Array, Key, PyTree, seed_key
from esrl.perturbation import forward as perturb
from esrl.perturbation import noise
from esrl.perturbation.classify import classify
from experiments.claims import theory
from experiments.claims.error import SCHEMES
from experiments.claims.estimator import BOTH, DENSE, Effort, gradient, label, matrix, ranked, repeat, row
from experiments.lab.store import Row

EXACT = {"noise": "exact gradient", "rank": ""}
SIZE, PAIRS = 16, 32  # of the matrix, and of a step where nothing else is said

# ---- quadratics of condition 1, 10 and 100 --------------------------------------------------------------------------

TOLERANCE, LIMIT = 0.001, 4000
RATES = (1.8, 1.0, 0.6, 0.3, 0.15, 0.08, 0.04)  # over the largest curvature, which is 1
METHODS = (1, 2, 4, DENSE, None)  # None is the exact gradient


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
            counts = np.asarray(tune(jax.random.split(seed_key(50), 2), curvature, jnp.array(RATES)))
            rate = RATES[int(np.argmin(np.median(counts, axis=1)))]
            given = partial(alone, curvature=curvature, rate=jnp.float32(rate))
            found, seconds = _timed(given, effort.seeds)
            settings: Row = {"condition": condition, **_method(rank, rate)}
            aim = math.log(TOLERANCE) / math.log(step_factor(rank, rate)) if condition == 1 and rate != 1.0 else None
            rows += [
                row("iterations", found, aim, basis="leading order", **settings),
                row("evaluations", found * _cost(rank), **settings),
                row("seconds", seconds, **settings),
                row("share of runs that reach the tolerance", (found < LIMIT).astype(float), **settings),
            ]
    return rows


def _method(rank: int | None, rate: float) -> Row:
    """The columns of a method."""
    return {**(EXACT if rank is None else ranked(rank)), "rate": rate, "pairs": "" if rank is None else PAIRS}


def _cost(rank: int | None) -> int:
    """Evaluations of a step."""
    return 3 if rank is None else 2 * PAIRS


def _timed(run: Callable[[Key], Array], seeds: int) -> tuple[np.ndarray, np.ndarray]:
    """What each seed finds, and the seconds that it takes, once the function is compiled."""
    jax.block_until_ready(run(seed_key(0)))
    found, seconds = [], []
    for seed in range(seeds):
        begun = time.perf_counter()
        found.append(np.asarray(run(seed_key(seed))))
        seconds.append(time.perf_counter() - begun)
    return np.array(found), np.array(seconds)


def solver(rank: int | None) -> Callable[[Key, Array, Array], Array]:
    """`run(key, curvature, rate) -> iterations`; one that diverges has LIMIT."""
    leaf, optimizer = matrix(SIZE, SIZE, rank or DENSE), optax.sgd(1.0)

    def run(key: Key, curvature: Array, rate: Array) -> Array:
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
        return jnp.where(loss(w) / first <= TOLERANCE, count, LIMIT)

    return run


def step_factor(rank: int | None, rate: float) -> float:
    """E of the loss after a step over that before, condition 1: `1 - 2 r + r^2 (1 + error / P)`."""
    own = 0.0 if rank is None else theory.error(SIZE, SIZE, rank) / PAIRS
    return 1 - 2 * rate + rate**2 * (1 + own)


def _one_step(effort: Effort) -> list[Row]:
    """One step at condition 1, whose mean theory has exactly."""
    rows, rate = [], 0.1

    def one(key: Key, leaf: noise.Leaf) -> Array:
        start = jnp.zeros((SIZE, SIZE))
        found = gradient(key, leaf, lambda w, _: -0.5 * jnp.sum((w - 1.0) ** 2), start, pairs=PAIRS, sigma=0.1)
        return jnp.sum((rate * found - 1.0) ** 2) / SIZE**2

    for rank in (1, 2, 4, DENSE):
        given = partial(one, leaf=matrix(SIZE, SIZE, rank))
        found = repeat(given, effort.count(2000), 60 + rank, 4 * PAIRS * SIZE**2)
        settings = {"condition": 1, **_method(rank, rate)}
        rows.append(row("loss after one step over the first", found, step_factor(rank, rate), **settings))
    return rows


# ---- a fitness of steps: nothing to differentiate, but something to climb -------------------------------------------

STEPS, STEP_PAIRS, STEP_SIGMA, STEP_RATES = 300, 64, 0.5, (0.02, 0.05, 0.1)
DISTANCES = (1.0, 2.0, 3.0)  # of a step, in sigmas


def climbed(w: Array, _: Key | None = None) -> Array:
    """The share of the diagonal that is above 1: constant but for jumps."""
    return jnp.mean((jnp.diagonal(w) > 1.0).astype(jnp.float32))


def step(effort: Effort) -> list[Row]:
    """The slope of the smoothed steps at W = 0, and learning from there with Adam.

    Along the sum of all diagonal entries' directions the estimate's mean is `E[x; x > 1 / sigma] / sigma`, x an entry
    of E: far from a step, low rank sees more of it than dense noise does, since its entries have heavier tails.
    """
    rows = []

    def one(key: Key, leaf: noise.Leaf) -> Array:
        def along(sigma: Array) -> Array:
            start = jnp.zeros((SIZE, SIZE))
            return jnp.trace(gradient(key, leaf, climbed, start, pairs=STEP_PAIRS, sigma=sigma))

        return jax.vmap(along)(1 / jnp.array(DISTANCES))

    for rank in (1, 4, 16, DENSE):
        leaf = matrix(SIZE, SIZE, rank)
        found = repeat(partial(one, leaf=leaf), effort.count(3000), 70 + rank, 12 * STEP_PAIRS * SIZE**2)
        for threshold, each in zip(DISTANCES, found.T, strict=True):
            settings: Row = {**ranked(rank), "sigma": 1 / threshold, "distance": threshold}
            aim = threshold * theory.tail_mean(threshold, rank)
            rows.append(row("slope of the smoothed steps", each, aim, **settings))
        rows += _climbing(rank, leaf, effort.seeds)
    return [*rows, _exact(effort.seeds)]


def _climbing(rank: int, leaf: noise.Leaf, seeds: int) -> list[Row]:
    """The fitness of the unperturbed W over 300 steps; the rate of a grid that two other seeds liked best."""

    def run(key: Key, rate: Array) -> Array:
        optimizer = optax.adam(1.0)

        def once(now: tuple[Array, optax.OptState], key: Key) -> tuple[tuple[Array, optax.OptState], Array]:
            w, state = now
            ranks = shaping.centered_rank()
            found = gradient(key, leaf, climbed, w, pairs=STEP_PAIRS, sigma=STEP_SIGMA, shape=ranks)
            update, state = optimizer.update(-found, state, w)
            w = w + rate * update
            return (w, state), climbed(w)

        start = jnp.zeros((SIZE, SIZE))
        return jax.lax.scan(once, (start, optimizer.init(start)), jax.random.split(key, STEPS))[1]

    play = jax.jit(jax.vmap(jax.vmap(run, (0, None)), (None, 0)))  # [rates, seeds, steps]
    curves = np.asarray(play(jax.random.split(seed_key(80), seeds + 2), jnp.array(STEP_RATES)))
    best = int(np.argmax(curves[:, :2].mean((1, 2))))
    settings: Row = {**ranked(rank), "sigma": STEP_SIGMA, "rate": STEP_RATES[best], "pairs": STEP_PAIRS}
    rows = [row("fitness", curves[best, 2:, at - 1], step=at, **settings) for at in range(20, STEPS + 1, 20)]
    there = curves[best, 2:] >= 0.99
    reached = np.where(there, np.arange(1, STEPS + 1), STEPS).min(axis=1)
    rows.append(row("iterations to all steps climbed", reached, **settings))
    return [*rows, row("share of runs that climb all steps", there.any(axis=1).astype(float), **settings)]


def _exact(seeds: int) -> Row:
    """SGD with the exact gradient, from random starts: it stays where it is."""
    starts = 0.3 * jax.random.normal(seed_key(81), (seeds, SIZE, SIZE))

    def run(start: Array) -> Array:
        optimizer = optax.sgd(1.0)

        def once(now: tuple[Array, optax.OptState], _: None) -> tuple[tuple[Array, optax.OptState], None]:
            w, state = now
            update, state = optimizer.update(jax.grad(lambda w: -climbed(w))(w), state, w)
            return (optax.apply_updates(w, update), state), None

        (w, _), _ = jax.lax.scan(once, (start, optimizer.init(start)), length=STEPS)
        return jnp.linalg.norm(w - start)

    moved = np.asarray(jax.jit(jax.vmap(run))(starts))
    return row("distance that SGD moves", moved, 0.0, noise=EXACT["noise"], rate=1.0)


# ---- two moons with a small network ---------------------------------------------------------------------------------

TRAIN, HELD_OUT, MOON_SIGMA, MOON_STEPS, AIM = 128, 1024, 0.1, 400, 0.97
MOON_RATES = (0.003, 0.01, 0.03, 0.1)


class Network(nn.Module):
    """Two hidden layers of 32 and one output, the logit of the second moon."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for width in (32, 32):
            x = nn.tanh(nn.Dense(width)(x))
        return nn.Dense(1)(x)[..., 0]


def two_moons(count: int, seed: int, spread: float = 0.1) -> tuple[Array, Array]:
    """Points [count, 2] of two half circles that interlock, with normal noise, and labels [count] of 0 and 1."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    angles = random.uniform(0, math.pi, count)
    upper = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    lower = np.stack([1 - np.cos(angles), 0.5 - np.sin(angles)], axis=1)
    points = np.where(labels[:, None] == 1, lower, upper) + spread * random.standard_normal((count, 2))
    return jnp.asarray(points, jnp.float32), jnp.asarray(labels, jnp.float32)


def moons(effort: Effort) -> list[Row]:
    """Held-out accuracy over steps, and steps, evaluations and seconds to 97 %, all with Adam and one grid of rates.

    An evaluation is a forward pass of the 128 points; a backward pass counts as two. Members are played by esrl's
    perturbed forward. The rate is what two seeds liked best (mean accuracy over all steps), the rows are of others.
    """
    rows = []
    for rank in (1, 4, DENSE, None):
        run = learner(rank)
        play = jax.jit(jax.vmap(jax.vmap(run, (0, None)), (None, 0)))  # [rates, seeds, steps]
        tuned = np.asarray(play(jax.random.split(seed_key(90), 2), jnp.array(MOON_RATES)))
        rate = MOON_RATES[int(np.argmax(tuned.mean((1, 2))))]
        curves, seconds = _timed(partial(jax.jit(run), rate=jnp.float32(rate)), effort.seeds)
        rows += _accuracies(rank, rate, curves, seconds)
    return rows


def learner(rank: int | None) -> Callable[[Key, Array], Array]:
    """`run(key, rate) -> held-out accuracies [steps]`."""
    network = Network()
    apply: Callable[[PyTree, Array], Array] = network.apply  # type: ignore[assignment]  # it changes no variables
    points, labels = two_moons(TRAIN, 0)
    held_points, held_labels = two_moons(HELD_OUT, 1)
    shapes = jax.eval_shape(network.init, jax.eval_shape(lambda: seed_key(0)), points[0])
    around = noise.low_rank(rank) if rank else noise.dense()
    leaves = around.plan(classify(apply, shapes, points[0]))
    forward = perturb.population(apply, leaves)
    shape, optimizer = shaping.z_score(), optax.adam(1.0)

    def loss(logits: Array) -> Array:
        return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, jnp.broadcast_to(labels, logits.shape)), axis=-1)

    def estimate(params: PyTree, key: Key) -> PyTree:
        eps = around.sample(key, leaves, jnp.arange(PAIRS))
        lanes = jnp.tile(points, (PAIRS * len(BOTH), 1))  # [P S E, 2]: an "episode" for each point
        logits = forward(params, eps, MOON_SIGMA * jnp.array(BOTH), lanes).reshape(PAIRS, len(BOTH), TRAIN)
        weights = shape(-loss(logits)) @ jnp.array(BOTH)
        total = around.weighted_sum(weights, eps, leaves)
        return jax.tree.unflatten(jax.tree.structure(params), [-x / (PAIRS * len(BOTH) * MOON_SIGMA) for x in total])

    def run(key: Key, rate: Array) -> Array:
        def once(now: tuple[PyTree, Any], key: Key) -> tuple[tuple[PyTree, Any], Array]:
            params, state = now
            if rank is None:
                slope = jax.grad(lambda params: loss(apply(params, points)))(params)
            else:
                slope = estimate(params, key)
            update, state = optimizer.update(slope, state, params)
            params = optax.apply_updates(params, jax.tree.map(lambda u: rate * u, update))
            right = (apply(params, held_points) > 0) == (held_labels > 0.5)
            return (params, state), jnp.mean(right.astype(jnp.float32))

        params = network.init(jax.random.fold_in(key, 0), points[0])
        keys = jax.random.split(jax.random.fold_in(key, 1), MOON_STEPS)
        return jax.lax.scan(once, (params, optimizer.init(params)), keys)[1]

    return run


def _accuracies(rank: int | None, rate: float, curves: np.ndarray, seconds: np.ndarray) -> list[Row]:
    settings, cost = _method(rank, rate), _cost(rank)
    rows = []  # of about as many steps in each stretch of the logarithm
    for at in sorted({*np.unique(np.geomspace(1, MOON_STEPS, 24).astype(int)), MOON_STEPS}):
        own: Row = {**settings, "step": int(at), "step_evaluations": int(at) * cost}
        own["step_seconds"] = round(float(np.median(seconds)) * at / MOON_STEPS, 6)
        rows.append(row("held-out accuracy", curves[:, at - 1], **own))
    good = curves >= AIM
    reached = good.any(axis=1)
    steps = np.where(reached, good.argmax(axis=1) + 1, MOON_STEPS)
    return [
        *rows,
        row("share of runs that reach 97 %", reached.astype(float), **settings),
        row("steps to 97 %", steps, **settings),
        row("evaluations to 97 %", steps * cost, **settings),
        row("seconds to 97 %", steps * seconds / MOON_STEPS, **settings),
    ]


# ---- sigma against population, at equal evaluations, on a noisy quadratic -------------------------------------------

GRID_SIZE, EVALUATIONS, NOISE = 8, 4096, 1.0
SIGMAS = (0.03, 0.1, 0.2, 0.4, 1.0, 3.0)
POPULATIONS = (8, 32, 128, 512)


def rate_of(population: int) -> float:
    """The rate of a population: half of what is best for dense pairs without noise, the same for every sigma."""
    return 0.5 / (1 + (GRID_SIZE**2 + 1) / (population / 2))


def grid(effort: Effort) -> list[Row]:
    """Loss after 4096 evaluations of `-|W - 1|^2 / 2 + noise`, over its first value; SGD from W = 0.

    The mean loss is exactly linear in the one before: `L' = L (1 - r)^2 + r^2 error(L) / 2`, with the error of the
    estimate by `antithetic_error` or `leave_one_out_error` at |G|^2 = 2 L.
    """
    rows = []
    for rank in (DENSE, 1):
        for scheme, (signs, shape) in SCHEMES.items():
            for population in POPULATIONS:
                one = partial(_descent, matrix(GRID_SIZE, GRID_SIZE, rank), signs, shape, population)
                floats = 4 * population * GRID_SIZE**2 * len(SIGMAS)
                losses = repeat(one, effort.count(48), 1100 + population, floats)
                for sigma, found in zip(SIGMAS, losses.T, strict=True):
                    settings: Row = {"scheme": scheme, "noise": label(rank), "rank": rank, "population": population}
                    settings |= {"sigma": sigma, "rate": round(rate_of(population), 5), "evaluations": EVALUATIONS}
                    aim = expected(rank, scheme, population, sigma)
                    rows.append(row("final loss over the first", found, aim, **settings))
    return rows


def _descent(leaf: noise.Leaf, signs: tuple[float, ...], shape: shaping.Shaping, population: int, key: Key) -> Array:
    """Final loss over the first for each sigma, [sigmas], with the same noise."""
    start, rate = jnp.zeros((GRID_SIZE, GRID_SIZE)), rate_of(population)

    def fitness(w: Array, key: Key) -> Array:
        return -0.5 * jnp.sum((w - 1.0) ** 2) + NOISE * jax.random.normal(key)

    def once(ws: Array, key: Key) -> tuple[Array, None]:
        def move(w: Array, sigma: Array) -> Array:
            given: Row = {"pairs": population // len(signs), "sigma": sigma, "signs": signs, "shape": shape}
            return w + rate * gradient(key, leaf, fitness, w, **given)

        return jax.vmap(move)(ws, jnp.array(SIGMAS)), None

    steps = EVALUATIONS // population
    starts = jnp.broadcast_to(start, (len(SIGMAS), *start.shape))
    last = jax.lax.scan(once, starts, jax.random.split(key, steps))[0]
    return jnp.sum((last - 1.0) ** 2, axis=(1, 2)) / GRID_SIZE**2


def expected(rank: int, scheme: str, population: int, sigma: float) -> float:
    """The mean of the final loss over the first."""
    loss = first = GRID_SIZE**2 / 2
    rate = rate_of(population)
    for _ in range(EVALUATIONS // population):
        given = (2 * loss, GRID_SIZE, GRID_SIZE, rank, population, sigma, NOISE)
        error = theory.antithetic_error(*given) if scheme == "antithetic" else theory.leave_one_out_error(*given, -0.5)
        loss = loss * (1 - rate) ** 2 + rate**2 * error / 2
    return loss / first
