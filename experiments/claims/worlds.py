"""Common random numbers on and off, on environments (claims/run.py)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import esrl
from esrl.algorithms.es import world_keys
from esrl.algorithms.es_options import EggrollOptions
from esrl.algorithms.es_setup import Setup, prepare
from esrl.core.types import Array, Key, seed_key
from esrl.perturbation import noise
from esrl.policies.policy import bind
from experiments.claims.core import BOTH, Effort, row
from experiments.lab.record import Row

ENVS = ("gymnax/Pendulum-v1", "brax/inverted_pendulum")
HORIZON, SIGMA, WORLDS = 50, 0.05, 8


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
    made = esrl.make(env, horizon=HORIZON)
    options = EggrollOptions(population=4 * pairs, sigma=SIGMA, normalize_observations=False)
    policy = bind(esrl.mlp(hidden=(16, 16)), made.observation_space, made.action_space)
    setup = prepare(made, policy, noise.low_rank(1), options)
    params = setup.policy.init(seed_key(3))

    @jax.jit
    def both(key: Key) -> tuple[Array, Array, list[Any]]:
        ids = jnp.arange(2 * pairs)
        eps = setup.sample(jax.random.fold_in(key, 0), ids)
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


def _projected(setup: Setup, eps: list[Any], differences: np.ndarray, pairs: int) -> np.ndarray:
    """`<u, E_p>` of the first pairs, u the direction of the gradient that the other pairs estimate."""
    others = jnp.where(jnp.arange(2 * pairs) < pairs, 0.0, jnp.asarray(differences, jnp.float32))
    total = setup.noise.contract(others, eps, setup.leaves)
    norm = jnp.sqrt(sum(jnp.sum(x**2) for x in total))
    # <u, E_p> is the derivative of <u, sum_p w_p E_p> by w_p
    inner = jax.grad(
        lambda w: sum(jnp.sum(u * x) for u, x in zip(total, setup.noise.contract(w, eps, setup.leaves), strict=True))
    )
    return np.asarray(inner(jnp.zeros(2 * pairs)) / norm, float)[:pairs]


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
        theory = float(aims[name].mean())
        settings = {"env": env, "crn": name, "horizon": HORIZON, "sigma": SIGMA, "worlds": WORLDS}
        own = {**settings, "error": error, "repeats": len(gap)}
        rows.append(row("variance over worlds of f+ - f-", found[name].mean(), theory, **own))
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
        settings = {"env": env, "crn": name, "horizon": HORIZON, "sigma": SIGMA, "worlds": WORLDS}
        rows.append(row("mean of the estimate along the gradient", each.mean(axis=1), **settings))
        squares[name] = ((each - each.mean()) ** 2).mean(axis=1)
        rows.append(row("variance of the estimate along the gradient", squares[name], **settings))
    ratio = squares["off"].mean() / squares["on"].mean()
    gap = squares["off"] - ratio * squares["on"]
    error = float(gap.std(ddof=1) / np.sqrt(len(gap)) / squares["on"].mean())
    own = {**settings, "crn": "off / on", "error": error, "repeats": len(gap)}
    rows.append(row("ratio of the estimate's variances", ratio, **own))
    return rows
