"""Noise spaces: how parameters are perturbed, and how weighted perturbations are summed.

A perturbation of a parameter W is `sigma * E` where each entry of E has mean 0 and variance 1. Two noise spaces differ
only in E:

* dense:     E has i.i.d. entries (OpenES, arXiv 1703.03864);
* low rank:  E = A B^T / sqrt(R), A [m, R] and B [n, R] with i.i.d. entries (EGGROLL, arXiv 2511.16652, section 4).

Those entries are standard normal, or +1 and -1 with equal probability (Rademacher): the estimator needs only mean 0,
variance 1 and a finite fourth moment. They are stored in the space's dtype; everything is summed in float32.

Noise is a pure function of (key, leaf, pair): it is never stored between uses, and any part of the population can be
drawn anywhere. The key is the caller's, and must hold the generation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from esrl.core.options import checked
from esrl.core.types import Array, EsrlError, Key, PyTree

DTYPES = {"float32": 4, "bfloat16": 2, "int8": 1}  # of stored noise, with their bytes


class Leaf(NamedTuple):
    """How one parameter is perturbed.

    `row_axes` are the dimensions that form the m side of the matrix that the network uses the parameter as (those that
    are contracted with the input); the others form the n side. `row_axes` is None for dense noise. `rank` is the rank R
    of a low-rank leaf and 0 for a dense one. `reason` says in words how this was decided. `scale` multiplies sigma and
    the optimizer's steps for this leaf: the search sees the parameter as `scale` times a variable of its own. `shift`
    is of integers (`esrl.perturbation.integer_noise`): their sigma is 2^-shift.
    """

    path: str
    shape: tuple[int, ...]
    row_axes: tuple[int, ...] | None
    reason: str
    rank: int = 0
    scale: float = 1.0
    shift: int = 0

    @property
    def column_axes(self) -> tuple[int, ...]:
        """The dimensions of the n side."""
        return tuple(d for d in range(len(self.shape)) if d not in (self.row_axes or ()))

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(m, n), the two sides of the matrix view."""
        size = math.prod(self.shape)
        m = math.prod(self.shape[d] for d in self.row_axes or ())
        return m, size // max(m, 1)

    @property
    def num_random(self) -> int:
        """Random numbers that one perturbation of this leaf takes."""
        return self.rank * sum(self.matrix_shape) if self.rank else math.prod(self.shape)


class LowRank(NamedTuple):
    """Factors of low-rank perturbations of P pairs: a [P, R, *m side], b [P, R, *n side]; E = sum_r a b / sqrt(R).

    Ranks come before sides, so that a loop over steps reads a row of a factor as it lies in memory.
    """

    a: Array
    b: Array


class Dense(NamedTuple):
    """Dense perturbations of P pairs: e [P, *shape]."""

    e: Array


class Noise(NamedTuple):
    """A vector space of perturbations, as pure functions.

    Attributes:
      plan: `plan(leaves) -> leaves` chooses low rank or dense for every leaf, given what the network allows.
      sample: `sample(key, leaves, pairs) -> [LowRank | Dense, ...]` draws the noise of the pairs with these ids [P].
      weighted_sum: `weighted_sum(weights, eps, leaves) -> [array, ...]`, `sum_p weights[p] E_p` for every leaf.
      perturb: `perturb(params, eps, leaves, scale) -> params + scale * leaf.scale * E_p`, stacked over P: the dense
        form, for oracles and for taking one member out of a population; training never calls it.
      bytes_each: bytes that one stored number takes.
    """

    plan: Callable[[Sequence[Leaf]], tuple[Leaf, ...]]
    sample: Callable[[Key, Sequence[Leaf], Array], list[Any]]
    weighted_sum: Callable[[Array, Sequence[Any], Sequence[Leaf]], list[Array]]
    perturb: Callable[[PyTree, Sequence[Any], Sequence[Leaf], Any], PyTree]
    bytes_each: int = 4


def excess_variance(m: int, n: int, rank: int = 1, distribution: str = "normal") -> float:
    """Variance that rank R adds to a gradient estimate of an m x n matrix, as a fraction of dense normal noise's.

    For a linear fitness <G, W> the estimate `<G, E> E` has squared error `(E <G, E>^2 |E|^2 - |G|^2)`, in units of
    |G|^2: `mn + 1` with dense normal noise (Isserlis) and `2 (m + n + 1) / R` more with normal factors.

    Rademacher factors have constant norms: the R terms with one r give mn / R each, and the R (R - 1) pairs of ranks
    2 / R^2 each, so the error is `mn + 1 - 2 / R`, less than dense normal noise's (dense Rademacher noise has mn - 1).
    """
    return (-2 if distribution == "rademacher" else 2 * (m + n + 1)) / (rank * (m * n + 1))


@checked
def dense(distribution: str = "normal", dtype: str = "float32") -> Noise:
    """Full-rank noise for every leaf: the noise of OpenES.

    Args:
      distribution, dtype: as in `low_rank`.

    Raises:
      EsrlError: as `low_rank`, for these.

    Example:
      >>> leaf = esrl.noise.Leaf("w", (64, 32), (0,), "used by dot_general")
      >>> space = esrl.noise.dense()
      >>> space.sample(jax.random.key(0), space.plan([leaf]), jnp.arange(8))[0].e.shape
      (8, 64, 32)
    """

    def plan(leaves: Sequence[Leaf]) -> tuple[Leaf, ...]:
        return tuple(leaf._replace(rank=0, reason="dense noise") for leaf in leaves)

    return _space(plan, distribution, dtype)


@checked
def low_rank(
    rank: int = 1, max_excess_variance: float | None = None, distribution: str = "normal", dtype: str = "float32"
) -> Noise:
    """Low-rank noise for whatever the network uses as a matrix, dense noise for the rest: the noise of EGGROLL.

    Args:
      rank: R, at least 1. A matrix whose factors would hold as many numbers as itself gets dense noise, which then
        costs no more and has less variance.
      max_excess_variance: matrices for which rank R would add more than this fraction of variance (`excess_variance`)
        get dense noise too; None leaves every matrix low-rank, as in the paper. Rademacher factors add none, so that it
        has no effect on them.
      distribution: of the factors' entries (and of dense noise's), "normal" or "rademacher": +1 or -1.
      dtype: in which they are stored: "float32", "bfloat16", or for "rademacher" also "int8".

    Raises:
      EsrlError: rank below 1, max_excess_variance not above 0, an unknown distribution or dtype, or int8 for normal
        entries.

    Example:
      >>> leaf = esrl.noise.Leaf("w", (64, 32), (0,), "used by dot_general")
      >>> space = esrl.noise.low_rank(4)
      >>> plan = space.plan([leaf])
      >>> factors = space.sample(jax.random.key(0), plan, jnp.arange(8))
      >>> factors[0].a.shape, factors[0].b.shape, space.weighted_sum(jnp.ones(8), factors, plan)[0].shape
      ((8, 4, 64), (8, 4, 32), (64, 32))
    """

    def choose(leaf: Leaf) -> Leaf:
        if leaf.row_axes is None:
            return leaf._replace(rank=0)
        m, n = leaf.matrix_shape
        if rank * (m + n) >= m * n:  # dense noise then takes no more numbers, and has less variance
            return leaf._replace(rank=0, reason=f"{leaf.reason}; {m}x{n} is no larger than its rank-{rank} factors")
        excess = excess_variance(m, n, rank, distribution)
        if max_excess_variance is not None and excess > max_excess_variance:
            return leaf._replace(rank=0, reason=f"{leaf.reason}; rank {rank} would add {excess:.0%} variance")
        return leaf._replace(rank=rank)

    return _space(lambda leaves: tuple(map(choose, leaves)), distribution, dtype)


def _space(plan: Callable[[Sequence[Leaf]], tuple[Leaf, ...]], distribution: str, dtype: str) -> Noise:
    if dtype == "int8" and distribution != "rademacher":
        raise EsrlError('noise_dtype "int8" holds +1 and -1 but no normal numbers; it needs distribution "rademacher"')
    return Noise(plan, partial(sample, distribution=distribution, dtype=dtype), weighted_sum, perturb, DTYPES[dtype])


def sample(
    key: Key, leaves: Sequence[Leaf], pairs: Array, distribution: str = "normal", dtype: str = "float32"
) -> list[LowRank | Dense]:
    """Noise of the pairs with ids `pairs` [P], one entry for each leaf.

    A pair's numbers are one draw from its own key, and each leaf has its place in it. So a number depends on (key,
    pair, leaf) alone, neither chunks nor devices change it, and there is one generator to compile for all leaves.
    """
    # A key for each pair, never one for a batch of them: batches differ between chunks and devices.
    keys = jax.vmap(lambda pair: jax.random.fold_in(key, pair))(pairs)
    draw = {"normal": _normal, "rademacher": _rademacher}[distribution]
    flat = jax.vmap(partial(draw, count=sum(leaf.num_random for leaf in leaves), dtype=dtype))(keys)
    return split(flat, leaves)


def split(flat: Array, leaves: Sequence[Leaf]) -> list[LowRank | Dense]:
    """The numbers of P pairs, [P, all leaves' num_random], as one entry for each leaf."""
    eps: list[LowRank | Dense] = []
    start = 0
    for leaf in leaves:
        numbers = flat[:, start : start + leaf.num_random]
        start += leaf.num_random
        if not leaf.rank:
            eps.append(Dense(numbers.reshape(-1, *leaf.shape)))
            continue
        # Both factors keep the dimensions of the parameter, so that convolutions and lookups can take them as they are.
        cut = leaf.matrix_shape[0] * leaf.rank
        m_side, n_side = (tuple(leaf.shape[d] for d in dims) for dims in (leaf.row_axes or (), leaf.column_axes))
        a, b = numbers[:, :cut], numbers[:, cut:]
        eps.append(LowRank(a.reshape(-1, leaf.rank, *m_side), b.reshape(-1, leaf.rank, *n_side)))
    return eps


def _normal(key: Key, count: int, dtype: str) -> Array:
    return jax.random.normal(key, (count,)).astype(dtype)


def _rademacher(key: Key, count: int, dtype: str) -> Array:
    """+1 or -1 [count], each from one random bit."""
    # 32 entries from each random word; a draw from {-1, 1} would spend a whole word on each.
    words = jax.random.bits(key, (-(-count // 32), 1), jnp.uint32)
    ones = (words >> jnp.arange(32, dtype=jnp.uint32)[None]) & jnp.uint32(1)
    return 1 - 2 * ones.ravel()[:count].astype(dtype)


def weighted_sum(weights: Array, eps: Sequence[LowRank | Dense], leaves: Sequence[Leaf]) -> list[Array]:
    """`sum_p weights[p] E_p` for every leaf, without ever forming an E: one product over pairs and ranks together.

    This is not `(sum_p w_p A_p)(sum_p w_p B_p)^T`, which has the wrong expectation. Noise of any dtype becomes float32
    (exactly) before it meets the weights, so that they lose nothing.

    Args:
      weights: [P] float32.
      eps: what `sample` gave.
      leaves: the plan it was given.
    """

    def one(e: LowRank | Dense, leaf: Leaf) -> Array:
        if isinstance(e, Dense):
            return jnp.einsum("p,p...->...", weights, e.e.astype(weights.dtype))
        a, b = _factors(e, leaf)
        # One product over pairs and ranks together. The weight scales A alone: E is linear in each of its factors.
        total = jnp.einsum("prm,prn->mn", a * weights[:, None, None], b) / math.sqrt(leaf.rank)
        return _from_matrix(total, leaf)

    return [one(e, leaf) for e, leaf in zip(eps, leaves, strict=True)]


def perturb(params: PyTree, eps: Sequence[LowRank | Dense], leaves: Sequence[Leaf], scale: Any) -> PyTree:
    """`params + scale * leaf.scale * E_p` for every pair, leaves [P, *shape]: the dense form, for oracles."""

    def one(w: Array, e: LowRank | Dense, leaf: Leaf) -> Array:
        if isinstance(e, Dense):
            full = e.e.astype(w.dtype)
        else:
            matrices = jnp.einsum("prm,prn->pmn", *_factors(e, leaf)) / math.sqrt(leaf.rank)
            full = jax.vmap(lambda matrix: _from_matrix(matrix, leaf))(matrices)
        return w[None] + scale * leaf.scale * full

    flat, tree = jax.tree.flatten(params)
    return tree.unflatten([one(w, e, leaf) for w, e, leaf in zip(flat, eps, leaves, strict=True)])


def _factors(e: LowRank, leaf: Leaf) -> tuple[Array, Array]:
    """The factors of the matrix view, float32: [P, R, m], [P, R, n]."""
    m, n = leaf.matrix_shape
    a, b = e.a.astype(jnp.float32), e.b.astype(jnp.float32)
    return a.reshape(-1, leaf.rank, m), b.reshape(-1, leaf.rank, n)


def _from_matrix(matrix: Array, leaf: Leaf) -> Array:
    """An [m, n] matrix view back in the leaf's own shape."""
    order = (leaf.row_axes or ()) + leaf.column_axes
    stacked = matrix.reshape(tuple(leaf.shape[d] for d in order))
    return stacked.transpose(tuple(order.index(d) for d in range(len(order))))
