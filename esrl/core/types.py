"""Type aliases, keys, and exact 64-bit counters; errors and notices of `esrl.core.errors` by the same names."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from esrl.core.errors import EsrlError as EsrlError
from esrl.core.errors import close_to as close_to
from esrl.core.errors import nearest as nearest
from esrl.core.errors import notice as notice
from esrl.core.errors import notice_once as notice_once
from esrl.core.errors import reason_of as reason_of

PyTree = Any
Array = jax.Array
Key = jax.Array  # a typed threefry key, `jax.random.key(seed, impl="threefry2x32")`


def seed_key(seed: int) -> Key:
    """The run key of a seed. Always threefry: `rbg` keys lose independence under `vmap`.

    Raises:
      EsrlError: the seed does not fit 32 bits.
    """
    if not 0 <= seed < 2**32:
        raise EsrlError(f"seed is {seed}, but must lie in 0 .. 2^32 - 1")
    return jax.random.key(seed, impl="threefry2x32")


def run_key(key: Any) -> Key:
    """The run key of any JAX key: `jax.random.key(0)`, `jax.random.PRNGKey(0)`, or a key of another generator.

    Always threefry, as `seed_key`: a threefry key stays what it is, another one is the seed of a new one. Works on
    traced keys too, so that `jax.vmap(agent.init)` takes an array of them.

    Raises:
      EsrlError: something that is not one JAX key.
    """
    shape, dtype = getattr(key, "shape", None), getattr(key, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and shape == ():
        if str(jax.random.key_impl(key)) == "threefry2x32":
            return key
        return jax.random.wrap_key_data(jax.random.bits(key, (2,), jnp.uint32), impl="threefry2x32")
    if dtype == jnp.uint32 and shape == (2,):  # a legacy key: the two words of a threefry key
        return jax.random.wrap_key_data(jnp.asarray(key), impl="threefry2x32")
    given = f"{dtype}{list(shape)}" if shape is not None else f"a {type(key).__name__}"
    raise EsrlError(f"one JAX key is needed, as jax.random.key(0), but got {given}")


class Count(NamedTuple):
    """An exact unsigned 64-bit count, without JAX's 64-bit mode: `hi * 2^32 + lo`, both uint32."""

    hi: Array
    lo: Array

    def __int__(self) -> int:
        return (int(self.hi) << 32) + int(self.lo)


def _add(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
    lo = a[1] + b[1]
    # Unsigned addition wraps round: the low words have carried exactly when their sum is below one of them.
    return a[0] + b[0] + (lo < a[1]).astype(jnp.uint32), lo


def count(value: int = 0) -> Count:
    """A `Count` that holds a Python integer."""
    return Count(jnp.uint32(value >> 32), jnp.uint32(value & 0xFFFFFFFF))


def count_float(value: Count) -> Array:
    """A count as float32, rounded."""
    return value.hi.astype(jnp.float32) * 2.0**32 + value.lo.astype(jnp.float32)


def count_add(a: Count, b: Count) -> Count:
    """Exact sum of two counts."""
    return Count(*_add(a, b))


def count_sum(values: Array) -> Count:
    """Exact sum of an array of non-negative int32 or uint32 values, of any size."""
    lo = values.ravel().astype(jnp.uint32)
    zero = jnp.uint32(0)
    return Count(*jax.lax.reduce((jnp.zeros_like(lo), lo), (zero, zero), _add, (0,)))
