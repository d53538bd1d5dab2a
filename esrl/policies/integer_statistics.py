"""Statistics of observations in integers, and observations as int8: where floating point enters an integer policy.

For each number of an observation there are a mean, a scale 2^shift and a spread:

    d = round((x - mean) 2^shift)             an integer; all after it is one
    q = clip(d m >> 18, -127, 127)            m = 32 2^18 / (1.25 spread), so that q = 32 is one standard deviation

The spread is the mean absolute deviation, in units of 2^-shift (1.25 of it is the standard deviation of a normal
number): it takes no squares, as the L1 norm of EGGROLL's integer model (arXiv 2511.16652). The sums are of integers, so
that devices and chunks give the same statistics bit for bit, which sums of floats do not. They are frozen within a
generation; the n-th generation has weight 1 / min(n, 256) in them, however many steps it has. Where a generation's
spread is 8 times what was known, or an 8th of it, what was known was of another scale, and counting starts anew.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from esrl.core.integers import SEEN_BITS, bits_of, saturated, shifted
from esrl.core.types import Array, EsrlError, PyTree

_SPREAD = 12  # a spread lies in 2^12 .. 2^13: shift makes it so
_FARTHEST = 18  # bits of a deviation that is still told from larger ones
_SCALE_BITS = 18
_SCALE = round((1 << (SEEN_BITS + _SCALE_BITS)) / 1.2533)  # sqrt(pi / 2)
_ONE = (_SPREAD + 1, round((1 << (_SPREAD + 1)) / 1.2533))  # shift and spread of deviation 1
_FINEST, _COARSEST = 26, -24  # shifts: a standard deviation below 1e-4 counts as that, as it does for floats
_WORD = 10  # bits of the low word of a sum
_MEMORY = 256  # generations that are remembered
_WRONG = 8  # a spread so many times larger or smaller is none of the same number
_STEPS = 26  # bits of the steps of a generation, at most


class IntegerMoments(NamedTuple):
    """`most` int32, the largest |d| that is summed, and per observation leaf `mean` (float32), `spread` (int32),
    `shift` (int32) and `age` (int32, generations that these are of); None for what is not normalized."""

    most: Array
    mean: PyTree
    spread: PyTree
    shift: PyTree
    age: PyTree


class IntegerSums(NamedTuple):
    """Over live steps: `seen` (int32), and per leaf sums of d and of |d|, each in two int32 words `high 2^10 + low`."""

    seen: Array
    first: PyTree
    away: PyTree


def init(observation: PyTree, normalizable: PyTree, steps: int) -> IntegerMoments:
    """Moments of nothing seen: mean 0, standard deviation 1.

    Args:
      observation: shapes of one observation. normalizable: marks each leaf that is to be normalized.
      steps: of a generation, at most; they bound what is summed, so that no sum can overflow.

    Raises:
      EsrlError: a generation of more than 2^26 steps.
    """
    if steps > 1 << _STEPS:
        raise EsrlError(
            f"a generation has up to {steps:,} steps, and integer statistics of observations can overflow beyond"
            f" {1 << _STEPS:,}; use a smaller population, or normalize_observations=false"
        )
    # high words of |d| <= most add up to steps most / 2^10 < 2^31
    most = min(1 << _FARTHEST, (1 << (30 + _WORD)) // (1 << max(steps - 1, 1).bit_length()))

    def full(value: Any, dtype: str) -> PyTree:
        return jax.tree.map(lambda x, use: jnp.full(x.shape, value, dtype) if use else None, observation, normalizable)

    shift, spread = _ONE
    of = partial(full, dtype="int32")
    return IntegerMoments(jnp.int32(most), full(0, "float32"), of(spread), of(shift), of(0))


def zero_sums(moments: IntegerMoments) -> IntegerSums:
    """Sums of no observation."""
    zeros = jax.tree.map(lambda x: (jnp.zeros(x.shape, jnp.int32),) * 2, moments.mean)
    return IntegerSums(jnp.int32(0), zeros, zeros)


def accumulate(sums: IntegerSums, moments: IntegerMoments, picked: PyTree, live: Array) -> IntegerSums:
    """Adds float32 observations [L, ...] (leaves that have moments) of the lanes that are live [L]."""

    def deviation(x: Array, mean: Array, shift: Array) -> Array:
        d = jax.vmap(lambda row: _deviation(row, mean, shift))(x)
        mask = live.reshape(live.shape + (1,) * (x.ndim - 1))
        return jnp.where(mask, jnp.clip(d, -moments.most, moments.most), 0)

    def add(words: tuple[Array, Array], values: Array) -> tuple[Array, Array]:
        low = words[1] + jnp.sum(values & ((1 << _WORD) - 1), axis=0)
        return words[0] + jnp.sum(values >> _WORD, axis=0) + (low >> _WORD), low & ((1 << _WORD) - 1)

    d = jax.tree.map(deviation, picked, moments.mean, moments.shift)
    return IntegerSums(
        sums.seen + jnp.sum(live.astype(jnp.int32)),
        jax.tree.map(lambda x, words: add(words, x), d, sums.first),
        jax.tree.map(lambda x, words: add(words, jnp.abs(x)), d, sums.away),
    )


def merge(moments: IntegerMoments, sums: IntegerSums) -> IntegerMoments:
    """The moments with one more generation; the same ones where it had no step."""
    some = sums.seen > 0

    def one(mean: Array, spread: Array, shift: Array, age: Array, first: Any, away: Any) -> tuple[Array, ...]:
        found = _mean(away, sums.seen)
        age = jnp.where((found > _WRONG * spread) | (_WRONG * found < spread), 0, age)
        weight = jnp.minimum(age + 1, _MEMORY)
        wider = spread + _divided(found - spread, weight)
        # So that a spread has 13 bits; one of 0 bits was too coarse to be seen.
        finer = jnp.where(wider > 0, _SPREAD + 1 - bits_of(jnp.maximum(wider, 1)), _SPREAD // 2)
        after = jnp.clip(shift + finer, _COARSEST, _FINEST)
        change = after - shift
        scaled = jnp.where(change > 0, wider << jnp.maximum(change, 0), wider >> jnp.maximum(-change, 0))
        # The bounds keep a number that never varied from dividing by nothing, and from exploding once it does.
        scaled = jnp.clip(scaled, 1 << _SPREAD, (1 << (_SPREAD + 1)) - 1)
        moved = _divided(_mean(first, sums.seen), weight).astype(jnp.float32) * _power(-shift)
        made, old = (mean + moved, scaled, after, weight), (mean, spread, shift, age)
        return tuple(jnp.where(some, x, y) for x, y in zip(made, old, strict=True))

    flat, tree = jax.tree.flatten(moments.mean)
    rest = [jax.tree.leaves(x) for x in (moments.spread, moments.shift, moments.age)]
    words = (tree.flatten_up_to(sums.first), tree.flatten_up_to(sums.away))
    after = [one(*leaf) for leaf in zip(flat, *rest, *words, strict=True)]
    return IntegerMoments(moments.most, *(tree.unflatten([x[i] for x in after]) for i in range(4)))


def quantized(moments: IntegerMoments | None, observation: PyTree, normalizable: PyTree) -> PyTree:
    """An observation as an integer policy sees it: int8 in SEEN_BITS for what is normalizable or a float, else itself.

    Without moments, numbers count as normalized. NaN becomes 0, the mean; what is too far saturates.
    """
    leaves, tree = jax.tree.flatten(observation)
    none = [None] * len(leaves)
    parts = [none] * 3
    if moments is not None:
        parts = [jax.tree.leaves(x, is_leaf=lambda x: x is None) for x in (moments.mean, moments.spread, moments.shift)]

    def one(x: Array, normal: bool, mean: Array | None, spread: Array | None, shift: Array | None) -> Array:
        if not normal and not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        x = x.astype(jnp.float32)
        if mean is None or spread is None or shift is None:
            return saturated(_rounded(x * (1 << SEEN_BITS)))
        return saturated(shifted(_deviation(x, mean, shift) * (_SCALE // spread), _SCALE_BITS))

    return tree.unflatten([one(*leaf) for leaf in zip(leaves, jax.tree.leaves(normalizable), *parts, strict=True)])


def deviations(moments: IntegerMoments) -> PyTree:
    """Standard deviations as float32, for an observer."""
    far = lambda spread, shift: 1.2533 * spread.astype(jnp.float32) * _power(-shift)  # noqa: E731
    return jax.tree.map(far, moments.spread, moments.shift)


def _deviation(x: Array, mean: Array, shift: Array) -> Array:
    # Times a power of two is exact, so there is one rounding (that of the difference) in any order, fused or not.
    return _rounded((x - mean) * _power(shift))


def _rounded(x: Array) -> Array:
    """The nearest integer, within 2^18."""
    most = float(1 << _FARTHEST)
    return jnp.where(jnp.isnan(x), 0.0, jnp.floor(jnp.clip(x, -most, most) + 0.5)).astype(jnp.int32)


def _power(shift: Array) -> Array:
    """2^shift as float32, made of its exponent's bits: exact everywhere."""
    return jax.lax.bitcast_convert_type((shift + 127) << 23, jnp.float32)


def _mean(words: tuple[Array, Array], seen: Array) -> Array:
    """A two-word sum over a count, rounded down; both lose their last bits where the count has more than 20."""
    lost = jnp.maximum(bits_of(seen) - (30 - _WORD), 0)
    high, low = words
    count = jnp.maximum(seen >> lost, 1)
    low = (((high & ((1 << lost) - 1)) << _WORD) + low) >> lost
    high = high >> lost
    return ((high // count) << _WORD) + (((high % count) << _WORD) + low) // count


def _divided(x: Array, by: Array) -> Array:
    """`x / by`, to the nearest integer."""
    return (2 * x + by) // (2 * by)
