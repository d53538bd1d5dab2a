"""Fitness shaping: `fitness [P, S] -> weights [P, S]`.

P is pairs (or directions), S the evaluations of each: 2 with antithetic pairs, 1 without. Every shaping gives all-zero
weights to all-equal fitness, and takes a member with NaN or infinite fitness for the worst one: ranks put it below all
others, the other shapings give it the lowest finite fitness. So it can never reach the parameters.

Where some pairs were not played at all, `of_present` gives weights to the others alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp

from esrl.core.options import checked
from esrl.core.types import Array, EsrlError, nearest
from esrl.envs.base import reason_of

Shaping = Callable[..., Array]  # of fitness [P, S], and of which entries are present, where it takes that

# Epsilon under the square root of a variance. Absolute on purpose: a nearly flat fitness then gets small weights.
_FLOOR = 1e-8


def finite(fitness: Array, present: Array | None = None) -> Array:
    """Fitness with every non-finite entry replaced by the lowest finite one (0 when there is none)."""
    good = jnp.isfinite(fitness) if present is None else jnp.isfinite(fitness) & present
    worst = jnp.min(jnp.where(good, fitness, jnp.inf))
    return jnp.where(good, fitness, jnp.where(jnp.isfinite(worst), worst, 0.0))


def _mean(x: Array, axis: int | None, present: Array | None) -> Array:
    """Mean of the entries that are present, 0 where none is."""
    if present is None:
        return jnp.mean(x, axis=axis, keepdims=True)
    number = jnp.sum(present, axis=axis, keepdims=True).astype(jnp.float32)
    return jnp.sum(jnp.where(present, x, 0.0), axis=axis, keepdims=True) / jnp.maximum(number, 1.0)


def _centered(fitness: Array, axis: int | None = None, present: Array | None = None) -> Array:
    """`fitness - mean`, exactly zero where all are equal: an entry is taken off first, so no rounding is left over."""
    if present is None:
        shifted = fitness - jnp.max(fitness, axis=axis, keepdims=True)
        return shifted - _mean(shifted, axis, None)
    highest = jnp.max(jnp.where(present, fitness, -jnp.inf), axis=axis, keepdims=True)
    shifted = fitness - jnp.where(jnp.isfinite(highest), highest, 0.0)  # a group may have no one
    return jnp.where(present, shifted - _mean(shifted, axis, present), 0.0)


def of_present(shaping: Shaping, fitness: Array, present: Array) -> Array:
    """The weights [P, S] of the pairs that are present [P] bool, among themselves; those of the others are 0.

    A pair that nobody has played is no bad pair. Taken for one, as what is not finite is, it would get the lowest rank:
    without antithetic pairs that is a weight, along a direction of which nothing is known, and with them it would still
    move the ranks, the mean and the variance of all others. So it is left out before anything is counted.

    A function of the user's that takes no `present` gets NaN for these pairs.
    """
    there = jnp.broadcast_to(present[:, None], fitness.shape)
    weights = shaping(fitness, there) if takes_present(shaping) else shaping(jnp.where(there, fitness, jnp.nan))
    return jnp.where(there, weights, 0.0)


def takes_present(shaping: Shaping) -> bool:
    """Whether a shaping takes as its second argument `present`, which entries [P, S] are there."""
    try:
        return "present" in inspect.signature(shaping).parameters
    except (TypeError, ValueError):
        return False


def centered_rank() -> Shaping:
    """Ranks in [-1/2, 1/2], equal fitness sharing the average of its ranks (arXiv 1703.03864, section 2; ties ours).

    Example:
      >>> esrl.shaping.centered_rank()(jnp.array([[3.0, 1.0], [2.0, 2.0]])).tolist()
      [[0.5, -0.5], [0.0, 0.0]]
    """

    def shape(fitness: Array, present: Array | None = None) -> Array:
        flat = jnp.where(jnp.isfinite(fitness), fitness, -jnp.inf).ravel()
        if present is not None:  # behind all others, where they move no rank
            flat = jnp.where(present.ravel(), flat, jnp.inf)
        order = jnp.sort(flat)
        below = jnp.searchsorted(order, flat, side="left")
        up_to = jnp.searchsorted(order, flat, side="right")
        if present is None:
            above_middle = (below + up_to - flat.size).astype(
                jnp.float32
            )  # twice the average rank less N - 1: an integer
            return (above_middle * (0.5 / max(flat.size - 1, 1))).reshape(fitness.shape)
        number = jnp.sum(present)
        ranks = (below + up_to - number).astype(jnp.float32) * (0.5 / jnp.maximum(number - 1, 1).astype(jnp.float32))
        return jnp.where(present, ranks.reshape(fitness.shape), 0.0)

    return shape


def z_score() -> Shaping:
    """`(f - mean) / sqrt(variance + 1e-8)` over all members."""

    def shape(fitness: Array, present: Array | None = None) -> Array:
        centered = _centered(finite(fitness, present), None, present)
        if present is None:
            return centered / jnp.sqrt(jnp.mean(centered**2) + _FLOOR)
        return centered / jnp.sqrt(_mean(centered**2, None, present) + _FLOOR)

    return shape


@checked
def group(size: int = 1, variance: str = "global") -> Shaping:
    """Fitness less its group's mean, over the standard deviation of the group or of all members.

    Args:
      size: pairs in a group; consecutive ones form it.
      variance: "group" or "global".

    Raises:
      EsrlError: size below 1, unknown variance, or (when used) a number of pairs that size does not divide.
    """

    def shape(fitness: Array, present: Array | None = None) -> Array:
        if fitness.shape[0] % size:
            raise EsrlError(f"group size {size} does not divide {fitness.shape[0]} pairs")
        there = None if present is None else present.reshape(-1, size * fitness.shape[1])
        centered = _centered(finite(fitness, present).reshape(-1, size * fitness.shape[1]), 1, there)
        square = _mean(centered**2, 1 if variance == "group" else None, there)
        return (centered / jnp.sqrt(square + _FLOOR)).reshape(fitness.shape)

    return shape


def sign() -> Shaping:
    """The sign of each pair's difference, half to each member. Needs antithetic pairs."""

    def shape(fitness: Array, present: Array | None = None) -> Array:
        if fitness.shape[1] != 2:
            raise EsrlError("sign shaping compares the two members of a pair; it needs antithetic=True")
        clean = finite(fitness, present)
        better = 0.5 * jnp.sign(clean[:, 0] - clean[:, 1])
        return jnp.stack([better, -better], axis=1)

    return shape


def none() -> Shaping:
    """The fitness itself, less its mean: the mean changes no expectation, and all-equal fitness then gives nothing."""

    def shape(fitness: Array, present: Array | None = None) -> Array:
        return _centered(finite(fitness, present), None, present)

    return shape


def leave_one_out() -> Shaping:
    """`f_i - mean of the others`, the baseline for unpaired directions: `N/(N-1) (f_i - mean)`."""

    def shape(fitness: Array, present: Array | None = None) -> Array:
        centered = _centered(finite(fitness, present), None, present)
        if present is None:
            return centered * (fitness.size / max(fitness.size - 1, 1))
        number = jnp.sum(present).astype(jnp.float32)
        return centered * (number / jnp.maximum(number - 1.0, 1.0))

    return shape


SHAPINGS: dict[str, Callable[..., Shaping]] = {
    "centered_rank": centered_rank,
    "z_score": z_score,
    "group": group,
    "sign": sign,
    "none": none,
    "leave_one_out": leave_one_out,
}


def by_name(shaping: str | Shaping, shape: tuple[int, int] | None = None) -> Shaping:
    """A shaping from its name, or a function, whose weights that are not finite become 0.

    Args:
      shaping: one or the other.
      shape: [P, S] of the fitness that a function is tried with.

    Raises:
      EsrlError: no shaping has that name, or the function fails, or gives no weights [P, S].
    """
    if callable(shaping):
        own: Shaping = shaping
        if shape is not None:
            _try(own, shape)

        # A user's function may let NaN through; weights of 0 keep it from the parameters.
        def clean(*given: Array) -> Array:
            return jnp.nan_to_num(own(*given), nan=0.0, posinf=0.0, neginf=0.0)

        if takes_present(own):
            return lambda fitness, present=None: clean(fitness) if present is None else clean(fitness, present)
        return lambda fitness: clean(fitness)
    name = "centered_rank" if shaping == "centred_rank" else shaping  # its name in the first recipes
    if name not in SHAPINGS:
        raise EsrlError(f"unknown shaping {name!r}{nearest(name, SHAPINGS)}")
    return SHAPINGS[name]()


def _try(shaping: Shaping, shape: tuple[int, int]) -> None:
    """Raises `EsrlError` unless the function gives weights [P, S] for fitness [P, S]."""
    try:
        weights = jax.eval_shape(shaping, jax.ShapeDtypeStruct(shape, jnp.float32))
    except EsrlError:  # as that of a group that does not divide the pairs
        raise
    except Exception as error:
        raise EsrlError(
            f"shaping is a function that fails: {reason_of(error)}; it takes fitness [P, S] and gives weights [P, S]"
        ) from error
    given = getattr(weights, "shape", None)
    if given != shape:
        raise EsrlError(f"shaping gives {list(given or [])} for fitness {list(shape)}, but must give a weight each")
