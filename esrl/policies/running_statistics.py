"""Running mean and variance of observations, merged between generations.

Statistics are frozen while a generation runs, so that every member sees the same observations; the generation's live
observations are summed beside it and merged afterwards (Chan et al., parallel variance).

This is also where a number that is not finite stops: it is never summed, and no network ever sees it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from esrl.core.types import Array, PyTree
from esrl.policies import integer_statistics
from esrl.policies.integer_statistics import IntegerMoments, IntegerSums

LARGEST = 1e15  # of what is summed or seen by a network: squares and products of it are far from float32's end


class Moments(NamedTuple):
    """`seen` (float32, how many), and per observation leaf `mean` and `m2` (sum of squared deviations).

    Leaves that are not normalized (masks, what a network of its own kind takes as it is) are None in `mean` and `m2`.
    """

    seen: Array
    mean: PyTree
    m2: PyTree


class Sums(NamedTuple):
    """Over live steps, relative to the frozen mean: `seen` (how many), sum of `x - mean`, sum of `(x - mean)^2`."""

    seen: Array
    first: PyTree
    second: PyTree


AnyMoments = Moments | IntegerMoments
AnySums = Sums | IntegerSums


def init(observation: PyTree, normalizable: PyTree) -> Moments:
    """Moments of nothing seen. `normalizable` marks with True each observation leaf that is to be normalized."""
    zeros = jax.tree.map(lambda x, use: jnp.zeros(x.shape, jnp.float32) if use else None, observation, normalizable)
    return Moments(jnp.float32(0), zeros, zeros)


def zero_sums(moments: AnyMoments | None) -> AnySums | None:
    """Sums of no observation, shaped as the moments are; None for None."""
    if moments is None:
        return None
    if isinstance(moments, IntegerMoments):
        return integer_statistics.zero_sums(moments)
    zeros = jax.tree.map(jnp.zeros_like, moments.mean)
    return Sums(jnp.float32(0), zeros, zeros)


def accumulate(sums: AnySums | None, moments: AnyMoments | None, observations: PyTree, live: Array) -> AnySums | None:
    """Adds observations [L, ...] of the lanes that are live [L]; a lane with a non-finite observation is left out."""
    if sums is None or moments is None:
        return None
    picked = _picked(moments, observations)
    live = live & finite_rows(picked)  # one NaN in the sums would make every later observation NaN, for good
    if isinstance(moments, IntegerMoments) or isinstance(sums, IntegerSums):
        assert isinstance(moments, IntegerMoments) and isinstance(sums, IntegerSums)
        return integer_statistics.accumulate(sums, moments, picked, live)

    def deviation(x: Array, mean: Array) -> Array:
        mask = live.reshape(live.shape + (1,) * (x.ndim - 1))
        return jnp.where(mask, jnp.clip(x - mean[None], -LARGEST, LARGEST), 0.0)

    d = jax.tree.map(deviation, picked, moments.mean)
    return Sums(
        sums.seen + jnp.sum(live.astype(jnp.float32)),
        jax.tree.map(lambda s, x: s + jnp.sum(x, axis=0), sums.first, d),
        jax.tree.map(lambda s, x: s + jnp.sum(x * x, axis=0), sums.second, d),
    )


def merge(moments: Moments | None, sums: AnySums | None) -> Moments | None:
    """The moments of everything seen so far; None for None."""
    if moments is None or sums is None:
        return None
    assert isinstance(sums, Sums)  # those of integers have a `merge` of their own
    total = moments.seen + sums.seen
    safe = jnp.maximum(total, 1.0)

    def mean(old: Array, first: Array) -> Array:
        return old + first / safe

    def m2(old: Array, first: Array, second: Array) -> Array:
        # A sum of squares; rounding may leave it just below 0.
        return old + jnp.maximum(second - first * first / safe, 0.0)

    return Moments(
        total,
        jax.tree.map(mean, moments.mean, sums.first),
        jax.tree.map(m2, moments.m2, sums.first, sums.second),
    )


def normalize(moments: Moments | None, observation: PyTree, clip: float = 10.0) -> PyTree:
    """`(x - mean) / std`, clipped to +-clip, for the leaves that have moments, which become float32; no more than
    that before anything was seen.

    What comes out is finite, so that one lost reading spoils no network and no memory: NaN becomes 0, which is the mean
    where there are moments, and so does what is infinite where there are none.
    """
    if moments is None:
        return jax.tree.map(_seen, observation)

    def one(x: Any, mean: Array | None, m2: Array | None) -> Any:
        if mean is None or m2 is None:
            return _seen(x)
        x, known = x.astype(jnp.float32), moments.seen > 0
        std = jnp.sqrt(m2 / jnp.maximum(moments.seen, 1.0) + 1e-8)
        # An entry that never varied has deviation 0: at least 1e-4, so that its first change does not explode.
        return _seen(jnp.where(known, jnp.clip((x - mean) / jnp.maximum(std, 1e-4), -clip, clip), x))

    return jax.tree.map(one, observation, _as(observation, moments.mean), _as(observation, moments.m2))


def finite_rows(tree: PyTree, axes: int = 1) -> Array:
    """Whether all numbers of a row are finite, [L] of arrays [L, ...] (with `axes=2` [L, T] of [L, T, ...])."""
    sound = jnp.bool_(True)
    for x in jax.tree.leaves(tree):
        if jnp.issubdtype(x.dtype, jnp.floating):
            sound = sound & jnp.all(jnp.isfinite(x), axis=tuple(range(axes, x.ndim)))
    return sound


def _seen(x: Any) -> Any:
    """Numbers as a network may see them."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    most = jnp.asarray(min(LARGEST, float(jnp.finfo(x.dtype).max)), x.dtype)  # float16 ends before
    return jnp.where(jnp.isfinite(x), jnp.clip(x, -most, most), jnp.zeros_like(x))


def _as(observation: PyTree, tree: PyTree) -> PyTree:
    return jax.tree.unflatten(jax.tree.structure(observation), jax.tree.leaves(tree, is_leaf=lambda x: x is None))


def _picked(moments: AnyMoments, observations: PyTree) -> PyTree:
    """The observation leaves that have moments, as float32, in the moments' structure."""

    def one(mean: Array | None, x: Array) -> Array | None:
        return None if mean is None else x.astype(jnp.float32)

    return jax.tree.map(one, moments.mean, observations, is_leaf=lambda x: x is None)
