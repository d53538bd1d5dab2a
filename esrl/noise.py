"""Noise spaces: how parameters are perturbed, and how weighted perturbations are summed (level 1).

A perturbation of a parameter W is `sigma * E` where each entry of E has mean 0 and variance 1. Two noise spaces differ
only in E:

* dense:     E has i.i.d. standard normal entries (OpenES, arXiv 1703.03864);
* low rank:  E = A B^T / sqrt(R), A [m, R] and B [n, R] i.i.d. standard normal (EGGROLL, arXiv 2511.16652, section 4).

Noise is a pure function of (key, leaf, pair): it is never stored between uses, and any part of the population can be
drawn anywhere. The key is the caller's, and must hold the generation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from esrl.types import Array, EsrlError, Key, PyTree


class Leaf(NamedTuple):
    """How one parameter is perturbed.

    `rows` are the dimensions that form the m side of the matrix that the network uses the parameter as (those that are
    contracted with the input); the others form the n side. `rows` is None for dense noise. `rank` is the rank R of a
    low-rank leaf and 0 for a dense one. `why` says in words how this was decided.
    """

    path: str
    shape: tuple[int, ...]
    rows: tuple[int, ...] | None
    why: str
    rank: int = 0

    @property
    def columns(self) -> tuple[int, ...]:
        """The dimensions of the n side."""
        return tuple(d for d in range(len(self.shape)) if d not in (self.rows or ()))

    @property
    def sides(self) -> tuple[int, int]:
        """(m, n), the two sides of the matrix view."""
        size = math.prod(self.shape)
        m = math.prod(self.shape[d] for d in self.rows or ())
        return m, size // max(m, 1)

    @property
    def floats(self) -> int:
        """Random numbers that one perturbation of this leaf takes."""
        return self.rank * sum(self.sides) if self.rank else math.prod(self.shape)


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
      contract: `contract(weights, eps, leaves) -> [array, ...]`, `sum_p weights[p] E_p` for every leaf.
      perturb: `perturb(params, eps, leaves, scale) -> params + scale * E_p`, stacked over P: the dense form, for
        oracles and for taking one member out of a population; training never calls it.
    """

    plan: Callable[[Sequence[Leaf]], tuple[Leaf, ...]]
    sample: Callable[[Key, Sequence[Leaf], Array], list[Any]]
    contract: Callable[[Array, Sequence[Any], Sequence[Leaf]], list[Array]]
    perturb: Callable[[PyTree, Sequence[Any], Sequence[Leaf], Any], PyTree]


def excess_variance(m: int, n: int) -> float:
    """Variance that rank 1 adds to a gradient estimate of an m x n matrix, as a fraction of dense noise's.

    For a linear fitness <G, W> the estimate `<G, E> E` has squared error `(mn + 1) |G|^2` with dense noise (Isserlis),
    and `2 (m + n + 1) |G|^2` more with rank 1; rank R adds 1/R of that.
    """
    return 2 * (m + n + 1) / (m * n + 1)


def dense() -> Noise:
    """Full-rank noise for every leaf: the noise of OpenES."""

    def plan(leaves: Sequence[Leaf]) -> tuple[Leaf, ...]:
        return tuple(leaf._replace(rank=0, why="dense noise") for leaf in leaves)

    return Noise(plan, sample, contract, perturb)


def low_rank(rank: int = 1, thin: float | None = None) -> Noise:
    """Low-rank noise for whatever the network uses as a matrix, dense noise for the rest: the noise of EGGROLL.

    Args:
      rank: R, at least 1. A matrix whose factors would hold as many numbers as itself gets dense noise, which then
        costs no more and has less variance.
      thin: matrices for which rank R would add more than this fraction of variance (`excess_variance / R`) get dense
        noise too; None leaves every matrix low-rank, as in the paper.

    Raises:
      EsrlError: rank below 1, or thin not above 0.
    """
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise EsrlError(f"rank is {rank!r}, but must be a whole number of at least 1")
    if thin is not None and not thin > 0:
        raise EsrlError(f"thin is {thin}, but must be above 0 (or be left out)")

    def choose(leaf: Leaf) -> Leaf:
        if leaf.rows is None:
            return leaf._replace(rank=0)
        m, n = leaf.sides
        if rank * (m + n) >= m * n:
            return leaf._replace(rank=0, why=f"{leaf.why}; {m}x{n} is no larger than its rank-{rank} factors")
        if thin is not None and excess_variance(m, n) / rank > thin:
            excess = excess_variance(m, n) / rank
            return leaf._replace(rank=0, why=f"{leaf.why}; thin: rank {rank} would add {excess:.0%} variance")
        return leaf._replace(rank=rank)

    return Noise(lambda leaves: tuple(map(choose, leaves)), sample, contract, perturb)


def sample(key: Key, leaves: Sequence[Leaf], pairs: Array) -> list[LowRank | Dense]:
    """Noise of the pairs with ids `pairs` [P], one entry for each leaf.

    A pair's numbers are one draw from its own key, and each leaf has its place in it. So a number depends on (key,
    pair, leaf) alone, neither chunks nor devices change it, and there is one generator to compile for all leaves.
    """
    keys = jax.vmap(lambda pair: jax.random.fold_in(key, pair))(pairs)
    flat = jax.vmap(lambda k: jax.random.normal(k, (sum(leaf.floats for leaf in leaves),)))(keys)
    eps: list[LowRank | Dense] = []
    start = 0
    for leaf in leaves:
        numbers = flat[:, start : start + leaf.floats]
        start += leaf.floats
        if not leaf.rank:
            eps.append(Dense(numbers.reshape(-1, *leaf.shape)))
            continue
        cut = leaf.sides[0] * leaf.rank
        m_side, n_side = (tuple(leaf.shape[d] for d in dims) for dims in (leaf.rows or (), leaf.columns))
        a, b = numbers[:, :cut], numbers[:, cut:]
        eps.append(LowRank(a.reshape(-1, leaf.rank, *m_side), b.reshape(-1, leaf.rank, *n_side)))
    return eps


def contract(weights: Array, eps: Sequence[LowRank | Dense], leaves: Sequence[Leaf]) -> list[Array]:
    """`sum_p weights[p] E_p` for every leaf, without ever forming an E: one product over pairs and ranks together.

    This is not `(sum_p w_p A_p)(sum_p w_p B_p)^T`, which has the wrong expectation.

    Args:
      weights: [P].
      eps: what `sample` gave.
      leaves: the plan it was given.
    """

    def one(e: LowRank | Dense, leaf: Leaf) -> Array:
        if isinstance(e, Dense):
            return jnp.einsum("p,p...->...", weights, e.e)
        m, n = leaf.sides
        a = e.a.reshape(-1, leaf.rank, m) * weights[:, None, None]
        total = jnp.einsum("prm,prn->mn", a, e.b.reshape(-1, leaf.rank, n)) / math.sqrt(leaf.rank)
        return _from_matrix(total, leaf)

    return [one(e, leaf) for e, leaf in zip(eps, leaves, strict=True)]


def perturb(params: PyTree, eps: Sequence[LowRank | Dense], leaves: Sequence[Leaf], scale: Any) -> PyTree:
    """`params + scale * E_p` for every pair, leaves [P, *shape]: the dense form, for oracles and inspection."""

    def one(w: Array, e: LowRank | Dense, leaf: Leaf) -> Array:
        if isinstance(e, Dense):
            full = e.e
        else:
            m, n = leaf.sides
            a, b = e.a.reshape(-1, leaf.rank, m), e.b.reshape(-1, leaf.rank, n)
            matrices = jnp.einsum("prm,prn->pmn", a, b) / math.sqrt(leaf.rank)
            full = jax.vmap(lambda matrix: _from_matrix(matrix, leaf))(matrices)
        return w[None] + scale * full

    flat, tree = jax.tree.flatten(params)
    return tree.unflatten([one(w, e, leaf) for w, e, leaf in zip(flat, eps, leaves, strict=True)])


def _from_matrix(matrix: Array, leaf: Leaf) -> Array:
    """An [m, n] matrix view back in the leaf's own shape."""
    order = (leaf.rows or ()) + leaf.columns
    stacked = matrix.reshape(tuple(leaf.shape[d] for d in order))
    return stacked.transpose(tuple(order.index(d) for d in range(len(order))))
