"""Two moons with a small network: ES of every rank against Adam on the exact gradient (claims/run.py)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
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
from experiments.claims.core import BOTH, DENSE, Effort, label, row
from experiments.lab.record import Row

TRAIN, HELD_OUT, PAIRS, SIGMA, STEPS, AIM = 128, 1024, 32, 0.1, 400, 0.97
RATES = (0.003, 0.01, 0.03, 0.1)
METHODS = (1, 4, DENSE, None)  # None is the exact gradient
Run = Callable[[Key, Array], Array]


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
    for rank in METHODS:
        run = learner(rank)
        play = jax.jit(jax.vmap(jax.vmap(run, (0, None)), (None, 0)))  # [rates, seeds, steps]
        tuned = np.asarray(play(jax.random.split(seed_key(90), 2), jnp.array(RATES)))
        rate = RATES[int(np.argmax(tuned.mean((1, 2))))]
        alone = jax.jit(run)
        alone(seed_key(0), jnp.float32(rate)).block_until_ready()
        curves, seconds = [], []
        for seed in range(effort.seeds):
            begun = time.perf_counter()
            curves.append(np.asarray(alone(seed_key(seed), jnp.float32(rate))))
            seconds.append(time.perf_counter() - begun)
        rows += _rows(rank, rate, np.array(curves), np.array(seconds))
    return rows


def learner(rank: int | None) -> Run:
    """`run(key, rate) -> held-out accuracies [steps]`."""
    network = Network()
    points, labels = two_moons(TRAIN, 0)
    held_points, held_labels = two_moons(HELD_OUT, 1)
    shapes = jax.eval_shape(network.init, jax.eval_shape(lambda: seed_key(0)), points[0])
    around = noise.low_rank(rank) if rank else noise.dense()
    leaves = around.plan(classify(network.apply, shapes, points[0]))
    forward = perturb.population(network.apply, leaves)
    shape, optimizer = shaping.z_score(), optax.adam(1.0)

    def loss(logits: Array) -> Array:
        return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, jnp.broadcast_to(labels, logits.shape)), axis=-1)

    def estimate(params: PyTree, key: Key) -> PyTree:
        eps = around.sample(key, leaves, jnp.arange(PAIRS))
        lanes = jnp.tile(points, (PAIRS * len(BOTH), 1))  # [P S E, 2]: an "episode" for each point
        logits = forward(params, eps, SIGMA * jnp.array(BOTH), lanes).reshape(PAIRS, len(BOTH), TRAIN)
        weights = shape(-loss(logits)) @ jnp.array(BOTH)
        total = around.contract(weights, eps, leaves)
        return jax.tree.unflatten(jax.tree.structure(params), [-x / (PAIRS * len(BOTH) * SIGMA) for x in total])

    def run(key: Key, rate: Array) -> Array:
        def once(now: tuple[PyTree, Any], key: Key) -> tuple[tuple[PyTree, Any], Array]:
            params, state = now
            if rank is None:
                slope = jax.grad(lambda params: loss(network.apply(params, points)))(params)
            else:
                slope = estimate(params, key)
            update, state = optimizer.update(slope, state, params)
            params = optax.apply_updates(params, jax.tree.map(lambda u: rate * u, update))
            right = (network.apply(params, held_points) > 0) == (held_labels > 0.5)
            return (params, state), jnp.mean(right.astype(jnp.float32))

        params = network.init(jax.random.fold_in(key, 0), points[0])
        keys = jax.random.split(jax.random.fold_in(key, 1), STEPS)
        return jax.lax.scan(once, (params, optimizer.init(params)), keys)[1]

    return run


def _rows(rank: int | None, rate: float, curves: np.ndarray, seconds: np.ndarray) -> list[Row]:
    name = "exact gradient" if rank is None else label(rank)
    settings = {"noise": name, "rank": "" if rank is None else rank, "rate": rate}
    settings |= {"pairs": "" if rank is None else PAIRS}
    cost = 3 if rank is None else 2 * PAIRS
    rows = []
    for at in sorted({*np.unique(np.geomspace(1, STEPS, 24).astype(int)), STEPS}):
        own = {**settings, "step": int(at), "step_evaluations": int(at) * cost}
        own["step_seconds"] = round(float(np.median(seconds)) * at / STEPS, 6)
        rows.append(row("held-out accuracy", curves[:, at - 1], **own))
    good = curves >= AIM
    reached = good.any(axis=1)
    steps = np.where(reached, good.argmax(axis=1) + 1, STEPS)
    rows.append(row("share of runs that reach 97 %", reached.astype(float), **settings))
    rows.append(row("steps to 97 %", steps, **settings))
    rows.append(row("evaluations to 97 %", steps * cost, **settings))
    rows.append(row("seconds to 97 %", steps * seconds / STEPS, **settings))
    return rows
