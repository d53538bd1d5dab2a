"""What an estimate is worth: measured from episodes that were played anyway, and what may follow from it.

Three measurements, none of which costs an environment step:

* `signal_cosine`: the cosine between the sums of two halves of the pairs. Halves that point the same way hold signal.
  With P pairs of noise in D dimensions and no other noise it is about P / D, so it is small even where all is well.
* `agreement`: how far two halves of a member's episodes agree on which sign of a pair is better, in [-1, 1]: the
  correlation of the fitness differences d = f(+) - f(-). It is 0 where chance decides and 1 where the noise of the
  parameters does. It needs two episodes of a member.
* `tied`: the part of the pairs whose two members are equally good, which tell nothing. A step may wait until enough
  pairs are not tied: where a reward is rare, that takes hundreds of them.

From the agreement `a` of halves follows the reliability `r = 2 a / (1 + a)` of the whole (Spearman and Brown, 1910):
the share of the variance of d that is due to the parameters. An estimate of P pairs is worth what r P pairs without
chance would be worth, since its squared cosine with the gradient is about r P / D (`../es.py` has the notation).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from esrl.algorithms.agent import Metrics
from esrl.core.types import Array, PyTree

MEMORY = 0.97  # of the running sums behind the agreement, for each generation: a group of four pairs says little alone
SIGMA_PACE = 0.1  # change of log sigma in a generation, for each unit that the agreement misses its target by
SIGMA_RANGE = 4.0  # sigma stays within this factor of its base value
SIGMA_TARGET = 0.5
TOLD = 4  # pairs that are not tied, which a step waits for unless told otherwise
RATE_RANGE = (0.1, 3.0)  # the learning rate stays within these factors of its base value


class Sizing(NamedTuple):
    """What the measured signal may change.

    Attributes:
      groups: generations that one estimate may be the sum of; 1 steps after each.
      steps: live environment steps that an estimate waits for, 0 for none.
      pairs: pairs that are not tied, of which an estimate has so many before it is taken for a step; and the pairs
        without chance that it is worth where the rate is as it was given.
      sigma, rate: whether sigma and the learning rate follow the signal.
    """

    groups: int = 1
    steps: int = 0
    pairs: float = TOLD
    sigma: bool = False
    rate: bool = False

    @property
    def waits(self) -> bool:
        """Whether an estimate may be the sum of several generations."""
        return self.groups > 1


class Signal(NamedTuple):
    """What is remembered from generation to generation.

    Attributes:
      cross, energy: running sums over pairs of the product of the two halves' differences, and of their mean square.
      sigma: the factor on sigma.
      gradient: the sum of the estimates since the last step (None where every generation steps). groups: how many they
        are, int32. steps: their live steps, float32. told: their pairs that are not tied, float32. updates: steps of
        the optimizer so far, int32.
    """

    cross: Array
    energy: Array
    sigma: Array
    gradient: PyTree | None
    groups: Array
    steps: Array
    told: Array
    updates: Array


def init(sizing: Sizing, params: PyTree) -> Signal:
    """Nothing measured, nothing summed."""
    empty = jax.tree.map(jnp.zeros_like, params) if sizing.waits else None
    zero, none = jnp.float32(0), jnp.int32(0)
    return Signal(zero, zero, jnp.float32(1), empty, none, zero, zero, none)


# ---- measuring ------------------------------------------------------------------------------------------------------


def measured(
    halves: tuple[list[Array], list[Array]], names: tuple[str, ...], fitness: Array, present: Array | None = None
) -> Metrics:
    """`signal_cosine` of the two halves of an estimate, whole and for each parameter, and `tied` of those present."""
    first, second = halves
    dots = [jnp.sum(a * b) for a, b in zip(first, second, strict=True)]
    squares = [(jnp.sum(a * a), jnp.sum(b * b)) for a, b in zip(first, second, strict=True)]
    whole = _cosine(sum(dots), sum(a for a, _ in squares), sum(b for _, b in squares))
    each = {f"signal_cosine/{name}": _cosine(d, *two) for name, d, two in zip(names, dots, squares, strict=True)}
    tied = {"tied": jnp.mean(fitness[:, 0] == fitness[:, 1], where=present)} if fitness.shape[1] == 2 else {}
    return {"signal_cosine": whole, **tied, **each}


def told(fitness: Array, present: Array | None = None) -> Array:
    """How many pairs of those present tell their members apart, by the fitness [P, S] of these; float32.

    Without pairs it is how many members are told apart from the best and from the worst, whichever are fewer.
    """
    finite = jnp.isfinite(fitness)
    if fitness.shape[1] == 2:
        differs = (fitness[:, 0] != fitness[:, 1]) & jnp.all(finite, axis=1)
        return jnp.sum(differs, where=present, dtype=jnp.float32)
    there = finite if present is None else finite & present[:, None]
    least, most = jnp.where(there, fitness, jnp.inf).min(), jnp.where(there, fitness, -jnp.inf).max()
    above, below = (jnp.sum(there & (fitness != end), dtype=jnp.float32) for end in (least, most))
    return jnp.minimum(above, below)


def _cosine(dot: Any, first: Any, second: Any) -> Array:
    return dot / jnp.sqrt(jnp.maximum(first * second, jnp.finfo(jnp.float32).tiny))


def halves_of(shaped: Array) -> Array | None:
    """Fitness of a member by each half of its episodes: [P, S, E] -> [P, S, 2], None for a single episode.

    An odd last episode is left out.
    """
    half = shaped.shape[2] // 2
    if not half:
        return None
    return jnp.stack([jnp.mean(shaped[..., :half], axis=2), jnp.mean(shaped[..., half : 2 * half], axis=2)], axis=2)


def heard(signal: Signal, halves: Array | None, present: Array | None = None) -> Signal:
    """The running sums with a generation's fitness by halves [P, S, 2] added, of the pairs `present` [P] alone."""
    if halves is None:
        return signal
    # The difference of a pair; without pairs, from the generation's mean.
    there = None if present is None else present[:, None]
    first = halves[:, 0]
    d = first - halves[:, 1] if halves.shape[1] == 2 else first - jnp.mean(first, axis=0, where=there)[None]
    good = jnp.all(jnp.isfinite(d), axis=1)
    d = jnp.where(good[:, None], d, 0.0)
    return signal._replace(
        cross=MEMORY * signal.cross + jnp.sum(d[:, 0] * d[:, 1]),
        energy=MEMORY * signal.energy + jnp.sum(d * d) / 2,
    )


def agreement(signal: Signal) -> Array:
    """The running agreement, in [-1, 1]; 0 while all pairs are tied."""
    return signal.cross / jnp.maximum(signal.energy, jnp.finfo(jnp.float32).tiny)


def reliability(signal: Signal) -> Array:
    """The share of the variance of a pair's difference that is due to its parameters, in [0, 1]."""
    positive = jnp.clip(agreement(signal), 0.0, 1.0)
    return 2 * positive / (1 + positive)


def worth(signal: Signal, pairs: int) -> Array:
    """The pairs without chance that the sum of `groups` estimates of so many pairs is worth."""
    return reliability(signal) * (pairs * signal.groups).astype(jnp.float32)


# ---- following ------------------------------------------------------------------------------------------------------


def ready(sizing: Sizing, signal: Signal) -> Array:
    """Whether the sum of `groups` estimates is to be taken for a step.

    Only ties are waited out. Chance is not: many noisy steps learn more of as many episodes than few that are less
    noisy, wherever a step is small (experiments/defaults/README.md).
    """
    enough = (signal.told >= sizing.pairs) & (signal.steps >= sizing.steps)
    return enough | (signal.groups >= sizing.groups)


def rate_factor(sizing: Sizing, signal: Signal, pairs: int) -> Array:
    """The factor on the learning rate: a step is as long as the estimate's cosine with the gradient is large.

    The cosine grows as the square root of the pairs without chance that an estimate is worth; an estimate that is worth
    `sizing.pairs` of them has factor 1.
    """
    return jnp.clip(jnp.sqrt(worth(signal, pairs) / sizing.pairs), *RATE_RANGE)


def followed(sizing: Sizing, signal: Signal) -> Signal:
    """Sigma grows while chance decides which member of a pair is better, and shrinks while it does not."""
    if not sizing.sigma:
        return signal
    moved = signal.sigma * jnp.exp(SIGMA_PACE * (SIGMA_TARGET - agreement(signal)))
    return signal._replace(sigma=jnp.clip(moved, 1 / SIGMA_RANGE, SIGMA_RANGE))


def grown(signal: Signal, gradient: PyTree, steps: Array, apart: Array) -> Signal:
    """A generation's estimate, live steps and pairs that are not tied (`told`) added to the sum."""
    total = gradient if signal.gradient is None else jax.tree.map(jnp.add, signal.gradient, gradient)
    return signal._replace(
        gradient=total,
        groups=signal.groups + 1,
        steps=signal.steps + jnp.asarray(steps, jnp.float32),
        told=signal.told + apart,
    )


def emptied(sizing: Sizing, signal: Signal) -> Signal:
    """After a step of the optimizer."""
    empty = optax.tree.zeros_like(signal.gradient) if sizing.waits else None
    none, zero = jnp.int32(0), jnp.float32(0)
    return signal._replace(gradient=empty, groups=none, steps=zero, told=zero, updates=signal.updates + jnp.int32(1))
