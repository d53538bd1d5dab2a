"""Fitness shaping: `fitness [P, S] -> weights [P, S]`.

P is pairs (or directions), S the evaluations of each: 2 with antithetic pairs, 1 without. Every shaping gives all-zero
weights to all-equal fitness, and takes a member with NaN or infinite fitness for the worst one: ranks put it below all
others, the other shapings give it the lowest finite fitness. So it can never reach the parameters.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from esrl.core.options import checked
from esrl.core.types import Array, EsrlError, nearest
from esrl.envs.base import reason_of

Shaping = Callable[[Array], Array]

# Epsilon under the square root of a variance. Absolute on purpose: a nearly flat fitness then gets small weights.
_FLOOR = 1e-8


def finite(fitness: Array) -> Array:
    """Fitness with every non-finite entry replaced by the lowest finite one (0 when there is none)."""
    good = jnp.isfinite(fitness)
    worst = jnp.min(jnp.where(good, fitness, jnp.inf))
    return jnp.where(good, fitness, jnp.where(jnp.isfinite(worst), worst, 0.0))


def _centered(fitness: Array, axis: int | None = None) -> Array:
    """`fitness - mean`, exactly zero where all are equal: an entry is taken off first, so no rounding is left over."""
    shifted = fitness - jnp.max(fitness, axis=axis, keepdims=True)
    return shifted - jnp.mean(shifted, axis=axis, keepdims=True)


def centered_rank() -> Shaping:
    """Ranks in [-1/2, 1/2], equal fitness sharing the average of its ranks (arXiv 1703.03864, section 2; ties ours).

    Example:
      >>> esrl.shaping.centered_rank()(jnp.array([[3.0, 1.0], [2.0, 2.0]])).tolist()
      [[0.5, -0.5], [0.0, 0.0]]
    """

    def shape(fitness: Array) -> Array:
        flat = jnp.where(jnp.isfinite(fitness), fitness, -jnp.inf).ravel()
        order = jnp.sort(flat)
        below = jnp.searchsorted(order, flat, side="left")
        up_to = jnp.searchsorted(order, flat, side="right")
        above_middle = (below + up_to - flat.size).astype(jnp.float32)  # twice the average rank less N - 1: an integer
        return (above_middle * (0.5 / max(flat.size - 1, 1))).reshape(fitness.shape)

    return shape


def z_score() -> Shaping:
    """`(f - mean) / sqrt(variance + 1e-8)` over all members."""

    def shape(fitness: Array) -> Array:
        centered = _centered(finite(fitness))
        return centered / jnp.sqrt(jnp.mean(centered**2) + _FLOOR)

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

    def shape(fitness: Array) -> Array:
        if fitness.shape[0] % size:
            raise EsrlError(f"group size {size} does not divide {fitness.shape[0]} pairs")
        centered = _centered(finite(fitness).reshape(-1, size * fitness.shape[1]), axis=1)
        square = jnp.mean(centered**2, axis=1 if variance == "group" else None, keepdims=True)
        return (centered / jnp.sqrt(square + _FLOOR)).reshape(fitness.shape)

    return shape


def sign() -> Shaping:
    """The sign of each pair's difference, half to each member. Needs antithetic pairs."""

    def shape(fitness: Array) -> Array:
        if fitness.shape[1] != 2:
            raise EsrlError("sign shaping compares the two members of a pair; it needs antithetic=True")
        clean = finite(fitness)
        better = 0.5 * jnp.sign(clean[:, 0] - clean[:, 1])
        return jnp.stack([better, -better], axis=1)

    return shape


def none() -> Shaping:
    """The fitness itself, less its mean: the mean changes no expectation, and all-equal fitness then gives nothing."""
    return lambda fitness: _centered(finite(fitness))


def leave_one_out() -> Shaping:
    """`f_i - mean of the others`, the baseline for unpaired directions: `N/(N-1) (f_i - mean)`."""

    def shape(fitness: Array) -> Array:
        return _centered(finite(fitness)) * (fitness.size / max(fitness.size - 1, 1))

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
        return lambda fitness: jnp.nan_to_num(own(fitness), nan=0.0, posinf=0.0, neginf=0.0)
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
