"""Noise for weights that are integers: int8 factors, sigma as a shift, and sums that cannot overflow.

A member's matrix is W + s (A B^T / (16 sqrt(R))) 2^-shift with A [m, R], B [n, R] of random int8 with mean 0 and
standard deviation 16 (`esrl.core.integers.draw`): sigma is 2^-shift in the fixed-point numbers of the weights, where 16
is 1.
It is never formed, and its entries are not even integers: the forward pass shifts products (`rules.integer_product`).
Source: the integer models of EGGROLL (arXiv 2511.16652).

Numbers come from a counter, as those of `esrl.perturbation.noise`, or from a table of random numbers, of which every
pair takes a slice that its counter chooses. Slices overlap, so pairs are not independent; drawing them is cheaper.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from esrl.core.integers import LARGEST, MOST, NOISE_MOST, WEIGHT_BITS, draw, log2_root
from esrl.core.types import Array, EsrlError, Key
from esrl.perturbation.noise import Dense, Leaf, LowRank, split


def plan(leaves: Sequence[Leaf], rank: int, shift: int) -> tuple[Leaf, ...]:
    """How each leaf is perturbed: low-rank where the network multiplies by it and that takes fewer numbers, else dense.

    Raises:
      EsrlError: a matrix with so many rows that a sum of products could overflow.
    """

    def one(leaf: Leaf) -> Leaf:
        m, n = leaf.matrix_shape
        if leaf.row_axes is None:
            return leaf._replace(rank=0, shift=shift, row_axes=None)
        if rank * (m + n) >= m * n:
            reason = f"{leaf.reason}; {m}x{n} is no larger than its rank-{rank} factors"
            return leaf._replace(rank=0, shift=shift, reason=reason)
        return leaf._replace(rank=rank, shift=shift)

    planned = tuple(map(one, leaves))
    for leaf in planned:
        rows = max(leaf.matrix_shape) if leaf.row_axes is not None else 0  # a network may use W and W^T
        rows += "conv" in leaf.reason  # a bias, which is a row of other matrices, stands beside a kernel
        if largest_sum(rows, leaf.rank, shift) > LARGEST:
            raise EsrlError(
                f"{leaf.path} has {rows:,} inputs, and a sum of {rows:,} int8 products and of noise of rank {leaf.rank}"
                f" (sigma_shift {shift}) could overflow int32; use a narrower layer, a smaller rank or a larger"
                " sigma_shift"
            )
    return planned


def largest_sum(rows: int, rank: int, shift: int) -> int:
    """The largest number that can occur where an int8 vector of `rows` entries meets a perturbed matrix.

    Example:
      >>> largest_sum(257, 1, 2) < 2**31, largest_sum(65_536, 4, 0) < 2**31
      (True, False)
    """
    shared = rows * MOST * MOST
    if not rank:
        noisy = rows * MOST * NOISE_MOST
        return max(noisy + half(shift), shared + ((noisy + half(shift)) >> shift))
    inner = rows * MOST * NOISE_MOST + half(WEIGHT_BITS)
    outer = (inner >> WEIGHT_BITS) * NOISE_MOST * rank + half(shift + log2_root(rank))
    return max(inner, outer, shared + (outer >> (shift + log2_root(rank))))


def half(shift: int) -> int:
    """What a shift adds to round."""
    return 1 << (shift - 1) if shift > 0 else 0


def table(key: Key, size: int) -> Array:
    """A table of random int8 [size]."""
    return draw(key, size)


def sample(key: Key, leaves: Sequence[Leaf], pairs: Array, numbers: Array | None = None) -> list[LowRank | Dense]:
    """Noise of the pairs with ids `pairs` [P], int8, one entry for each leaf.

    Args:
      key: of the run and the generation. leaves: the plan.
      numbers: a table [T] to take slices from; None draws anew.
    """
    count = sum(leaf.num_random for leaf in leaves)
    keys = jax.vmap(lambda pair: jax.random.fold_in(key, pair))(pairs)
    if numbers is None:
        return split(jax.vmap(lambda key: draw(key, count))(keys), leaves)
    words = jax.vmap(lambda key: jax.random.bits(key, (), jnp.uint32))(keys)
    starts = (words % jnp.uint32(numbers.shape[0] - count + 1)).astype(jnp.int32)
    return split(jax.vmap(lambda start: jax.lax.dynamic_slice(numbers, (start,), (count,)))(starts), leaves)


def weighted_sum(
    weights: Array, eps: Sequence[LowRank | Dense], leaves: Sequence[Leaf], most: int = LARGEST
) -> list[Array]:
    """`sum_p weights[p] E_p` in int32 for every leaf, E = A B^T without its scale, or dense noise: exact.

    Args:
      most: the largest |weight|. Up to 2, weight times A fits int8, and a product of int8 takes a tenth of the time.
    """
    narrow = jnp.int8 if most * NOISE_MOST <= MOST else jnp.int32

    def one(e: LowRank | Dense, leaf: Leaf) -> Array:
        if isinstance(e, Dense):
            return jnp.einsum("p,p...->...", weights, e.e.astype(jnp.int32))
        m, n = leaf.matrix_shape
        a, b = e.a.reshape(-1, leaf.rank, m).astype(narrow), e.b.reshape(-1, leaf.rank, n).astype(narrow)
        weighted = a * weights[:, None, None].astype(narrow)
        matrix = jnp.einsum("prm,prn->mn", weighted, b, preferred_element_type=jnp.int32)
        order = (leaf.row_axes or ()) + leaf.column_axes
        stacked = matrix.reshape(tuple(leaf.shape[d] for d in order))
        return stacked.transpose(tuple(order.index(d) for d in range(len(order))))

    return [one(e, leaf) for e, leaf in zip(eps, leaves, strict=True)]
