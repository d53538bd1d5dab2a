"""Claims about the error of one estimate: against rank, against width, and on thin layers (claims/run.py)."""

from __future__ import annotations

import math
from functools import partial

import jax.numpy as jnp
import numpy as np

from esrl.core.types import Array, Key
from esrl.perturbation import noise
from experiments.claims.core import (
    BOTH,
    DENSE,
    Effort,
    Fitness,
    coordinate_errors,
    direction,
    gradient,
    label,
    matrix,
    repeat,
    row,
    slope,
)
from experiments.claims.theory import cosine, error, network_error, sine_error, sine_mean
from experiments.lab.record import Row

RANKS = (1, 2, 4, 8, 16, 32, 64)
PAIRS = 16


def error_rank(effort: Effort) -> list[Row]:
    """Squared error of the estimate against rank, and the distance of its mean from the dense one's."""
    rows = []
    sizes = {16: effort.count(100_000), 64: effort.count(4000)}
    for size, count in sizes.items():
        for distribution in ("normal", "rademacher"):
            rows += _errors_by_rank(size, count, distribution)
    rows += _fixed_gradient(effort)
    return rows + _bias(effort)


def _errors_by_rank(size: int, count: int, distribution: str) -> list[Row]:
    """The error on linear fitness, its excess over dense noise's theory, and the power of R in that excess."""
    settings = {"fitness": "linear, every coordinate", "distribution": distribution, "m": size, "n": size}
    flat, rows, excess = error(size, size, DENSE), [], []
    for rank in (DENSE, *RANKS):
        found = coordinate_errors([matrix(size, size, rank)], count, 100 + rank, distribution)
        theory = error(size, size, rank, distribution)
        own = {**settings, "rank": rank, "noise": label(rank)}
        rows.append(row("squared error", found, theory, **own))
        if rank:
            rows.append(row("excess over dense", found - flat, theory - flat, **own))
            excess.append((rank, rows[-1]["measured"], rows[-1]["standard_error"]))
    if distribution == "normal":
        power, spread = slope(*zip(*excess, strict=True))
        own = {**settings, "rank": "", "noise": "all ranks"}
        rows.append(row("power of R in the excess", power, -1.0, error=spread, repeats=len(excess), **own))
    return rows


def _fixed_gradient(effort: Effort) -> list[Row]:
    """Antithetic pairs and one fixed G: a linear, a quadratic and a sine fitness."""
    size, count, rows = 16, effort.count(2000), []
    goal = direction(size, size)
    curvature = jnp.linspace(0.1, 2.0, size)[:, None]
    fitnesses = {
        "linear": lambda w, _: jnp.sum(goal * w),
        "quadratic": lambda w, _: jnp.sum(goal * w) - 0.5 * jnp.sum(curvature * w**2),
        "sine": lambda w, _: jnp.sin(jnp.sum(goal * w)),
    }
    for name, fitness in fitnesses.items():
        for rank in (DENSE, 1, 4, 16):
            leaf = matrix(size, size, rank)
            mean = jnp.asarray(sine_mean(np.asarray(goal, float), 1.0, rank), jnp.float32) if name == "sine" else goal

            def one(key: Key, leaf: noise.Leaf = leaf, mean: Array = mean, fitness: Fitness = fitness) -> Array:
                found = gradient(key, leaf, fitness, jnp.zeros((size, size)), pairs=PAIRS)
                return PAIRS * jnp.sum((found - mean) ** 2)

            theory = sine_error(np.asarray(goal, float), 1.0, rank) if name == "sine" else error(size, size, rank)
            found = repeat(one, count, 200 + rank, PAIRS * 4 * size * size)
            settings = {"fitness": name, "distribution": "normal", "m": size, "n": size}
            rows.append(row("squared error of a pair", found, theory, **settings, rank=rank, noise=label(rank)))
    return rows


def _bias(effort: Effort) -> list[Row]:
    """How far the mean of the estimate is from the dense one's, along G, for `sin <G, W>` and sigma |G| = 1."""
    size, count, rows = 16, effort.count(600), []
    pairs = 128
    for shape in ("rank-one G", "full-rank G"):
        goal = direction(size, size, rank_one=shape == "rank-one G")
        flat = np.asarray(goal, float)
        dense, points = math.exp(-0.5), []
        settings = {"fitness": f"sine, {shape}", "distribution": "normal", "m": size, "n": size}
        for rank in (DENSE, *RANKS):

            def one(key: Key, leaf: noise.Leaf, goal: Array) -> Array:
                found = gradient(key, leaf, lambda w, _: jnp.sin(jnp.sum(goal * w)), 0 * goal, pairs=pairs)
                return jnp.sum(goal * found)

            found = (
                repeat(
                    partial(one, leaf=matrix(size, size, rank), goal=goal), count, 300 + rank, pairs * 4 * size * size
                )
                / dense
                - 1
            )
            theory = float(np.sum(flat * sine_mean(flat, 1.0, rank))) / dense - 1
            own = {**settings, "rank": rank, "noise": label(rank)}
            rows.append(row("mean along G over dense noise's, less 1", found, theory, **own))
            if rank:
                points.append((rank, -rows[-1]["measured"], rows[-1]["standard_error"], -theory))
        ranks, measured, errors, theory = zip(*points, strict=True)
        power, spread = slope(ranks, measured, errors)
        wanted = slope(ranks, theory, np.array(errors) * np.array(theory) / np.maximum(np.array(measured), 1e-9))[0]
        if shape == "rank-one G":
            own = {**settings, "rank": "", "noise": "all ranks"}
            rows.append(row("power of R in the bias", power, wanted, error=spread, repeats=len(points), **own))
    return rows


def error_width(effort: Effort) -> list[Row]:
    """The same error against m = n, and the cosine with the gradient at a fixed population."""
    rows, directions = [], 64
    for size in (4, 8, 16, 32, 64, 128) + ((256, 512) if effort.full else ()):
        flat = error(size, size, DENSE)
        count = effort.count(min(200_000, 40_000_000 // size**2))
        few = effort.count(min(1000, 80_000_000 // (directions * size**2)))
        goal = direction(size, size)
        for rank, distribution in ((DENSE, "normal"), (1, "normal"), (4, "normal"), (1, "rademacher")):
            leaf, theory = matrix(size, size, rank), error(size, size, rank, distribution)
            settings = {"distribution": distribution, "m": size, "n": size, "rank": rank, "noise": label(rank)}
            found = coordinate_errors([leaf], count, 400 + rank, distribution)
            rows.append(row("squared error", found, theory, **settings))
            if rank:
                rows.append(row("excess relative to dense", found / flat - 1, theory / flat - 1, **settings))

            def one(key: Key, leaf: noise.Leaf = leaf, distribution: str = distribution, goal: Array = goal) -> Array:
                found = gradient(
                    key, leaf, lambda w, _: jnp.sum(goal * w), 0 * goal, pairs=directions, distribution=distribution
                )
                return jnp.sum(found * goal) / jnp.linalg.norm(found)

            found = repeat(one, few, 500 + rank, directions * len(BOTH) * 2 * size * size)
            exact = rank == DENSE
            theory = cosine(size, size, directions) if exact else 1 / math.sqrt(1 + theory / directions)
            basis = "exact" if exact else "leading order"
            rows.append(row(f"cosine with {directions} pairs", found, theory, basis=basis, **settings))
    return rows


def thin(effort: Effort) -> list[Row]:
    """What rank 1 adds on thin layers, and what dense noise for them takes and brings."""
    rows = []
    for m, n in ((256, 2), (256, 1), (4, 32), (64, 64), (256, 256)):
        count = effort.count(min(100_000, 200_000_000 // (m * n)))
        flat = error(m, n, DENSE)
        for option in (None, 0.25):
            leaf = noise.low_rank(1, option).plan((matrix(m, n),))[0]
            settings = {"layer": f"{m}x{n}", "m": m, "n": n, "thin": option or "off", "noise": label(leaf.rank)}
            found = coordinate_errors([leaf], count, 600)
            rows.append(row("squared error", found, error(m, n, leaf.rank), **settings))
            relative = error(m, n, leaf.rank) / flat - 1
            rows.append(row("excess relative to dense", found / flat - 1, relative, **settings))
            rows.append(row("numbers of a perturbation", leaf.floats, repeats=1, error=0.0, **settings))
            multiplications = leaf.rank * (m + n) or m * n
            rows.append(row("multiplications of a lane", multiplications, repeats=1, error=0.0, **settings))
    return rows + _network(effort.count(3000))


def _network(count: int) -> list[Row]:
    """The same in a network of 4x256, 256x256 and 256x2, a third of |G|^2 in each matrix."""
    shapes, rows = ((4, 256), (256, 256), (256, 2)), []
    matrices = [matrix(m, n) for m, n in shapes]
    plans = {"off": noise.low_rank(1).plan(matrices), 0.25: noise.low_rank(1, 0.25).plan(matrices)}
    plans["all dense"] = noise.dense().plan(matrices)
    total = sum(m * n for m, n in shapes)
    for option, leaves in plans.items():
        settings = {"layer": "network 4-256-256-2", "m": "", "n": "", "thin": option}
        settings["noise"] = ", ".join(label(leaf.rank) for leaf in leaves)
        found, theory = coordinate_errors(leaves, count, 700), network_error(list(leaves))
        rows.append(row("squared error", found, theory, **settings))
        rows.append(row("excess relative to dense", found / (total + 1) - 1, theory / (total + 1) - 1, **settings))
        floats = sum(leaf.floats for leaf in leaves)
        rows.append(row("numbers of a perturbation", floats, repeats=1, error=0.0, **settings))
    return rows
