"""Claims about one estimate: its error against rank and width, on thin layers, of pairs, and with common worlds."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import esrl
from esrl.algorithms import shaping
from esrl.algorithms.es import ES, world_keys
from esrl.core.types import Array, Key, seed_key
from esrl.perturbation import noise
from experiments.claims import theory
from experiments.claims.estimator import (
    BOTH,
    DENSE,
    ONE,
    Effort,
    Fitness,
    coordinate_errors,
    direction,
    gradient,
    label,
    matrix,
    ranked,
    repeat,
    row,
    slope,
)
from experiments.lab.recipes import FORMER
from experiments.lab.store import Row

RANKS = (1, 2, 4, 8, 16, 32, 64)
PAIRS = 16  # of an estimate whose gradient is fixed
SMALL, EVALUATIONS, OFFSET = 8, 32, 5.0  # of the matrices on which pairs are compared with leave-one-out
FITNESSES = {  # name: (weight of the even part |W|^2, standard deviation of each evaluation's noise, sigma)
    "linear": (0.0, 0.0, 1.0),
    "quadratic, mild": (0.05, 0.0, 1.0),
    "quadratic, strong": (0.5, 0.0, 1.0),
    "quadratic, strong, small sigma": (0.5, 0.0, 0.1),
    "noisy linear": (0.0, 1.0, 1.0),
    "noisy linear, small sigma": (0.0, 1.0, 0.1),
    "noisy quadratic": (0.05, 1.0, 1.0),
}
SCHEMES = {"antithetic": (BOTH, shaping.none()), "leave one out": (ONE, shaping.leave_one_out())}
ENVS = ("gymnax/Pendulum-v1", "brax/inverted_pendulum")
HORIZON, SIGMA, WORLDS = 50, 0.05, 8


def error_rank(effort: Effort) -> list[Row]:
    """Squared error of the estimate against rank, and the distance of its mean from the dense one's."""
    rows = []
    for size, count in ((16, effort.count(100_000)), (64, effort.count(4000))):
        for distribution in ("normal", "rademacher"):
            rows += _errors_by_rank(size, count, distribution)
    return rows + _fixed_gradient(effort) + _bias(effort)


def _errors_by_rank(size: int, count: int, distribution: str) -> list[Row]:
    """The error on linear fitness, its excess over dense noise's theory, and the power of R in that excess."""
    settings: Row = {"fitness": "linear, every coordinate", "distribution": distribution, "m": size, "n": size}
    flat, rows, excess = theory.error(size, size, DENSE), [], []
    for rank in (DENSE, *RANKS):
        found = coordinate_errors([matrix(size, size, rank)], count, 100 + rank, distribution)
        wanted = theory.error(size, size, rank, distribution)
        rows.append(row("squared error", found, wanted, **settings, **ranked(rank)))
        if rank:
            rows.append(row("excess over dense", found - flat, wanted - flat, **settings, **ranked(rank)))
            excess.append((rank, rows[-1]["measured"], rows[-1]["standard_error"]))
    if distribution == "normal":
        power, spread = slope(*zip(*excess, strict=True))
        own: Row = {**settings, "rank": "", "noise": "all ranks", "error": spread, "repeats": len(excess)}
        rows.append(row("power of R in the excess", power, -1.0, **own))
    return rows


def _fixed_gradient(effort: Effort) -> list[Row]:
    """Antithetic pairs and one fixed G: a linear, a quadratic and a sine fitness."""
    size, count, rows = 16, effort.count(2000), []
    goal = direction(size, size)
    flat, curvature = np.asarray(goal, float), jnp.linspace(0.1, 2.0, size)[:, None]
    fitnesses: dict[str, Fitness] = {
        "linear": lambda w, _: jnp.sum(goal * w),
        "quadratic": lambda w, _: jnp.sum(goal * w) - 0.5 * jnp.sum(curvature * w**2),
        "sine": lambda w, _: jnp.sin(jnp.sum(goal * w)),
    }
    for name, fitness in fitnesses.items():
        for rank in (DENSE, 1, 4, 16):
            sine = name == "sine"
            mean = jnp.asarray(theory.sine_mean(flat, 1.0, rank), jnp.float32) if sine else goal

            def one(key: Key, leaf: noise.Leaf, mean: Array, fitness: Fitness) -> Array:
                found = gradient(key, leaf, fitness, jnp.zeros((size, size)), pairs=PAIRS)
                return PAIRS * jnp.sum((found - mean) ** 2)

            given = partial(one, leaf=matrix(size, size, rank), mean=mean, fitness=fitness)
            found = repeat(given, count, 200 + rank, PAIRS * 4 * size * size)
            wanted = theory.sine_error(flat, 1.0, rank) if sine else theory.error(size, size, rank)
            settings: Row = {"fitness": name, "distribution": "normal", "m": size, "n": size}
            rows.append(row("squared error of a pair", found, wanted, **settings, **ranked(rank)))
    return rows


def _bias(effort: Effort) -> list[Row]:
    """How far the mean of the estimate is from the dense one's, along G, for `sin <G, W>` and sigma |G| = 1."""
    size, pairs, count, rows = 16, 128, effort.count(600), []
    dense = math.exp(-0.5)  # of dense noise's mean, what is along G

    def one(key: Key, leaf: noise.Leaf, goal: Array) -> Array:
        found = gradient(key, leaf, lambda w, _: jnp.sin(jnp.sum(goal * w)), 0 * goal, pairs=pairs)
        return jnp.sum(goal * found)

    for shape in ("rank-one G", "full-rank G"):
        goal = direction(size, size, rank_one=shape == "rank-one G")
        flat, points = np.asarray(goal, float), []
        settings: Row = {"fitness": f"sine, {shape}", "distribution": "normal", "m": size, "n": size}
        for rank in (DENSE, *RANKS):
            given = partial(one, leaf=matrix(size, size, rank), goal=goal)
            found = repeat(given, count, 300 + rank, pairs * 4 * size * size) / dense - 1
            wanted = float(np.sum(flat * theory.sine_mean(flat, 1.0, rank))) / dense - 1
            rows.append(row("mean along G over dense noise's, less 1", found, wanted, **settings, **ranked(rank)))
            if rank:
                points.append((rank, -rows[-1]["measured"], rows[-1]["standard_error"], -wanted))
        ranks, measured, errors, distances = map(np.array, zip(*points, strict=True))
        if shape == "rank-one G":
            power, spread = slope(ranks, measured, errors)
            # the power of theory's distances, weighted as the measured ones are
            aim = slope(ranks, distances, errors * distances / np.maximum(measured, 1e-9))[0]
            own: Row = {**settings, "rank": "", "noise": "all ranks", "error": spread, "repeats": len(points)}
            rows.append(row("power of R in the bias", power, aim, **own))
    return rows


def error_width(effort: Effort) -> list[Row]:
    """The same error against m = n, and the cosine with the gradient at a fixed population."""
    rows, directions = [], 64

    def one(key: Key, leaf: noise.Leaf, distribution: str, goal: Array) -> Array:
        given: Row = {"pairs": directions, "distribution": distribution}
        found = gradient(key, leaf, lambda w, _: jnp.sum(goal * w), 0 * goal, **given)
        return jnp.sum(found * goal) / jnp.linalg.norm(found)

    for size in (4, 8, 16, 32, 64, 128) + ((256, 512) if effort.full else ()):
        flat = theory.error(size, size, DENSE)
        count = effort.count(min(200_000, 40_000_000 // size**2))
        few = effort.count(min(1000, 80_000_000 // (directions * size**2)))
        for rank, distribution in ((DENSE, "normal"), (1, "normal"), (4, "normal"), (1, "rademacher")):
            leaf, wanted = matrix(size, size, rank), theory.error(size, size, rank, distribution)
            settings: Row = {"distribution": distribution, "m": size, "n": size, **ranked(rank)}
            found = coordinate_errors([leaf], count, 400 + rank, distribution)
            rows.append(row("squared error", found, wanted, **settings))
            if rank:
                rows.append(row("excess relative to dense", found / flat - 1, wanted / flat - 1, **settings))
            given = partial(one, leaf=leaf, distribution=distribution, goal=direction(size, size))
            found = repeat(given, few, 500 + rank, directions * len(BOTH) * 2 * size * size)
            exact = rank == DENSE
            aim = theory.cosine(size, size, directions) if exact else 1 / math.sqrt(1 + wanted / directions)
            basis = "exact" if exact else "leading order"
            rows.append(row(f"cosine with {directions} pairs", found, aim, basis=basis, **settings))
    return rows


def thin(effort: Effort) -> list[Row]:
    """What rank 1 adds on thin layers, and what dense noise for them takes and brings."""
    rows = []
    for m, n in ((256, 2), (256, 1), (4, 32), (64, 64), (256, 256)):
        count = effort.count(min(100_000, 200_000_000 // (m * n)))
        for option in (None, 0.25):
            leaf = noise.low_rank(1, option).plan((matrix(m, n),))[0]
            settings: Row = {"layer": f"{m}x{n}", "m": m, "n": n, "thin": option or "off", "noise": label(leaf.rank)}
            found = coordinate_errors([leaf], count, 600)
            rows += _excess(found, theory.error(m, n, leaf.rank), theory.error(m, n, DENSE), leaf.num_random, settings)
            multiplications = leaf.rank * (m + n) or m * n
            rows.append(row("multiplications of a lane", multiplications, repeats=1, error=0.0, **settings))
    return rows + _network(effort.count(3000))


def _excess(found: Any, wanted: float, flat: float, floats: int, settings: Row) -> list[Row]:
    """A layer's or network's error, the same relative to dense noise's, and the random numbers of a perturbation."""
    return [
        row("squared error", found, wanted, **settings),
        row("excess relative to dense", found / flat - 1, wanted / flat - 1, **settings),
        row("numbers of a perturbation", floats, repeats=1, error=0.0, **settings),
    ]


def _network(count: int) -> list[Row]:
    """The same in a network of 4x256, 256x256 and 256x2, a third of |G|^2 in each matrix."""
    shapes, rows = ((4, 256), (256, 256), (256, 2)), []
    matrices = [matrix(m, n) for m, n in shapes]
    spaces = {"off": noise.low_rank(1), 0.25: noise.low_rank(1, 0.25), "all dense": noise.dense()}
    flat = sum(m * n for m, n in shapes) + 1
    for option, around in spaces.items():
        leaves = around.plan(matrices)
        settings: Row = {"layer": "network 4-256-256-2", "m": "", "n": "", "thin": option}
        settings["noise"] = ", ".join(label(leaf.rank) for leaf in leaves)
        floats = sum(leaf.num_random for leaf in leaves)
        found, wanted = coordinate_errors(leaves, count, 700), theory.network_error(list(leaves))
        rows += _excess(found, wanted, flat, floats, settings)
    return rows


# ---- antithetic pairs against leave-one-out, at equal evaluations ---------------------------------------------------


def antithetic(effort: Effort) -> list[Row]:
    """Squared errors at W = 0 of `<G, W> + c |W|^2 + noise + offset`, |G| = 1, with 32 evaluations."""
    rows, goal = [], direction(SMALL, SMALL)
    values = jnp.array(list(FITNESSES.values()))

    def one(key: Key, leaf: noise.Leaf, signs: tuple[float, ...], shape: shaping.Shaping) -> Array:
        def error(setting: Array) -> Array:
            even, spread, sigma = setting

            def fitness(w: Array, key: Key) -> Array:
                own = spread * jax.random.normal(key)
                return jnp.sum(goal * w) + even * jnp.sum(w**2) + own + OFFSET

            pairs = EVALUATIONS // len(signs)
            found = gradient(key, leaf, fitness, 0 * goal, pairs=pairs, sigma=sigma, signs=signs, shape=shape)
            return jnp.sum((found - goal) ** 2)

        return jax.vmap(error)(values)

    for rank in (DENSE, 1):
        errors, floats = {}, 4 * len(FITNESSES) * EVALUATIONS * SMALL**2
        for scheme, (signs, shape) in SCHEMES.items():
            given = partial(one, leaf=matrix(SMALL, SMALL, rank), signs=signs, shape=shape)
            errors[scheme] = repeat(given, effort.count(40_000), 1000 + rank, floats)
        rows += _schemes(errors, rank)
    return rows


def _schemes(errors: dict[str, np.ndarray], rank: int) -> list[Row]:
    """Each scheme's error, and the ratio of both, for every fitness."""
    rows = []
    for index, (fitness, (even, spread, sigma)) in enumerate(FITNESSES.items()):
        settings: Row = {"fitness": fitness, "m": SMALL, "n": SMALL, **ranked(rank), "sigma": sigma}
        settings |= {"even": even, "fitness_noise": spread, "evaluations": EVALUATIONS}
        given = (1.0, SMALL, SMALL, rank, EVALUATIONS, sigma, spread)
        wanted = {"antithetic": theory.antithetic_error(*given)}
        wanted["leave one out"] = theory.leave_one_out_error(*given, even)
        for scheme, found in errors.items():
            rows.append(row("squared error", found[:, index], wanted[scheme], scheme=scheme, **settings))
        above, below = errors["leave one out"][:, index], errors["antithetic"][:, index]
        ratio = above.mean() / below.mean()
        error = ratio * float(np.hypot(*(x.std() / np.sqrt(len(x)) / x.mean() for x in (above, below))))
        own: Row = {**settings, "scheme": "leave one out / antithetic", "error": error, "repeats": len(above)}
        rows.append(row("ratio of squared errors", ratio, wanted["leave one out"] / wanted["antithetic"], **own))
    return rows


# ---- common random numbers ------------------------------------------------------------------------------------------


def crn(effort: Effort) -> list[Row]:
    """What it brings that both members of a pair see the same worlds, at the network's random initial parameters."""
    rows = []
    for env in ENVS:
        returns, projections = play(env, effort.count(256, least=64))
        rows += _differences(env, returns) + _projections(env, projections)
    return rows


def play(env: str, pairs: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns [P, S, K] of the same pairs in K worlds, with common random numbers "on" and "off"; and projections.

    Off, a pair's second member sees the worlds of keys of its own. Projections [P, K] are each pair's part of the
    gradient estimate along the gradient that other pairs estimate, over all worlds.
    """
    made = esrl.make(env, max_episode_steps=HORIZON)
    network = esrl.mlp(hidden=(16, 16))
    options = FORMER | {"sigma": SIGMA, "normalize_observations": False}
    setup: ES = esrl.eggroll(made, network, population=4 * pairs, **options).config
    params = setup.policy.init(seed_key(3))

    @jax.jit
    def both(key: Key) -> tuple[Array, Array, list[Any]]:
        ids = jnp.arange(2 * pairs)
        eps = setup.draw(jax.random.fold_in(key, 0), ids)
        same = world_keys(jax.random.fold_in(key, 1), ids, 2, WORLDS)
        other = world_keys(jax.random.fold_in(key, 2), ids, 1, WORLDS)
        keys = jnp.concatenate([same, other], axis=1)  # [P, 3, K]: the pair's world, again, and another
        context = ((params, SIGMA * jnp.array(BOTH), None), eps)
        on = setup.runner.episodes(setup.act, context, keys[:, :2], setup.policy.carry, None).returns
        off = setup.runner.episodes(setup.act, context, keys[:, ::2], setup.policy.carry, None).returns
        return on, off, eps

    on, off, eps = both(seed_key(4))
    returns = {"on": np.asarray(on, float)[:pairs], "off": np.asarray(off, float)[:pairs]}
    along = _projected(setup, eps, np.asarray(on[:, 0] - on[:, 1]).mean(1), pairs)  # [P]
    return returns, {name: along[:, None] * (x[:, 0] - x[:, 1]) / (2 * SIGMA) for name, x in returns.items()}


def _projected(setup: ES, eps: list[Any], differences: np.ndarray, pairs: int) -> np.ndarray:
    """`<u, E_p>` of the first pairs, u the direction of the gradient that the other pairs estimate."""
    others = jnp.where(jnp.arange(2 * pairs) < pairs, 0.0, jnp.asarray(differences, jnp.float32))
    total = setup.noise.weighted_sum(others, eps, setup.leaves)
    norm = jnp.sqrt(sum(jnp.sum(x**2) for x in total))
    # <u, E_p> is the derivative of <u, sum_p w_p E_p> by w_p
    inner = jax.grad(
        lambda w: sum(
            jnp.sum(u * x) for u, x in zip(total, setup.noise.weighted_sum(w, eps, setup.leaves), strict=True)
        )
    )
    return np.asarray(inner(jnp.zeros(2 * pairs)) / norm, float)[:pairs]


def _world(env: str, crn: str) -> Row:
    return {"env": env, "crn": crn, "horizon": HORIZON, "sigma": SIGMA, "worlds": WORLDS}


def _differences(env: str, returns: dict[str, np.ndarray]) -> list[Row]:
    """Var over worlds of f+ - f-, mean over pairs: (V+ + V-)(1 - rho) on, V+ + V- off.

    The theory of each has V+ + V- from the other's episodes, and rho from those with common random numbers; the
    standard error is that of the difference, pair by pair.
    """
    variances = {name: x.var(axis=2, ddof=1).sum(axis=1) for name, x in returns.items()}  # V+ + V- of each pair
    found = {name: (x[:, 0] - x[:, 1]).var(axis=1, ddof=1) for name, x in returns.items()}
    together = variances["on"] - found["on"]  # twice the covariance
    rho = float(together.mean() / variances["on"].mean())
    aims = {"on": (1 - rho) * variances["off"], "off": variances["on"]}
    rows = []
    for name in ("on", "off"):
        gap = found[name] - aims[name]
        error = float(gap.std(ddof=1) / np.sqrt(len(gap)))
        settings: Row = _world(env, name)
        own: Row = {**settings, "error": error, "repeats": len(gap)}
        rows.append(row("variance over worlds of f+ - f-", found[name].mean(), float(aims[name].mean()), **own))
        shares = (returns[name][:, 0] - returns[name][:, 1]).var(axis=0, ddof=1)
        rows.append(row("variance of f+ - f-", shares, **settings))
    spread = (together - rho * variances["on"]).std(ddof=1) / np.sqrt(len(together)) / variances["on"].mean()
    own = {**settings, "crn": "on", "error": float(spread), "repeats": len(together)}
    rows.append(row("correlation of f+ and f- over worlds", rho, **own))
    return rows


def _projections(env: str, projections: dict[str, np.ndarray]) -> list[Row]:
    """A pair's part of the estimate along the gradient, one world at a time: mean and variance.

    The variance of the estimate of P pairs is a P-th of it. Standard errors are over pairs, which are independent.
    """
    rows, squares = [], {}
    for name, each in projections.items():
        settings = _world(env, name)
        rows.append(row("mean of the estimate along the gradient", each.mean(axis=1), **settings))
        squares[name] = ((each - each.mean()) ** 2).mean(axis=1)
        rows.append(row("variance of the estimate along the gradient", squares[name], **settings))
    ratio = squares["off"].mean() / squares["on"].mean()
    gap = squares["off"] - ratio * squares["on"]
    error = float(gap.std(ddof=1) / np.sqrt(len(gap)) / squares["on"].mean())
    own: Row = {**settings, "crn": "off / on", "error": error, "repeats": len(gap)}
    rows.append(row("ratio of the estimate's variances", ratio, **own))
    return rows
