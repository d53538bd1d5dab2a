"""Arithmetic in integers alone: fixed-point numbers, shifts for scales, saturation, random integers.

A fixed-point number of b fraction bits is an integer that means itself times 2^-b. The sources are the integer networks
of EGGROLL (arXiv 2511.16652: int8 weights of 4 fraction bits, int32 sums, scales that are powers of two), without its
code. Whatever is computed here is the same on every device and in every version of JAX, bit for bit: integers have no
rounding, so their sums have no order.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from esrl.core.types import Array, Key

MOST = 127  # of an int8 that may change its sign
WEIGHT_BITS = 4  # fraction bits of a weight: 16 is 1
SEEN_BITS = 5  # of a quantized observation: 32 is one standard deviation, and 127 almost four
HIDDEN_BITS = 7  # of a hidden activation: it saturates at 1, which is the nonlinearity
OUTPUT_BITS = 8  # of what the head gets, an int16
NOISE = 16  # standard deviation of a random integer: 1 in WEIGHT_BITS
NOISE_MOST = 55  # largest random integer, 3.4 standard deviations
LARGEST = 2**31 - 1  # of an int32 sum


def shifted(x: Array, bits: int) -> Array:
    """`x / 2^bits` of integers, to the nearest one, halves upwards; a negative number of bits multiplies.

    Example:
      >>> shifted(jnp.array([7, 8, -8, -9]), 4).tolist()
      [0, 1, 0, -1]
    """
    if bits <= 0:
        return x << -bits if bits else x
    return (x + (1 << (bits - 1))) >> bits


def saturated(x: Array, dtype: str = "int8") -> Array:
    """Integers as narrower ones: what does not fit becomes the largest of its sign, never its remainder.

    Example:
      >>> saturated(jnp.array([5, 300, -300])).tolist()
      [5, 127, -127]
    """
    most = int(jnp.iinfo(dtype).max)  # symmetrical, so that a sign can be turned
    return jnp.clip(x, -most, most).astype(dtype)


def log2_root(number: int) -> int:
    """The whole number nearest to log2(sqrt(number)): the shift that stands for a division by the root.

    Example:
      >>> [log2_root(number) for number in (1, 4, 7, 9, 64)]
      [0, 1, 1, 2, 3]
    """
    return round(math.log2(max(number, 1)) / 2)


def draw(key: Key, count: int) -> Array:
    """Random int8 [count], nearly normal: mean 0, standard deviation 16, at most 55.

    The sum of a random word's four bytes (Irwin and Hall), less its mean, times 887 / 2^13. The source rounds normal
    draws; a word's bits are the same in every version of JAX, which a logarithm is not.

    Example:
      >>> numbers = draw(jax.random.key(0), 10_000)
      >>> numbers.dtype, 15.5 < float(jnp.std(numbers.astype(jnp.float32))) < 16.5
      (dtype('int8'), True)
    """
    words = jax.random.bits(key, (count,), jnp.uint32)
    four = [((words >> (8 * byte)) & 255).astype(jnp.int32) for byte in range(4)]
    total = four[0] + four[1] + four[2] + four[3] - 510
    return shifted(total * 887, 13).astype(jnp.int8)


def root(x: Array) -> Array:
    """The integer part of the square root of a non-negative int32.

    Example:
      >>> root(jnp.array([0, 1, 15, 16, 2**31 - 1])).tolist()
      [0, 1, 3, 4, 46340]
    """
    found = jnp.zeros_like(x)
    for bit in range(15, -1, -1):  # from the highest bit of the root: 46340 has 16
        tried = found | (1 << bit)
        # tried^2 <= x without a square that overflows: tried <= x // tried.
        found = jnp.where(tried <= x // tried, tried, found)
    return found


def bits_of(x: Array) -> Array:
    """How many bits non-negative int32 numbers take; 0 has none."""
    return 32 - jax.lax.clz(x)
