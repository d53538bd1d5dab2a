"""One kernel for a perturbed layer: product, low-rank correction, and what follows each row of it.

    out = f(x W + (s sigma / sqrt(R)) (x A) B^T, biases)        (arXiv 2511.16652, section 4)

where f stays inside a row: perturbed biases, a LayerNorm, an activation. XLA writes the product to memory and reads it
again for the correction and for f; here a block of rows stays on the chip from the product to the result. The kernel is
Pallas: Triton on a GPU, interpreted elsewhere (slow; for tests). `esrl.perturbation.fused` finds what it can take.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from esrl.core.types import Array

LARGEST_ROW = 1024  # columns of a row that a block can hold whole, as a reduction needs
_BLOCK = 16384  # numbers of a block of results, which lie in registers
_LEAST = 16  # rows, columns and depth of the smallest product that a tensor core takes
_COLUMNS = 128  # of a block, where rows need not be whole


class Operand(NamedTuple):
    """What f takes beside the product.

    Attributes:
      kind: "perturbed" (a vector shared by all lanes, and its noise of each pair), "shared" ([N], or one number as [1])
        or "lane" ([L, N]).
      value: the array. noise: [P, N] of a perturbed vector, else None. factor: multiplies the noise.
      dtype: the type that the network uses it in.
    """

    kind: Literal["perturbed", "shared", "lane"]
    value: Array
    noise: Array | None
    factor: float
    dtype: Any


class Sizes(NamedTuple):
    """Static sizes: L lanes of which `rows` in turn belong to a pair, x [L, inner], out [L, outer], R, rows of a block.

    `whole` says that a block must hold whole rows.
    """

    lanes: int
    rows: int
    inner: int
    outer: int
    rank: int
    block: int
    whole: bool


Follow = Callable[[Array, Sequence[Array], Array], Array]


def takes(rows: int, outer: int, whole: bool) -> bool:
    """Whether the kernel takes this many lanes of a pair, a power of two, and this many outputs."""
    return rows & (rows - 1) == 0 and outer > 1 and (not whole or outer <= LARGEST_ROW)


def row_blocks(lanes: int, outer: int, whole: bool) -> list[int]:
    """Rows of a block that may be worth a try, the likeliest first."""
    columns = _columns(outer, whole)[0]
    most = max(_LEAST, min(_power(lanes), _BLOCK // columns))
    return list(dict.fromkeys(max(_LEAST, min(size, most)) for size in (64, 128, 32)))


def _power(size: int) -> int:
    """The next power of two."""
    return 1 << max(size - 1, 0).bit_length()


def _columns(outer: int, whole: bool) -> tuple[int, int]:
    """Columns of a block, and of all blocks."""
    each = max(_LEAST, _power(outer) if whole else min(_power(outer), _COLUMNS))
    return each, -(-outer // each) * each


def _filled(x: Array, *sizes: int) -> Array:
    """An array with zeros after its last entries, up to these sizes."""
    return jnp.pad(x, [(0, size - old) for old, size in zip(x.shape, sizes, strict=True)]) if x.shape != sizes else x


def fused_layer(
    x: Array,
    w: Array,
    a: Array,
    b: Array,
    scale: Array,
    operands: Sequence[Operand],
    follow: Follow,
    sizes: Sizes,
    factor: float,
    dtypes: tuple[Any, Any],
    precision: Any = None,
    interpret: bool = False,
) -> Array:
    """The layer of every lane, [L, outer].

    Args:
      x: [L, inner] lanes, those of a pair in turn. w: [inner, outer]. a: [P, R, inner]. b: [P, R, outer].
      scale: [L] float32, sigma times each lane's sign.
      operands: what f takes beside the product.
      follow: `follow(z [rows, columns], operands [rows, columns or 1], mask [rows, columns]) -> [rows, columns]` for a
        block; the mask says which columns are there, which a reduction must heed.
      sizes: the static sizes.
      factor: multiplies the noise of the matrix (`Leaf.scale`).
      dtypes: of the product as the network has it, and of the result.
      precision: of the product, as `jax.lax.dot` takes it. interpret: by JAX's interpreter of kernels, on any device.
    """
    from jax.experimental import pallas as pl

    lanes, rows, inner, outer, rank, block, _ = sizes
    columns, width = _columns(outer, sizes.whole)
    deep = max(_LEAST, min(_power(inner), 32))
    depth = -(-inner // deep) * deep
    height = -(-lanes // block) * block
    pairs = max(block // rows, 1)  # of a block; where a pair has more rows than a block, several blocks read the same
    every = max(height // rows, pairs)

    def lane_block(i: Any, j: Any) -> tuple[Any, Any]:
        return i, j

    def pair_of(i: Any) -> Any:
        return i * block // rows // pairs

    given = [
        (_filled(x, height, depth), (block, depth), lambda i, j: (i, 0)),
        (_filled(w, depth, width), (depth, columns), lambda i, j: (0, j)),
        (_filled(a, every, rank, depth), (pairs, rank, depth), lambda i, j: (pair_of(i), 0, 0)),
        (_filled(b, every, rank, width), (pairs, rank, columns), lambda i, j: (pair_of(i), 0, j)),
        (_filled(scale[:, None], height, 1), (block, 1), lambda i, j: (i, 0)),
    ]
    for operand in operands:
        if operand.kind == "lane":
            given.append((_filled(operand.value, height, width), (block, columns), lane_block))
        elif operand.value.size == 1:
            given.append((operand.value.reshape(1, 1), (1, 1), lambda i, j: (0, 0)))
        else:
            given.append((_filled(operand.value[None], 1, width), (1, columns), lambda i, j: (0, j)))
        if operand.noise is not None:
            given.append((_filled(operand.noise, every, width), (pairs, columns), lambda i, j: (pair_of(i), j)))

    kinds = [(operand.noise is not None, operand.factor, operand.dtype) for operand in operands]
    body = partial(
        _body, kinds=kinds, follow=follow, sizes=sizes, factor=factor, dtypes=dtypes, precision=precision,
        deep=deep, steps=depth // deep, columns=columns, pairs=pairs,
    )  # fmt: skip
    out = pl.pallas_call(
        body,
        out_shape=jax.ShapeDtypeStruct((height, width), dtypes[1]),
        grid=(height // block, width // columns),
        in_specs=[pl.BlockSpec(shape, where) for _, shape, where in given],
        out_specs=pl.BlockSpec((block, columns), lane_block),
        interpret=interpret,
        name="perturbed_layer",
        **({} if interpret else {"compiler_params": _triton(block * columns)}),
    )(*(array for array, _, _ in given))
    return out[:lanes, :outer]


def _triton(numbers: int) -> Any:
    from jax.experimental.pallas import triton

    return triton.CompilerParams(num_warps=4 if numbers <= 8192 else 8, num_stages=2)


def _body(
    *refs: Any,
    kinds: Sequence[tuple[bool, float, Any]],
    follow: Follow,
    sizes: Sizes,
    factor: float,
    dtypes: tuple[Any, Any],
    precision: Any,
    deep: int,
    steps: int,
    columns: int,
    pairs: int,
) -> None:
    """A block of rows and columns: the product over all of the inner side, then the rest."""
    from jax.experimental import pallas as pl

    x_ref, w_ref, a_ref, b_ref, scale_ref, *others, out_ref = refs
    rank, block = sizes.rank, sizes.block
    wide = jnp.float32

    def of_rows(each: Array) -> Array:  # [pairs, n] of the block's pairs, as [rows, n]
        repeated = jnp.broadcast_to(each[:, None, :], (pairs, block // pairs, each.shape[1]))
        return repeated.reshape(block, each.shape[1])

    def step(k: Any, sums: tuple[Array, ...]) -> tuple[Array, ...]:
        part = pl.ds(k * deep, deep)
        x = x_ref[:, part]
        product = jax.lax.dot(x, w_ref[part, :], precision=precision, preferred_element_type=wide)
        inner = [
            jnp.sum(x.astype(wide) * of_rows(a_ref[:, r, part].astype(x.dtype).astype(wide)), axis=1, keepdims=True)
            for r in range(rank)
        ]
        return tuple(old + new for old, new in zip(sums, (product, *inner), strict=True))

    zeros = (jnp.zeros((block, columns), wide), *(jnp.zeros((block, 1), wide) for _ in range(rank)))
    total, *inner = jax.lax.fori_loop(0, steps, step, zeros)
    scale = scale_ref[...]
    kind = x_ref.dtype
    for r, one in enumerate(inner):  # rounded where the path without a kernel rounds
        thin = (one * (scale * (factor / math.sqrt(rank)))).astype(kind).astype(wide)
        total = total + thin * of_rows(b_ref[:, r, :].astype(kind).astype(wide))

    left = iter(others)
    taken = []
    for perturbed, times, dtype in kinds:
        value = next(left)[...]
        if perturbed:
            own = value.dtype
            value = value + (scale * times).astype(own) * of_rows(next(left)[...].astype(own))
        taken.append(value.astype(dtype))
    there = pl.program_id(1) * columns + jax.lax.broadcasted_iota(jnp.int32, (block, columns), 1) < sizes.outer
    out_ref[...] = follow(total.astype(dtypes[0]), taken, there).astype(dtypes[1])
